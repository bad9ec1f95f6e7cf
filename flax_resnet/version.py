"""The version, in a file of its own so that building needs no dependency."""

__version__ = "0.6.0"
