"""Group voting: the models of disjoint groups of clients, and their vote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._models import evaluating
from rsfl.assumptions import (
    GIVEN_GROUPS,
    ONE_FUNCTION,
    REGISTERED_CLIENTS,
    Assumption,
)
from rsfl.fed.group_certificate import GroupCertificate, elected
from rsfl.fed.ledger import Ledger
from rsfl.fed.ours import of_torch_alone
from rsfl.smooth import ABSTAIN

__all__ = ["GroupVote"]

_NEAR = 1e-4  # outputs closer than this part of the largest are looked at one by one
_ROUNDED = (torch.float32, torch.float64)  # what rounds less than that


@dataclass(frozen=True)
class GroupVote:
    """The models of disjoint groups of clients, and their vote.

    Args:
        models: One model a group; None for a group whose training failed, which does not vote.
        groups: The clients of each group.
        num_classes: Number of labels.
        failed: Why groups have no model, by their numbers.
        apart: What keeps groups apart: whoever trained them says it. Models that come from
            elsewhere are taken on trust.
        ledgers: What the rounds of each group did, by its number, where this process carried them
            out.
    """

    models: tuple[nn.Module | None, ...] = field(repr=False)
    groups: tuple[tuple[int, ...], ...]
    num_classes: int
    failed: Mapping[int, str] = field(default_factory=dict)
    apart: tuple[Assumption, ...] = (GIVEN_GROUPS,)
    ledgers: Mapping[int, Ledger] = field(default_factory=dict, repr=False)

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
        return (*self.apart, REGISTERED_CLIENTS)

    def votes(self, x: Tensor) -> Tensor:
        """Votes (B, K), int64: one a group and input; none where outputs are not finite.

        Linear models that are alike are asked as one wide layer. The votes are those of one model
        after another: where two outputs are as close as rounding, the model is asked alone. For
        other networks one after another is the fastest way on a CPU.
        """
        asked = [model for model in self.models if model is not None]
        votes = torch.zeros((len(x), self.num_classes), dtype=torch.int64, device=x.device)
        if x.device.type == "cpu" and x.ndim == 2 and _layers(asked):
            outputs = _wide(asked, x)
            self._check(outputs[:, :, 0], x)
            ahead, sure = _clear(outputs)
            votes += ahead[:, :, sure].sum(dim=2)
            asked = [model for model, known in zip(asked, sure.tolist(), strict=True) if not known]
        for model in asked:
            label = self._alone(model, x)[:, None]
            votes.scatter_add_(1, label.clamp(min=0), (label != ABSTAIN).long())
        return votes

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
            group depends on its id and the seed alone, or on a roster that was there before, and
            each group is trained as a run of its own, on its own clients, with a seed of its own.

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


def _voted(outputs: Tensor) -> Tensor:
    """The labels of outputs, and no vote where one of them is not finite."""
    return torch.where(torch.isfinite(outputs).all(dim=1), outputs.argmax(dim=1), ABSTAIN)


def _clear(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Which label is ahead (B, K, G), and whether a model's are so by more than rounding, and
    finite, at all inputs (G,)."""
    top = outputs.amax(dim=1, keepdim=True)
    near = _NEAR * torch.maximum(top, -outputs.amin(dim=1, keepdim=True))
    ahead = outputs >= top - near
    alone = ahead.sum(dim=1, dtype=torch.int32) == 1
    # A number that is not finite makes the sum so.
    return ahead, (alone & torch.isfinite(outputs.sum(dim=1))).all(dim=0)


def _layers(models: Sequence[nn.Module]) -> bool:
    """Whether models are linear layers that differ in their weights alone, and round so little that
    `_NEAR` covers it."""
    if not all(type(model) is nn.Linear for model in models) or not of_torch_alone(*models):
        return False
    kinds = {
        tuple((t.shape, t.dtype, t.device) for t in (layer.weight, layer.bias) if t is not None)
        for layer in models
    }
    narrow = any(layer.weight.dtype not in _ROUNDED for layer in models)
    return len(models) > 1 and len(kinds) == 1 and not narrow


def _wide(models: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The outputs (B, K, G) of linear layers that are alike, by one product."""
    layers: Any = models
    with torch.no_grad():
        weight = torch.stack([layer.weight for layer in layers], dim=1).flatten(0, 1)
        plain = layers[0].bias is None
        bias = None if plain else torch.stack([layer.bias for layer in layers], dim=1).flatten()
        return nn.functional.linear(x, weight, bias).view(len(x), -1, len(layers))
