"""Families of pictures as JSON takes them, and back."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rsfl.orbit.exposure import Exposures
from rsfl.orbit.family import Orbit
from rsfl.orbit.warps import Rotations, RotationScalings, Scalings, Translations

__all__ = ["from_document", "to_document"]

_FAMILIES: dict[str, type[Orbit]] = {
    family.__name__: family
    for family in (Exposures, RotationScalings, Rotations, Scalings, Translations)
}


def to_document(orbit: Orbit) -> dict[str, Any]:
    """A family of this library by its name and settings, as JSON takes them.

    Raises:
        TypeError: It is of another kind.
    """
    if type(orbit) not in _FAMILIES.values():
        raise TypeError(f"orbit must be one of {', '.join(_FAMILIES)}, got {orbit!r}")
    # All of them are dataclasses.
    return {"name": type(orbit).__name__, **asdict(orbit)}  # type: ignore[call-overload]


def from_document(document: Mapping[str, Any]) -> Orbit:
    """The family that :func:`to_document` described.

    Raises:
        ValueError: No family has that name.
        TypeError: Its settings are others.
    """
    values = dict(document)
    name = values.pop("name", None)
    if name not in _FAMILIES:
        raise ValueError(f"orbit must be one of {', '.join(_FAMILIES)}, got {name!r}")
    return _FAMILIES[name](**values)
