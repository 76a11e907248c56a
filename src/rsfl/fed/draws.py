"""Keyed randomness: what a draw is depends on what it is for, never on what was drawn before it."""

from hashlib import blake2b

import numpy as np
import torch

__all__ = ["generator", "rng", "subseed"]


def subseed(*key: object) -> int:
    """64 bits that depend on the whole key: equal keys give equal seeds, different ones give unrelated seeds."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def rng(*key: object) -> np.random.Generator:
    """A NumPy generator for this key alone."""
    return np.random.Generator(np.random.PCG64(subseed(*key)))


def generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for this key alone."""
    return torch.Generator(device).manual_seed(subseed(*key))
