"""The certificate of a vote among groups of clients: the record, its text and its file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rsfl import _document
from rsfl._text import lined, tabled
from rsfl.assumptions import Assumption
from rsfl.smooth import ABSTAIN

__all__ = ["GroupCertificate", "elected"]

_SHOWN = 10
_FORMAT = 1


@dataclass(frozen=True, repr=False)
class GroupCertificate:
    """What the vote of groups promises about a batch of B inputs.

    Each label stays whatever any ``withstands`` clients send, in every round, under the named
    ``assumptions``. Nothing was sampled: there is no failure probability.

    Attributes:
        label: (B,) int64, the label with the most votes, the smaller where they tie; ``ABSTAIN``
            where no group voted.
        withstands: (B,) int64, how many malicious clients cannot have changed it; exact.
        votes: (B, K) int64, how many groups voted for each label.
        index: (B,) int64, which inputs these are.
        groups: How many groups there are.
        failed: Why groups have no model, by their numbers: they do not vote.
        assumptions: What the promise rests on.
    """

    label: Tensor
    withstands: Tensor
    votes: Tensor
    index: Tensor
    groups: int
    failed: Mapping[int, str]
    assumptions: tuple[Assumption, ...]

    @property
    def abstained(self) -> Tensor:
        """(B,) bool, where no statement is made."""
        return self.label == ABSTAIN

    @property
    def silent(self) -> Tensor:
        """(B,) int64, how many groups did not vote: failed, or with outputs that are not finite."""
        return self.groups - self.votes.sum(dim=1)

    def __len__(self) -> int:
        return len(self.label)

    def _columns(self) -> Iterator[tuple[str, Tensor]]:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                yield one.name, value

    def __getitem__(self, key: int | slice | Tensor | Sequence[int]) -> "GroupCertificate":
        """The certificate of some of the inputs; a single number gives a batch of one."""
        if not isinstance(key, slice):
            key = torch.arange(len(self))[key].reshape(-1)
        changed: dict[str, Any] = {name: column[key] for name, column in self._columns()}
        return replace(self, **changed)

    @classmethod
    def cat(cls, parts: Sequence["GroupCertificate"]) -> "GroupCertificate":
        """One certificate for the inputs of several, by the same groups."""
        if not parts:
            raise ValueError(f"parts must not be empty, got {parts!r}")
        first = parts[0]
        for name in ("groups", "failed", "assumptions"):
            for part in parts[1:]:
                if getattr(part, name) != getattr(first, name):
                    raise ValueError(
                        f"parts must agree in {name}, got {getattr(first, name)!r} and "
                        f"{getattr(part, name)!r}"
                    )
        changed: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name, _ in first._columns()
        }
        return replace(first, **changed)

    def to(self, device: torch.device | str) -> "GroupCertificate":
        """The same certificate on another device."""
        changed: dict[str, Any] = {name: column.to(device) for name, column in self._columns()}
        return replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """NumPy arrays for everything per input, plain values for the rest."""
        arrays: dict[str, Any] = {name: column.cpu().numpy() for name, column in self._columns()}
        return arrays | {
            "abstained": self.abstained.cpu().numpy(),
            "groups": self.groups,
            "failed": dict(self.failed),
            "assumptions": [str(assumption) for assumption in self.assumptions],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a JSON file, whole and with a checksum.

        Args:
            path: The file; one that is there is replaced.
        """
        kept: dict[str, Any] = {name: column.tolist() for name, column in self._columns()}
        kept |= {
            "classes": self.votes.shape[1],
            "groups": self.groups,
            "failed": list(self.failed.items()),
            "assumptions": [asdict(one) for one in self.assumptions],
        }
        _document.write(path, "group certificate", _FORMAT, kept)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "GroupCertificate":
        """Read a certificate back, to the CPU. Labels and counts are derived from its votes anew.

        Args:
            path: A file that :meth:`save` wrote.

        Raises:
            ValueError: The file is not as it was written, or says what its votes do not.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "group certificate", _FORMAT)
        try:
            votes = torch.tensor(found["votes"], dtype=torch.int64).reshape(-1, found["classes"])
            voting = found["groups"] - len(found["failed"])
            if bool((votes < 0).any()) or bool((votes.sum(dim=1) > voting).any()):
                raise ValueError(f"its votes are not those of {voting} groups with a model")
            if len(found["index"]) != len(votes):
                raise ValueError(f"index must be of {len(votes)} inputs")
            label, withstands = elected(votes)
            for name, derived in (("label", label), ("withstands", withstands)):
                if found[name] != derived.tolist():
                    raise ValueError(f"{name} is not what the votes give")
            return cls(
                label=label,
                withstands=withstands,
                votes=votes,
                index=torch.tensor(found["index"], dtype=torch.int64),
                groups=found["groups"],
                failed=dict(found["failed"]),
                assumptions=tuple(Assumption(**one) for one in found["assumptions"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a group certificate: {error}") from error

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Heading, rows and closing line."""
        heading = (
            f"Certificate of {len(self)} input{'s' * (len(self) != 1)} by the vote of "
            f"{self.groups} groups of clients, {int(self.abstained.sum())} abstained, without "
            f"sampling"
        )
        rows = [["index", "label", "withstands", "for it", "next", "silent"]]
        for one in (self[i].to("cpu") for i in range(min(len(self), _SHOWN))):
            ranked = one.votes[0].sort(descending=True).values.tolist()
            label = "abstain" if bool(one.abstained) else str(int(one.label))
            counts = [int(one.withstands), *ranked[:2], int(one.silent)]
            rows.append([str(int(one.index)), label, *map(str, counts)])
        more = f"... and {len(self) - _SHOWN} more. " if len(self) > _SHOWN else ""
        failed = "".join(f"Group {at} has no model: {why}. " for at, why in self.failed.items())
        promise = "Withstands so many clients, whatever they send. "
        assumed = f"Assumes {', '.join(map(str, self.assumptions))}."
        return heading, rows, f"{more}{promise}{failed}{assumed}"

    def __repr__(self) -> str:
        return lined(*self._table(), width=12)

    def _repr_html_(self) -> str:
        return tabled(*self._table())


def elected(votes: Tensor) -> tuple[Tensor, Tensor]:
    r"""Label of each vote among groups, and how many malicious clients cannot change it: what
    :func:`rsfl.bounds.group_votes` says, on the device of the votes.

    .. math:: \min_{B \ne A} \Bigl\lfloor \frac{n_A - n_B - [B < A]}{2} \Bigr\rfloor

    Args:
        votes: (B, K) int64, K >= 2.

    Returns:
        (B,) int64 each; ``ABSTAIN`` and 0 where nobody voted.
    """
    classes = torch.arange(votes.shape[1], device=votes.device)
    # Ties go to the smaller label: argmax promises nothing of ties, distinct numbers have none.
    label = (votes * votes.shape[1] - classes).argmax(dim=1, keepdim=True)
    lead = votes.gather(1, label) - votes - (classes < label).long()
    lead.scatter_(1, label, torch.iinfo(torch.int64).max)
    withstands = lead.amin(dim=1).div(2, rounding_mode="floor")
    return torch.where(votes.sum(dim=1) > 0, label[:, 0], ABSTAIN), withstands
