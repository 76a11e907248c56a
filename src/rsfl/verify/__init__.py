"""Certificates of this and of other programs, checked anew: every number is derived a second time,
in ball arithmetic that shares no code with the bounds it checks; votes are cast again."""

from typing import TYPE_CHECKING, Any

from rsfl.verify.findings import Depth, Finding, Report

if TYPE_CHECKING:
    from rsfl.verify.check import Printed, Witness, verify
    from rsfl.verify.rounds import replay

__all__ = ["Depth", "Finding", "Printed", "Report", "Witness", "replay", "verify"]


def __getattr__(name: str) -> Any:
    """What needs python-flint, an extra, is imported when it is first asked for."""
    if name == "replay":
        from rsfl.verify import rounds

        return rounds.replay
    if name in ("Printed", "Witness", "verify"):
        from rsfl.verify import check

        return getattr(check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
