"""Group voting: the models of disjoint groups of clients, and their vote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._checks import count, stored
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

__all__ = ["GroupVote"]

_ROUNDED = (torch.float32, torch.float64)  # sums of these are no coarser than their own digits
_COUNTED = 1 << 20  # outputs whose votes are counted at a time


@dataclass(frozen=True)
class GroupVote:
    """The models of disjoint groups of clients, and their vote.

    Args:
        models: One model a group; None for a group whose training failed, which does not vote.
        groups: The clients of each group, by their ids: whole numbers.
        num_classes: Number of labels, at least 2.
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
        groups = tuple(tuple(count("groups", one) for one in group) for group in self.groups)
        models, labels = tuple(self.models), count("num_classes", self.num_classes, 2)
        stored(self, models=models, groups=groups, num_classes=labels)
        if len(models) != len(groups):
            raise ValueError(
                f"models must be one a group, got {len(models)} for {len(groups)} groups"
            )
        members = [client for group in groups for client in group]
        if len(set(members)) < len(members):
            raise ValueError(f"groups must be disjoint, got {groups!r}")
        named = [model for model in models if model is not None]
        if wrong := [type(one).__name__ for one in named if not isinstance(one, nn.Module)]:
            raise TypeError(f"models must be torch.nn.Module or None, got {wrong[0]}")
        if len(set(map(id, named))) < len(named):
            raise ValueError(
                "models must be different objects, got one in several groups: its clients would "
                "have several votes; copy.deepcopy makes another of it"
            )
        empty = [at for at, model in enumerate(models) if model is None]
        if strange := set(self.failed) - set(empty):
            raise ValueError(
                f"failed must name groups without a model, got {sorted(strange, key=repr)!r}"
            )
        there = len(named)
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
        after another: where two outputs are no farther apart than rounding can move them, the model
        is asked alone. For other networks one after another is the fastest way on a CPU.
        """
        asked = [model for model in self.models if model is not None]
        votes = torch.zeros((len(x), self.num_classes), dtype=torch.int64, device=x.device)
        if x.device.type == "cpu" and x.ndim == 2 and _layers(asked):
            outputs, error = _wide(asked, x)
            self._check(outputs[:, :, 0], x)
            ahead, sure = _clear(outputs, error)
            votes += (ahead & sure).sum(dim=2)
            asked = [model for model, known in zip(asked, sure.tolist(), strict=True) if not known]
        together = max(1, _COUNTED // max(1, votes.numel()))
        for first in range(0, len(asked), together):
            answers = [self._alone(model, x) for model in asked[first : first + together]]
            for kind in {one.dtype for one in answers}:  # in another dtype they may tie or overflow
                votes += _counted(torch.stack([one for one in answers if one.dtype == kind]))
        return votes

    def _alone(self, model: nn.Module, x: Tensor) -> Tensor:
        """The outputs of one model."""
        with evaluating(model):
            outputs: Tensor = model(x.clone())  # which a member may write into
        self._check(outputs, x)
        return outputs.detach().clone()  # into which the next model may write

    def _check(self, outputs: Tensor, x: Tensor) -> None:
        if outputs.shape != (len(x), self.num_classes):
            raise ValueError(
                f"models must give outputs {(len(x), self.num_classes)}, got {tuple(outputs.shape)}"
            )
        if outputs.dtype == torch.bool or outputs.is_complex():
            raise TypeError(f"models must give real numbers as outputs, got {outputs.dtype}")

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


def _counted(outputs: Tensor) -> Tensor:
    """The votes (B, K) of outputs (M, B, K); none where one of a model's is not finite."""
    finite = (outputs - outputs).sum(dim=2) == 0  # isfinite takes four times as long
    votes = torch.zeros(outputs.shape[1:], dtype=torch.int64, device=outputs.device)
    return votes.scatter_add_(1, outputs.argmax(dim=2).mT, finite.mT.long())


def _clear(outputs: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Which label is ahead (B, K, G), and whether a model's are so by more than rounding, and
    finite, at all inputs (G,).

    Args:
        outputs: (B, K, G).
        error: (B, G), how far each can be from the exact one, however it is computed.
    """
    top = outputs.amax(dim=1, keepdim=True)
    # Here and there, of the first and of the second; and the sums of this line are rounded, too.
    ahead = outputs >= top - 4.01 * error[:, None]
    alone = ahead.sum(dim=1, dtype=torch.int32) == 1
    # A number that is not finite makes the sum so.
    return ahead, (alone & torch.isfinite(outputs.sum(dim=1))).all(dim=0)


def _layers(models: Sequence[nn.Module]) -> bool:
    """Whether models are linear layers that differ in their weights alone, and round as `_wide`
    counts on."""
    if not all(type(model) is nn.Linear for model in models) or not of_torch_alone(*models):
        return False
    kinds = {
        tuple((t.shape, t.dtype, t.device) for t in (layer.weight, layer.bias) if t is not None)
        for layer in models
    }
    narrow = any(layer.weight.dtype not in _ROUNDED for layer in models)
    return len(models) > 1 and len(kinds) == 1 and not narrow and _exact()


def _exact() -> bool:
    """Whether products of float32 are rounded as such."""
    if torch.is_autocast_enabled("cpu"):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # a newer switch than this one was set
        return False


def _wide(models: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The outputs (B, K, G) of linear layers that are alike, by one product, and by how much each
    may be rounded (B, G).

    In whatever order d + 1 products are summed, the error is at most
    :math:`\gamma_{d+1} (|w| \cdot |x| + |b|) \le \gamma_{d+1} (\|w\| \|x\| + |b|)`, and what
    numbers too small for the dtype lose, in the products as in the squares of the norms.
    """
    layers: Any = models
    with torch.no_grad():
        weight = torch.stack([layer.weight for layer in layers], dim=1)
        plain = layers[0].bias is None
        bias = None if plain else torch.stack([layer.bias for layer in layers], dim=1)
        outputs = nn.functional.linear(
            x, weight.flatten(0, 1), None if bias is None else bias.flatten()
        )
        many, digits = x.shape[1] + 1, torch.finfo(x.dtype)
        lost = (many * digits.tiny) ** 0.5
        sizes = (x.norm(dim=1)[:, None] + lost) * (weight.norm(dim=2).amax(dim=0) + lost)
        if bias is not None:
            sizes += bias.abs().amax(dim=0)
        gamma = 1.01 * many * digits.eps / 2  # and what the norms are rounded by
        shape = len(x), weight.shape[0], len(layers)
        return outputs.view(shape), gamma * sizes + many * digits.tiny
