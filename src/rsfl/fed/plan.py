"""What the schedules of a run say, asked once for each round, before the run begins."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from typing import Any

from rsfl.fed.trainer import Schedule, at_round

__all__ = ["Plan", "Schedules"]


@dataclass(frozen=True)
class Plan:
    """The settings of every round, as numbers.

    Nothing that happens in a run can change them any more, and what the ledger says is what was
    used: whoever asks a schedule again may hear something else.

    Args:
        clip: Radius of the ball on which the model is projected, inf where there is none.
        update_clip: Norm to which updates are shortened, inf where they are not.
        server_step: Factor on the aggregated update.
        noise_std: Standard deviation of the noise; 0 where there is none, and in the last round.
        lr: Step sizes by client id, for those that train by `SGD`.
    """

    clip: tuple[float, ...]
    update_clip: tuple[float, ...]
    server_step: tuple[float, ...]
    noise_std: tuple[float, ...]
    lr: Mapping[int, tuple[float, ...]] = field(repr=False)

    def of_server(self) -> dict[str, list[float]]:
        """All but the step sizes, by name."""
        names = ("clip", "update_clip", "server_step", "noise_std")
        return {name: list(getattr(self, name)) for name in names}


@dataclass
class Schedules:
    """What schedules have answered: each is asked once for a round, and never again.

    A schedule that is an object is copied before it is asked: one that counts its calls starts
    afresh for the next server.
    """

    _answers: dict[int, tuple[Any, Any, list[float]]] = field(default_factory=dict)

    def first(self, name: str, schedule: Schedule | None, rounds: int) -> tuple[float, ...]:
        """What a schedule says for the rounds 1 ... ``rounds``; inf where there is none."""
        if schedule is None:
            return (inf,) * rounds
        if not callable(schedule):
            return (at_round(name, schedule, 1),) * rounds
        if id(schedule) not in self._answers:
            self._answers[id(schedule)] = (schedule, _copied(schedule), [])
        _, asked, answers = self._answers[id(schedule)]
        for index in range(len(answers) + 1, rounds + 1):
            answers.append(at_round(name, asked, index))
        return tuple(answers[:rounds])


def _copied(schedule: Any) -> Any:
    try:
        return deepcopy(schedule)
    except Exception:  # what cannot be copied is asked as it is, once all the same
        return schedule
