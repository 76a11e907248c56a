"""Recipes of the papers' claims in small: each module runs one, says whether it agrees, and writes
JSON."""
