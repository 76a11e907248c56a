"""What a radius is measured in."""

from typing import Protocol

__all__ = ["Measure"]


class Measure(Protocol):
    """What a radius is measured in; every law of noise is one."""

    @property
    def norm(self) -> str:
        """The norm, such as ``l2``."""

    @property
    def space(self) -> str:
        """What it is a distance of."""

    @property
    def unit(self) -> str:
        """The unit."""
