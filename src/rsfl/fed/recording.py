"""What a round may be called in the record that certificates read: only what is recognised as ours
has a name there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from torch import nn

from rsfl._checks import Float64
from rsfl._heads import linear_head
from rsfl.bounds import Participant, participants_of
from rsfl.fed.client import Client, Member
from rsfl.fed.layout import Layout
from rsfl.fed.ours import is_ours, named_loss, named_optimizer, plain_process
from rsfl.fed.survey import Survey
from rsfl.fed.trainer import SGD, Task

__all__ = ["Names", "Outcome", "model_name", "recorded"]


def model_name(model: nn.Module) -> tuple[str, str]:
    """``linear`` or ``linear head`` for the models that certificates know, the class of any other;
    and the hash of the frozen layers below a head."""
    head, name = linear_head(model), type(model).__name__
    if head is not None and plain_process():
        if head.frozen:
            return "linear head", head.fingerprint
        if all(parameter.requires_grad for parameter in model.parameters()):
            return "linear", ""
    return (f"custom {name}" if name.startswith("linear") else name), ""


@dataclass(frozen=True)
class Names:
    """What model, losses and optimizers are called at one moment.

    A round has two such moments, before and after its training: what was something else at either
    is ``custom``.
    """

    model: str
    features: str
    of_clients: tuple[tuple[str, str], ...]

    @classmethod
    def now(cls, model: nn.Module, participants: Iterable[Member]) -> "Names":
        """The names as they are."""
        losses: dict[int, str] = {}
        named = []
        for one in participants:
            if id(one.trainer) not in losses:
                losses[id(one.trainer)] = named_loss(one.trainer)
            optimizer = named_optimizer(one)
            loss = losses[id(one.trainer)] if optimizer == "sgd" else "custom"
            named.append((loss, optimizer))
        return cls(*model_name(model), tuple(named))

    def both(self, later: "Names") -> "Names":
        """The names that held at both moments."""
        same = (self.model, self.features) == (later.model, later.features)
        model, features = (self.model, self.features) if same else (f"custom {self.model}", "")
        pairs = zip(self.of_clients, later.of_clients, strict=True)
        return Names(
            model,
            features,
            tuple(one if one == two else ("custom", "custom") for one, two in pairs),
        )


@dataclass(frozen=True)
class Outcome:
    """What became of the participants' updates, in their order.

    Args:
        weight: Shares of the average.
        update_norm: Norms of the updates as they were averaged.
        gap: weight * || update - mean ||.
        verdicts: Outcome of each, and its reason.
    """

    weight: Float64
    update_norm: Float64
    gap: Float64
    verdicts: Sequence[tuple[str, str]]


def recorded(
    participants: Sequence[Member],
    tasks: Sequence[Task],
    names: Names,
    surveys: Mapping[int, Survey],
    outcome: Outcome,
    layout: Layout,
    *,
    samples: bool,
) -> tuple[Participant, ...]:
    """The record of each participant of a round.

    Args:
        participants: Who was asked.
        tasks: What each was told.
        names: What their training is called.
        surveys: What is known of their samples, by id.
        outcome: What became of their updates.
        layout: What is exchanged.
        samples: Whether the samples that were drawn are recorded.
    """
    told = [
        _told(one, task, surveys.get(one.id, Survey()), layout, samples)
        for one, task in zip(participants, tasks, strict=True)
    ]
    steps = [one["batch_sizes"] for one in told]
    drawn = [one["samples"] for one in told]
    return participants_of(
        {
            "client": [one.id for one in participants],
            "weight": outcome.weight,
            **{name: [one[name] for one in told] for name in ("lr", "decay", "input_norm")},
            "momentum": [one["momentum"] for one in told],
            "steps": [len(sizes) for sizes in steps],
            "batch_sizes": np.concatenate([np.array(sizes) for sizes in steps]),
            "sampled": np.array([one is not None for one in drawn]),
            "samples": np.concatenate(
                [np.zeros(0, int), *(one for one in drawn if one is not None)]
            ),
            "loss": [loss for loss, _ in names.of_clients],
            "optimizer": [optimizer for _, optimizer in names.of_clients],
            "update_norm": outcome.update_norm,
            "gap": outcome.gap,
            "outcome": [fate for fate, _ in outcome.verdicts],
            "reason": [reason for _, reason in outcome.verdicts],
        }
    )


def _told(one: Member, task: Task, known: Survey, layout: Layout, samples: bool) -> dict[str, Any]:
    """How a client was told to train; a trainer that is not `SGD` is one opaque step."""
    trainer = one.trainer
    if not isinstance(trainer, SGD) or not is_ours(trainer, SGD):
        return {
            "lr": 1.0,
            "decay": (0.0, 0.0),
            "input_norm": inf,
            "momentum": 0.0,
            "batch_sizes": (one.size,),
            "samples": None,
        }
    decays, drawn = trainer.decays(layout), None
    if samples:
        drawn = np.concatenate(trainer.batches(one.size, task))
        drawn = one.where[drawn] if type(one) is Client else drawn
    return {
        "lr": task.rate(trainer.lr),
        "decay": (min(decays), max(decays)),
        "input_norm": known.input_norm,
        "momentum": trainer.momentum,
        "batch_sizes": trainer.batch_sizes(one.size),
        "samples": drawn,
    }
