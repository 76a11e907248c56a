"""Certificates of this and of other programs, checked anew: every number is derived a second time,
in ball arithmetic that shares no code with the bounds it checks; votes are cast again."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rsfl.verify.findings import Depth, Finding, Report

if TYPE_CHECKING:
    from rsfl.verify.check import Printed, verify
    from rsfl.verify.rounds import replay
    from rsfl.verify.witness import Witness

__all__ = ["Depth", "Finding", "Printed", "Report", "Witness", "replay", "verify"]

# What needs python-flint, an extra, or much of the library is imported when it is asked for.
_ELSEWHERE = {"Printed": "check", "Witness": "witness", "replay": "rounds", "verify": "check"}


def __getattr__(name: str) -> Any:
    """A name from its module, imported when it is first asked for."""
    if name in _ELSEWHERE:
        return getattr(import_module(f"{__name__}.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
