"""Certification primitives for PyTorch: numbers that are guarantees, with the assumptions they rest
on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rsfl._version import __version__

if TYPE_CHECKING:
    from rsfl import (
        assumptions,
        attacks,
        bounds,
        conformal,
        deform,
        fed,
        noise,
        orbit,
        runs,
        smooth,
        train,
        verify,
    )
else:

    def __getattr__(name: str) -> Any:
        """A subpackage, imported when it is first asked for."""
        if name in __all__:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "__version__",
    "assumptions",
    "attacks",
    "bounds",
    "conformal",
    "deform",
    "fed",
    "noise",
    "orbit",
    "runs",
    "smooth",
    "train",
    "verify",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
