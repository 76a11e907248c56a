"""Group voting: the models of disjoint groups of clients, their vote, and a certificate that counts
clients."""

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rsfl import _document
from rsfl._models import evaluating
from rsfl.assumptions import (
    DISJOINT_GROUPS,
    GIVEN_GROUPS,
    ONE_FUNCTION,
    REGISTERED_CLIENTS,
    SEPARATE_GROUPS,
    Assumption,
)
from rsfl.fed.layout import Layout
from rsfl.fed.ours import of_torch_alone
from rsfl.smooth import ABSTAIN

__all__ = ["GroupCertificate", "GroupVote", "elected"]

_SHOWN = 10
_FORMAT = 1
_STACK = 16  # models that look at a batch at once
_NEAR = 1e-4  # outputs closer than this part of the largest are looked at one by one


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
            if int(votes.sum(dim=1).max()) > found["groups"]:
                raise ValueError(f"more votes than the {found['groups']} groups")
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
        heading, rows, closing = self._table()
        lines = ("".join(f"{cell:>12}" for cell in row) for row in rows)
        return "\n".join([heading, *lines, closing])

    def _repr_html_(self) -> str:
        heading, rows, closing = self._table()
        head = "".join(f"<th>{cell}</th>" for cell in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:]
        )
        return (
            f"<p>{html.escape(heading)}</p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table><p>{html.escape(closing)}</p>"
        )


@dataclass(frozen=True)
class GroupVote:
    """The models of disjoint groups of clients, and their vote.

    Args:
        models: One model a group; None for a group whose training failed, which does not vote.
        groups: The clients of each group.
        num_classes: Number of labels.
        failed: Why groups have no model, by their numbers.
        independent: Whether :func:`rsfl.fed.train_groups` made them, which keeps groups apart;
            models that come from elsewhere are taken on trust.
    """

    models: tuple[nn.Module | None, ...] = field(repr=False)
    groups: tuple[tuple[int, ...], ...]
    num_classes: int
    failed: Mapping[int, str] = field(default_factory=dict)
    independent: bool = False

    def __post_init__(self) -> None:
        if len(self.models) != len(self.groups):
            raise ValueError(
                f"models must be one a group, got {len(self.models)} for {len(self.groups)} groups"
            )
        members = sorted(client for group in self.groups for client in group)
        if len(set(members)) < len(members):
            raise ValueError(f"groups must be disjoint, got {self.groups!r}")
        there = sum(model is not None for model in self.models)
        if 2 * there <= len(self.models):
            raise ValueError(
                f"models must be there for more than half of the groups, got {there} of "
                f"{len(self.models)}"
            )

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What every statement about clients rests on."""
        apart = (DISJOINT_GROUPS, SEPARATE_GROUPS) if self.independent else (GIVEN_GROUPS,)
        return (*apart, REGISTERED_CLIENTS)

    def votes(self, x: Tensor) -> Tensor:
        """Votes (B, K), int64: one a group and input; none where outputs are not finite.

        Models that are alike and made of torch's own layers look at the inputs as one stack. Its
        votes are those of one model after another: where two outputs are as close as rounding, the
        model is asked alone.
        """
        total = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        for labels in self._labels(x):
            voted = labels != ABSTAIN
            total[voted] += torch.nn.functional.one_hot(labels[voted], self.num_classes)
        return total

    def _labels(self, x: Tensor) -> Iterator[Tensor]:
        """What each group votes for, (B,)."""
        models = [model for model in self.models if model is not None]
        if not _alike(models):
            yield from (self._alone(model, x) for model in models)
            return
        for start in range(0, len(models), _STACK):
            some = models[start : start + _STACK]
            outputs = _stacked(some, x)
            for model, own in zip(some, outputs, strict=True):
                self._check(own, x)
                top = own.topk(2, dim=1).values
                near = _NEAR * own.abs().amax(dim=1)
                sure = torch.isfinite(own).all(dim=1) & (top[:, 0] - top[:, 1] > near)
                yield _voted(own) if bool(sure.all()) else self._alone(model, x)

    def _alone(self, model: nn.Module, x: Tensor) -> Tensor:
        """What one model votes for."""
        with evaluating(model):
            outputs = model(x.clone())  # which a member may write into
        self._check(outputs, x)
        return _voted(outputs)

    def _check(self, outputs: Tensor, x: Tensor) -> None:
        if outputs.shape != (len(x), self.num_classes):
            raise ValueError(
                f"models must give outputs {(len(x), self.num_classes)}, got {tuple(outputs.shape)}"
            )

    def certify(self, x: Tensor, index: Tensor | Sequence[int] | None = None) -> GroupCertificate:
        """The label of each input, and how many malicious clients could not have changed it.

        Assumes:
            What `rsfl.bounds.voting.group_votes` does. `train_groups` provides it: each client's
            group depends on its id and the seed alone, and each group is trained as a run of its
            own, on its own clients, with a seed of its own.

        Args:
            x: Inputs (B, ...).
            index: (B,) which inputs these are; 0 ... B - 1 by default.
        """
        votes = self.votes(x)
        label, withstands = elected(votes)
        where = torch.arange(len(x)) if index is None else torch.as_tensor(index)
        if where.shape != (len(x),):
            raise ValueError(f"index must be one number an input, got shape {tuple(where.shape)}")
        return GroupCertificate(
            label=label,
            withstands=withstands,
            votes=votes,
            index=where.to(torch.int64).to(x.device),
            groups=len(self.groups),
            failed=self.failed,
            assumptions=(*self.assumptions, ONE_FUNCTION),
        )


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


def _voted(outputs: Tensor) -> Tensor:
    """The labels of outputs, and no vote where one of them is not finite."""
    return torch.where(torch.isfinite(outputs).all(dim=1), outputs.argmax(dim=1), ABSTAIN)


def _alike(models: Sequence[nn.Module]) -> bool:
    """Whether models differ in their weights alone, and compute nothing of their own."""
    if len(models) < 2 or not all(map(of_torch_alone, models)):
        return False
    first = models[0]
    shapes = Layout.of(first).shapes if any(p.requires_grad for p in first.parameters()) else None
    return shapes is not None and all(
        str(model) == str(first)
        and [(name, t.shape, t.dtype, t.device) for name, t in model.state_dict().items()]
        == [(name, t.shape, t.dtype, t.device) for name, t in first.state_dict().items()]
        for model in models[1:]
    )


def _stacked(models: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The outputs (G, B, K) of models that are alike, in evaluation mode."""
    states = [model.state_dict() for model in models]
    weights = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    skeleton = deepcopy(models[0]).eval().to("meta")

    def outputs(own: dict[str, Any]) -> Any:
        return functional_call(skeleton, own, (x,))

    with torch.no_grad():
        result: Tensor = vmap(outputs)(weights)
    return result
