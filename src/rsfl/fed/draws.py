"""Keyed randomness: what a draw is depends on what it is for, never on what was drawn before it."""

from hashlib import blake2b

import numpy as np
import torch

__all__ = ["generator", "rng", "subseed"]


def subseed(*key: int | str) -> int:
    """64 bits that depend on the whole key: equal keys give equal seeds, different ones give
    unrelated seeds."""
    plain = [
        part if isinstance(part, str) else int(part) for part in key
    ]  # an np.int64 is written otherwise
    return int.from_bytes(blake2b(repr(plain).encode(), digest_size=8).digest(), "little")


def rng(*key: int | str) -> np.random.Generator:
    """A NumPy generator for this key alone."""
    return np.random.Generator(np.random.PCG64(subseed(*key)))


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for this key alone."""
    return torch.Generator(device).manual_seed(subseed(*key))
