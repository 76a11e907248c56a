"""The laws of noise as this room knows them: measure, parameters and assumptions of each."""

from collections.abc import Mapping
from math import inf
from typing import Any

__all__ = ["LAWS", "unknown_law"]

_INPUT, _WARP = ("raw-input", "ideal-noise"), ("original-input", "ideal-noise")


LAWS: dict[str, tuple[dict[str, str], frozenset[str], tuple[str, ...]]] = {
    # measure, parameters and assumptions of every law
    "Gaussian": (
        {"norm": "l2", "space": "input", "unit": "input units"},
        frozenset({"sigma"}),
        _INPUT,
    ),
    "Uniform": (
        {"norm": "l1", "space": "input", "unit": "input units"},
        frozenset({"half_width"}),
        _INPUT,
    ),
    "Laplace": (
        {"norm": "l1", "space": "input", "unit": "input units"},
        frozenset({"scale"}),
        _INPUT,
    ),
    "PixelGaussian": (
        {"norm": "l2", "space": "input", "unit": "pixels"},
        frozenset({"sigma", "low", "high"}),
        _INPUT,
    ),
    "PixelUniform": (
        {"norm": "l1", "space": "input", "unit": "pixels"},
        frozenset({"half_width", "low", "high"}),
        _INPUT,
    ),
    "PixelLaplace": (
        {"norm": "l1", "space": "input", "unit": "pixels"},
        frozenset({"scale", "low", "high"}),
        _INPUT,
    ),
    "RoundedGaussian": (
        {"norm": "l2", "space": "input", "unit": "input units"},
        frozenset({"sigma", "levels"}),
        ("raw-input", "grid-input", "rounded-table"),
    ),
    "ParameterGaussian": (
        {"norm": "l2", "space": "parameters", "unit": "parameter units"},
        frozenset({"sigma", "partial"}),
        ("shared-models", "independent-draws", "ideal-noise"),
    ),
    "Rotation": (
        {"norm": "l1", "space": "parametric", "unit": "radians"},
        frozenset({"half_width", "padding"}),
        _WARP,
    ),
    "Scaling": (
        {"norm": "l1", "space": "parametric", "unit": "scale"},
        frozenset({"half_width", "padding"}),
        _WARP,
    ),
    "Translation": (
        {"norm": "l2", "space": "parametric", "unit": "half images"},
        frozenset({"sigma", "padding"}),
        _WARP,
    ),
    "Affine": (
        {"norm": "l2", "space": "parametric", "unit": "affine coefficients"},
        frozenset({"sigma", "padding"}),
        _WARP,
    ),
    "DCT": (
        {"norm": "l2", "space": "parametric", "unit": "DCT coefficients"},
        frozenset({"sigma", "bases", "padding"}),
        _WARP,
    ),
    "PixelFlow": (
        {"norm": "l2", "space": "parametric", "unit": "half images"},
        frozenset({"sigma", "padding"}),
        _WARP,
    ),
}


def unknown_law(law: Mapping[str, Any]) -> str:
    """What is wrong with a law, "" for nothing."""
    if law.get("name") not in LAWS:
        return f"law {law.get('name')!r} is not one of this library"
    _, parameters, _ = LAWS[law["name"]]
    if set(law) - {"name"} != parameters:
        return f"{law['name']} has the parameters {sorted(parameters)}, not {sorted(law)}"
    for name in parameters & {"sigma", "half_width", "scale"}:
        if type(law[name]) not in (int, float) or not 0 < law[name] < inf:
            return f"{name} = {law[name]!r} is no scale of noise"
    if "levels" in law and (type(law["levels"]) is not int or not 2 <= law["levels"] <= 2**23):
        return f"levels = {law['levels']!r} is no number of grid points that float32 holds"
    return ""
