"""The version of this library: packaging and file headers read it here."""

__version__ = "0.1.0"
