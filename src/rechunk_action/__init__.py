"""Republish an operating-system image so that an update costs about what really changed."""

__version__ = "0.1.0"
