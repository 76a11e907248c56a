"""Measurements. ``python -m benchmarks`` (or ``make bench``) prints each figure beside its target
and writes JSON.

A benchmark is a module here with a function ``rows()`` that yields :class:`benchmarks.row.Row`.
Speeds are ratios to a plain reference in the same run.
"""
