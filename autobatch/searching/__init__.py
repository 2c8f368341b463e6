"""The race for the best validation score in the time there is, and its record."""
