"""Judges: federated classifiers that say, at one input, which threats against their training the
label withstands. Smoothed, they are certified against clients and a changed input at once."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from typing_extensions import override

from rsfl import bounds
from rsfl._checks import count
from rsfl.assumptions import FROZEN_FEATURES
from rsfl.fed.ensemble import GroupVote
from rsfl.fed.group_certificate import elected
from rsfl.fed.provenance import Rounds, checked, of_the_model, of_the_training
from rsfl.smooth import Judge, margins

__all__ = ["GroupJudge", "LinearJudge"]

_NOBODY = "nobody"


class GroupJudge(Judge):
    """The vote of models that disjoint groups of clients trained: rung m is any m of the clients,
    sending whatever they like in every round.

    Args:
        vote: The models of the groups.
        most: Highest rung; by default the most that any vote of so many groups withstands.
        features: What the models are given of an input; it was fixed before the training. A module
            is given inputs in its own dtype, another function in that of the models.

    Example:
        >>> models = tuple(nn.Linear(2, 2) for _ in range(5))
        >>> groups = tuple((client,) for client in range(5))
        >>> GroupJudge(GroupVote(models, groups, 2)).ladder
        ('nobody', 'any 1 client', 'any 2 clients')
    """

    def __init__(
        self,
        vote: GroupVote,
        most: int | None = None,
        *,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(vote, GroupVote):
            raise TypeError(f"vote must be a fed.GroupVote, got {type(vote).__name__}")
        limit = (len(vote.groups)) // 2
        top = limit if most is None else min(count("most", most), limit)
        rungs = (f"any {m} client{'s' * (m != 1)}" for m in range(1, top + 1))
        named = vote.assumptions + (FROZEN_FEATURES,) * (features is not None)
        super().__init__(vote.num_classes, (_NOBODY, *rungs), named)
        self.features, self.vote = features, vote  # the first of them says what inputs are given as
        # As a part of this module the models are moved, fingerprinted and set to evaluation mode.
        self.models = nn.ModuleList(model for model in vote.models if model is not None)

    @override
    def judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return elected(self.vote.votes(_seen(self.features, x)))


class LinearJudge(Judge):
    """A linear model that clients trained: a rung is withstood where the margin at the input is
    above the distance by which its threat can have moved the parameters.

    Args:
        model: The final model of the run: one affine map of its inputs, in float64.
        ledger: What the run did.
        threats: The threats, which the rungs above 0 are in the order of how far each can have
            moved the model.
        features: What the linear model is given of an input; it was fixed before the training. A
            module is given inputs in its own dtype, another function in float64.

    Raises:
        ConditionError: The run breaks a condition of a threat's bound.
        ValueError: The ledger is that of another run; there is no threat.
    """

    def __init__(
        self,
        model: nn.Module,
        ledger: Rounds,
        threats: Sequence[bounds.Threat],
        *,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not threats:
            raise ValueError(f"threats must be at least one, got {threats!r}")
        moved = [bounds.deviation(checked(ledger, threat), threat) for threat in threats]
        moved.sort(key=lambda found: found.value)
        rounds = checked(ledger, threats[0])
        named = (*of_the_model(rounds, model), *of_the_training(ledger, moved))
        named += (FROZEN_FEATURES,) * (features is not None)
        last = next(p for p in reversed(list(model.parameters())))
        ladder = (_NOBODY, *(str(found.threat) for found in moved))
        super().__init__(last.shape[0], ladder, named)
        self.features, self.linear = features, deepcopy(model)
        values = [found.value for found in moved]
        thresholds = torch.tensor(values, dtype=torch.float64, device=last.device)
        self.register_buffer("thresholds", thresholds)

    thresholds: Tensor

    @override
    def judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        certificate = margins(self.linear, _seen(self.features, x).double())
        # Strictly: a margin is an open ball.
        rung = (certificate.radius[:, None] > self.thresholds).sum(dim=1)
        return certificate.label, rung


def _seen(features: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    """What a model is given of inputs."""
    return x if features is None else features(x)
