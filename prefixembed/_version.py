"""The version of this library, which files name for whoever has to tell them apart."""

__version__ = "0.1.0"
