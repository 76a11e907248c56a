"""Keyed randomness: what a draw is depends on its key, never on what was drawn before it."""

import numpy as np
import torch

from rsfl._checks import count

__all__ = ["generator", "subseed"]


def subseed(seed: int, *key: int) -> int:
    """64 bits that depend on the seed and on the whole key."""
    return int(np.random.SeedSequence((count("seed", seed), *key)).generate_state(1, np.uint64)[0])


def generator(seed: int, *key: int, device: torch.device | None = None) -> torch.Generator:
    """A generator for this seed and key alone."""
    return torch.Generator(device or "cpu").manual_seed(subseed(seed, *key))
