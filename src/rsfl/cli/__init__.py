"""The command line: ``rsfl certify``, ``rsfl report``, ``rsfl verify``, ``rsfl demo``."""

from rsfl.cli.program import main

__all__ = ["main"]
