"""Group voting: the models of disjoint groups of clients, and their vote."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rsfl._models import evaluating
from rsfl.assumptions import (
    GIVEN_GROUPS,
    ONE_FUNCTION,
    REGISTERED_CLIENTS,
    Assumption,
)
from rsfl.fed.group_certificate import GroupCertificate, elected
from rsfl.fed.ledger import Ledger
from rsfl.fed.ours import of_torch_alone, settings_of
from rsfl.smooth import ABSTAIN

__all__ = ["GroupVote"]

_FEW = 64  # inputs up to which a stack of models is faster than one after another
_NEAR = 1e-4  # outputs closer than this part of the largest are looked at one by one
_WIDE = (torch.float32, torch.float64)  # what rounds less than that


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

        Models that are alike and made of torch's own layers look at a few inputs as one stack. Its
        votes are those of one model after another: where two outputs are as close as rounding, the
        model is asked alone. For many inputs one model after another is faster.
        """
        labels = torch.stack(list(self._labels(x)))
        voted = torch.nn.functional.one_hot(labels.clamp(min=0), self.num_classes)
        return (voted * (labels != ABSTAIN)[..., None]).sum(dim=0)

    def _labels(self, x: Tensor) -> Iterator[Tensor]:
        """What each group votes for, (B,)."""
        models = [model for model in self.models if model is not None]
        if x.device.type != "cpu" or len(x) > _FEW or not _alike(models):
            yield from (self._alone(model, x) for model in models)
            return
        outputs = _stacked(models, x)
        self._check(outputs[0], x)
        top = outputs.topk(2, dim=2).values
        near = _NEAR * outputs.abs().amax(dim=2)
        sure = torch.isfinite(outputs).all(dim=2) & (top[..., 0] - top[..., 1] > near)
        for model, own, certain in zip(models, outputs, sure.all(dim=1).tolist(), strict=True):
            yield own.argmax(dim=1) if certain else self._alone(model, x)

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


def _alike(models: Sequence[nn.Module]) -> bool:
    """Whether models differ in their weights alone, compute nothing of their own, and round so
    little that `_NEAR` covers it."""
    if len(models) < 2 or not of_torch_alone(*models):
        return False
    if not any(p.requires_grad for p in models[0].parameters()):
        return False
    described = _described(models[0])
    wide = all(dtype in _WIDE for _, _, dtype, _ in described[1] if dtype.is_floating_point)
    return wide and all(_described(model) == described for model in models[1:])


def _described(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """All of a model but its numbers: layers with their settings, and tensors."""
    layers = [(name, type(one), settings_of(one)) for name, one in model.named_modules()]
    tensors = [(name, t.shape, t.dtype, t.device) for name, t in model.state_dict().items()]
    return layers, tensors


def _stacked(models: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The outputs (G, B, K) of models that are alike, in evaluation mode."""
    states = [model.state_dict() for model in models]
    weights = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    skeleton = deepcopy(models[0]).eval().to("meta")

    def outputs(own: dict[str, Any]) -> Any:
        return functional_call(skeleton, own, (x.clone(),))  # which a layer may write into

    with torch.no_grad():
        result: Tensor = vmap(outputs)(weights)
    return result
