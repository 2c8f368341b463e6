"""The answer, put into the objects that other libraries train with."""
