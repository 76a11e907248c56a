"""What a verification found: one line for each thing that was looked at, and one answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Depth", "Finding", "Report"]

Depth: TypeAlias = Literal["arithmetic", "evidence", "identity"]

_WORD = {True: "holds", False: "FALSE", None: "open"}


@dataclass(frozen=True)
class Finding:
    """One statement about a file, and whether it holds.

    Attributes:
        subject: The file, and the place in it.
        depth: How deep one has to look: at the ``arithmetic`` of what the file says, at the
            ``evidence`` (the model votes again), or at the ``identity`` of model and data.
        holds: True, False, or None where it could not be decided from what was given.
        text: The statement, with the numbers.
    """

    subject: str
    depth: Depth
    holds: bool | None
    text: str

    def __str__(self) -> str:
        return f"{_WORD[self.holds]:<6} {self.depth:<11} {self.subject}: {self.text}"


@dataclass(frozen=True)
class Report:
    """All findings of a verification.

    Attributes:
        findings: What was looked at, in order.
    """

    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether something was looked at, and nothing was found false."""
        return bool(self.findings) and not self.false

    @property
    def false(self) -> tuple[Finding, ...]:
        """What does not hold."""
        return tuple(one for one in self.findings if one.holds is False)

    @property
    def status(self) -> int:
        """The exit status of the command line: 0, or 1 where something is false."""
        return 0 if self.holds else 1

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        lines = [*map(str, self.findings)]
        lines.append(f"{len(self.findings)} findings, {len(self.false)} false")
        return "\n".join(lines)

    @classmethod
    def of(cls, reports: "Sequence[Report]") -> "Report":
        """Several reports as one."""
        return cls(tuple(finding for report in reports for finding in report.findings))
