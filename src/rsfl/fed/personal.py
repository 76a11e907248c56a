"""Models that belong to one client each: trained alone, or fine-tuned from a global model; and how
clients compare."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rsfl import _heap
from rsfl._checks import Float64, count
from rsfl._models import evaluating
from rsfl.fed.client import Client
from rsfl.fed.layout import Layout
from rsfl.fed.survey import survey
from rsfl.fed.trainer import Task, Trainer
from rsfl.fed.training import Failure, train

__all__ = ["PerClient", "accuracy", "per_client", "personalise"]


def personalise(
    model: nn.Module,
    clients: Sequence[Client],
    rounds: int = 1,
    *,
    trainer: Trainer | None = None,
    after: int = 0,
    seed: int = 0,
    stacked: bool = True,
) -> dict[int, nn.Module]:
    """Let every client train a model of its own, without communication, starting from ``model``.

    From the last global model of a federated run this is personalisation; from an untrained one,
    local training.

    Args:
        model: Where all start; it is not changed.
        clients: Who trains.
        rounds: How many times a client goes through what its trainer does in a round.
        trainer: How they train here, possibly with another augmentation than before; their own
            trainer if None.
        after: Rounds done before: draws and schedules go on from there.
        seed: Seed of every draw.
        stacked: Whether clients are trained together where they can be.

    Returns:
        The models in evaluation mode, by client id.

    Raises:
        RuntimeError: A client's training failed; the message names it.

    References:
        Alfarra et al., Certified robustness in federated learning, 2022, section 3.3.
    """
    rounds, after, layout = count("rounds", rounds), count("after", after), Layout.of(model)
    members = [
        client if trainer is None else replace(client, trainer=trainer) for client in clients
    ]
    vectors = [layout.read(model)] * len(members)
    with _heap.kept():
        for index in range(after + 1, after + rounds + 1):
            tasks = [Task(index, client.id, count("seed", seed)) for client in members]
            apart = [id_ for id_, one in survey(members, model).items() if one.unusable]
            replies = train(model, members, vectors, tasks, stacked=stacked, apart=apart)
            trained = list(vectors)
            for i, reply in replies:
                if problem := reply if type(reply) is Failure else layout.problem(reply):
                    raise RuntimeError(f"client {members[i].id} {problem} in round {index}")
                trained[i] = layout.vector(reply)
            vectors = trained
            for client, vector in zip(members, vectors, strict=True):
                if not bool(vector.isfinite().all()):
                    raise RuntimeError(
                        f"client {client.id} trained a model that is not finite in round {index}"
                    )
    return {
        client.id: layout.write(deepcopy(model), vector).eval()
        for client, vector in zip(members, vectors, strict=True)
    }


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the samples that a model gets right, in evaluation mode."""
    with evaluating(model):
        return float((model(x).argmax(dim=1) == y).double().mean())


@dataclass(frozen=True)
class PerClient:
    """A metric for each client: one number, or a curve.

    Args:
        values: The metric by client id; every value of the same shape.
    """

    values: Mapping[int, Float64]

    @property
    def mean(self) -> Float64:
        """The mean over the clients, each counted alike."""
        return np.asarray(np.mean(list(self.values.values()), axis=0))

    @property
    def min(self) -> Float64:
        """The worst client, at each point of a curve."""
        return np.asarray(np.min(list(self.values.values()), axis=0))

    @property
    def max(self) -> Float64:
        """The best client, at each point of a curve."""
        return np.asarray(np.max(list(self.values.values()), axis=0))

    def __str__(self) -> str:
        if np.ndim(self.mean):
            return f"curves of {np.size(self.mean)} points over {len(self.values)} clients"
        spread = f"mean {self.mean:.3f}, min {self.min:.3f}, max {self.max:.3f}"
        return f"{spread} over {len(self.values)} clients"


def per_client(
    models: nn.Module | Mapping[int, nn.Module],
    samples: Mapping[int, tuple[Tensor, Tensor]],
    metric: Callable[[nn.Module, Tensor, Tensor], ArrayLike] = accuracy,
) -> PerClient:
    """A metric of each client's model on each client's own samples.

    Args:
        models: One model for all, or one a client, by id.
        samples: (x, y) of each client, by id.
        metric: ``metric(model, x, y)``: a number, or a curve as an array.
    """
    by_id = dict.fromkeys(samples, models) if isinstance(models, nn.Module) else models
    if missing := sorted(set(samples) - set(by_id)):
        raise ValueError(f"models must have one for every client, got none for {missing!r}")
    return PerClient(
        {id_: np.asarray(metric(by_id[id_], x, y), float) for id_, (x, y) in samples.items()}
    )
