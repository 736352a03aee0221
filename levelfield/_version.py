"""The version; results under one major and minor number are comparable with each other."""

__version__ = "0.1.0"
