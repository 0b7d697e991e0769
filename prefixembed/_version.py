"""The version of this library, which saved files record."""

__version__ = "0.1.0"
