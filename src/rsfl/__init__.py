"""Certification primitives for PyTorch: numbers that are guarantees, with the assumptions they rest on."""

from rsfl import assumptions, bounds, deform, fed, noise, runs, smooth

__all__ = ["__version__", "assumptions", "bounds", "deform", "fed", "noise", "runs", "smooth"]

__version__ = "0.1.0"
