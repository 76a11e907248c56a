"""Certification primitives for PyTorch: numbers that are guarantees, with the assumptions they rest on."""

from rsfl import assumptions, attacks, bounds, deform, fed, noise, runs, smooth, train

__all__ = ["__version__", "assumptions", "attacks", "bounds", "deform", "fed", "noise", "runs", "smooth", "train"]

__version__ = "0.1.0"
