"""Laws of noise as options: ``--law`` and the parameters of each."""

import argparse
import dataclasses
import re
from typing import Any

from rsfl._laws import known
from rsfl.noise import Law

__all__ = ["add_law", "dashed", "given_law", "given_parameters"]


def dashed(name: str) -> str:
    """``RoundedGaussian`` and ``half_width`` as ``rounded-gaussian`` and ``half-width``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower().replace("_", "-")


def _laws() -> dict[str, type[Law]]:
    """The laws of this library that perturb inputs, by the names of the option."""
    return {
        dashed(law.__name__): law
        for law in known()
        if law.__module__.startswith("rsfl.") and law.space != "parameters"
    }


def _law_parameters() -> dict[str, tuple[type, list[str]]]:
    """The parameters of all laws: their type, and the laws that have them."""
    found: dict[str, tuple[type, list[str]]] = {}
    for name, law in _laws().items():
        for field in dataclasses.fields(law):  # type: ignore[arg-type]
            found.setdefault(field.name, (field.type, []))[1].append(name)  # type: ignore[arg-type]
    return found


def add_law(parser: argparse.ArgumentParser, whose: str) -> None:
    """The options that describe a law: its name, and the parameters of all of them."""
    parser.add_argument(
        "--law", default="gaussian", choices=_laws(), help=f"law of {whose} (default: gaussian)"
    )
    for name, (kind, names) in _law_parameters().items():
        parser.add_argument(f"--{dashed(name)}", type=kind, help=f"parameter of {', '.join(names)}")


def given_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters of a law that the options name."""
    return {
        name: getattr(args, name) for name in _law_parameters() if getattr(args, name) is not None
    }


def given_law(args: argparse.Namespace) -> Law:
    """The law that the options describe."""
    law = _laws()[args.law]
    fields = {field.name: field for field in dataclasses.fields(law)}  # type: ignore[arg-type]
    given = given_parameters(args)
    for name in given:
        if name not in fields:
            raise ValueError(f"--law {args.law} has no --{dashed(name)}, got {given[name]!r}")
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING:
            raise ValueError(f"--law {args.law} needs --{dashed(name)}")
    return law(**given)
