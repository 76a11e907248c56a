"""Certification primitives for PyTorch: numbers that are guarantees, with the assumptions they rest on."""

from rsfl import bounds

__all__ = ["__version__", "bounds"]

__version__ = "0.1.0"
