"""The version, which reports and recordings carry."""

__version__ = "0.1.0"
