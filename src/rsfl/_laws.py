"""Laws of noise by name: how a file says which law it is about, and how the law is found again."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from rsfl.noise import Law

__all__ = ["from_document", "known", "to_document"]


_CERTIFIED = "input", "parametric", "parameters"
"""Spaces of the laws that certificates are read from."""


def known() -> list[type[Law]]:
    """Every concrete law that has been imported and that certificates are read from."""
    found: set[type[Law]] = set()  # one that inherits twice is met twice
    pending = Law.__subclasses__()
    while pending:
        law = pending.pop()
        pending += law.__subclasses__()
        if (
            law.space in _CERTIFIED
            and not inspect.isabstract(law)
            and dataclasses.is_dataclass(law)
        ):
            found.add(law)
    return sorted(found, key=_name)


def _name(law: type) -> str:
    """The bare name of a law of this library; where else it is defined belongs to its name."""
    return (
        law.__name__
        if law.__module__.partition(".")[0] == "rsfl"
        else f"{law.__module__}:{law.__qualname__}"
    )


def to_document(law: object) -> dict[str, Any]:
    """The name of a law and its parameters, as JSON takes them.

    Raises:
        TypeError: It is no law of noise that has a name and parameters: no dataclass; or none that
            certificates are read from.
    """
    if not (isinstance(law, Law) and dataclasses.is_dataclass(law)):
        raise TypeError(f"law must be a noise.Law and a dataclass, got {law!r}")
    if law.space not in _CERTIFIED:
        raise TypeError(f"law must be one that certificates are read from, got {law!r}")
    return {"name": _name(type(law)), **dataclasses.asdict(law)}


def from_document(document: Mapping[str, Any]) -> Law:
    """The law that :func:`to_document` described.

    Raises:
        ValueError: No law of that name has been imported, or several have.
        TypeError: Its parameters are others.
    """
    values = dict(document)
    name = values.pop("name")
    found = [law for law in known() if _name(law) == name]
    if not found:
        raise ValueError(
            f"law {name!r} is not one of {', '.join(map(_name, known()))}; import the module "
            f"that defines it"
        )
    if len(found) > 1:
        raise ValueError(f"law {name!r} is defined {len(found)} times")
    return found[0](**values)
