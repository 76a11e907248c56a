"""Votes about orbits as JSON takes them, and back."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from rsfl import orbit as orbits
from rsfl._laws import from_document, to_document
from rsfl.noise import Law
from rsfl.orbit import Orbit
from rsfl.smooth.orbit_tests import OrbitTests

__all__ = ["orbit_from", "orbit_to", "places"]


def orbit_to(
    *,
    orbit: Orbit,
    law: Law,
    tests: Sequence[OrbitTests],
    seed: int,
    spot_checked: bool,
    **rest: Any,
) -> dict[str, Any]:
    """The content of a ballot about orbits, from its fields."""
    return {
        "chosen": rest["chosen"].tolist(),
        "pilot": rest["pilot"].tolist(),
        "index": rest["index"].tolist(),
        "shape": list(rest["shape"]),
        "orbit": orbits.to_document(orbit),
        "law": to_document(law),
        "seed": int(seed),
        "spot_checked": spot_checked,
        "tests": [one.document() for one in tests],
    }


def orbit_from(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ballot about orbits, from its content.

    Raises:
        KeyError, TypeError, ValueError: Something is missing, or of another kind.
    """
    family = orbits.from_document(found["orbit"])
    columns = {
        name: torch.tensor(found[name], dtype=torch.int64) for name in ("chosen", "pilot", "index")
    }
    return {
        **columns,
        "tests": tuple(OrbitTests.of_document(one, family.dim) for one in found["tests"]),
        "shape": tuple(found["shape"]),
        "orbit": family,
        "law": from_document(found["law"]),
        "seed": found["seed"],
        "spot_checked": found["spot_checked"],
    }


def places(key: SupportsIndex | slice | Sequence[int], size: int) -> list[int]:
    """The places of inputs that an index asks for."""
    if isinstance(key, slice):
        return list(range(size))[key]
    kept = (
        [operator.index(place) for place in key]
        if isinstance(key, Sequence | Tensor) and not (isinstance(key, Tensor) and key.ndim == 0)
        else [operator.index(key)]
    )
    for place in kept:
        if not -size <= place < size:
            raise IndexError(f"index {place} is out of range for {size} inputs")
    return kept
