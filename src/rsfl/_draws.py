"""Keyed randomness: what a draw is depends on its key, never on what was drawn before it.

A key is a seed and what follows it, whole numbers or names. One hash turns it into all the bits
that a generator can hold. ``manual_seed`` would not do: on a CPU it reads 32 bits of a seed, of
which 77,000 keys leave an even chance that two share all their draws.
"""

from functools import lru_cache
from hashlib import shake_128
from operator import index

import numpy as np
import torch
from numpy.typing import NDArray

from rsfl._checks import count

__all__ = ["generator", "rekey", "rng", "seed_global", "subseed"]

# The state of PyTorch's CPU generator, in 64-bit words: the seed it was given, its position, the
# 624 words of a Mersenne twister, and what is left over from an odd number of normals.
_SEED, _TWISTER = 0, slice(3, 627)


def _bytes(key: tuple[int | str, ...], size: int) -> bytes:
    """As many bytes as asked for, all of them functions of the whole key."""
    # An np.int64 is written otherwise than an int.
    plain = [part if isinstance(part, str) else index(part) for part in key]
    return shake_128(repr(plain).encode()).digest(size)


def subseed(seed: int, *key: int | str) -> int:
    """64 bits that depend on the seed and on the whole key."""
    return int.from_bytes(_bytes((count("seed", seed), *key), 8), "little")


def rng(seed: int, *key: int | str) -> np.random.Generator:
    """A NumPy generator for this seed and key alone."""
    entropy = int.from_bytes(_bytes((count("seed", seed), *key), 32), "little")
    return np.random.Generator(np.random.PCG64(entropy))


def generator(
    seed: int, *key: int | str, device: torch.device | str | None = None
) -> torch.Generator:
    """A torch generator for this seed and key alone."""
    return rekey(torch.Generator(device or "cpu"), count("seed", seed), *key)


def rekey(generator: torch.Generator, seed: int, *key: int | str) -> torch.Generator:
    """``generator`` with the state that belongs to this seed and key, whatever it had.

    A CPU's is filled with bits that the hash gives: different keys then never share draws. Other
    devices have counter-based generators, which take 64 bits of the hash as their key: of ten
    million keys two are alike with a probability of 3e-6.
    """
    whole = (seed, *key)
    if generator.device.type != "cpu":
        return generator.manual_seed(int.from_bytes(_bytes(whole, 8), "little"))
    drawn = np.frombuffer(_bytes(whole, 8 + 4 * 624), dtype="<u4")
    state = _fresh_state().copy()
    state[_SEED] = drawn[:2].view("<u8")[0]
    state[_TWISTER] = drawn[2:]
    generator.set_state(torch.from_numpy(state.view(np.uint8)))
    return generator


def seed_global(seed: int, *key: int | str) -> None:
    """Seed PyTorch's global generators, on all devices, by this seed and key alone."""
    torch.manual_seed(subseed(seed, *key))
    rekey(torch.default_generator, seed, *key)


@lru_cache(maxsize=1)
def _fresh_state() -> NDArray[np.uint64]:
    """The state of a CPU generator that was seeded just now, in 64-bit words."""
    state = torch.Generator().manual_seed(0).get_state().numpy().view(np.uint64)
    twister = np.random.RandomState(0).get_state(legacy=False)["state"]["key"]
    if not np.array_equal(state[_TWISTER], twister):
        raise RuntimeError(
            f"torch must keep its CPU generator's state as torch 2.4 to 2.13 do, got torch "
            f"{torch.__version__}, which keeps it otherwise"
        )
    return state
