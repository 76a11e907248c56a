"""A clip for the updates of a run that has not begun, from a pilot on data that are not its own."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rsfl._checks import count, number
from rsfl.bounds import local_factors
from rsfl.fed.client import Client, Remote, clients
from rsfl.fed.server import Server
from rsfl.fed.trainer import SGD

__all__ = ["ClipSchedule", "pilot"]


class _Pace(NamedTuple):
    """What the pilot showed of one round: the server's step, the longest update, its slope and a
    client's kappa."""

    step: float
    longest: float
    slope: float
    kappa: float


@dataclass(frozen=True)
class ClipSchedule:
    """Update clips for each round, to be given to a server as ``update_clip``.

    The theorem asks nothing of them but that they were fixed before the run, and did not look at
    what its clients send. How well they fit decides how much is certified: a client whose updates
    they shorten costs as much as ``bounds.Deviation.touched`` says.

    Args:
        clips: The clip of each round.
        longest: The longest update of the pilot in each round.
        assumes: What the proposal takes the real clients to be like.
    """

    clips: tuple[float, ...]
    longest: tuple[float, ...]
    assumes: str

    def __call__(self, index: int) -> float:
        """The clip of a round, counted from 1."""
        if not 1 <= index <= len(self.clips):
            raise ValueError(
                f"index must be a round of the pilot, 1 to {len(self.clips)}, got {index!r}"
            )
        return self.clips[index - 1]


def pilot(
    server: Server,
    x: Tensor,
    y: Tensor,
    rounds: int,
    attackers: int = 1,
    slack: float = 1.05,
) -> ClipSchedule:
    r"""Propose the update clips of a run, from a pilot with its settings on public data.

    .. math:: C_t = \text{slack} \cdot \max_i \|u_{i,t}\| + L\, D_{t-1}, \qquad
        D_t = (1 - s + s (\kappa + m p)) D_{t-1} + s\, m\, p\, (C_t + \max_i \|u_{i,t}\|)

    with the pilot's updates u, p the largest weight of a client and m attackers: as long as honest
    updates of the real run are no longer than ``slack`` times the pilot's, the clip touches none of
    them in either run, and no clip that is shorter can say so.

    Args:
        server: The run's settings. Of its clients only how many they are, the numbers of their
            samples and their trainer are read.
        x: Public inputs, such as the real clients have; not theirs.
        y: Their labels.
        rounds: Number of rounds of the run.
        attackers: How many clients are to be withstood, in every round.
        slack: How much longer than the pilot's updates the real ones may be, at least 1.

    Returns:
        The schedule, with what it assumes in words.

    Raises:
        ValueError: An argument is out of its range, or the clients do not train by one `SGD`.
        ConditionError: The pilot broke a condition of the certificates: so would the run.

    Example:
        >>> import torch
        >>> from rsfl import fed
        >>> x, y = torch.rand(60, 3, dtype=torch.float64), torch.arange(60) % 3
        >>> trainer = fed.SGD(lr=0.5, batch_size=None)
        >>> members = fed.clients(x, y, fed.partition.equal(60, 6), trainer)
        >>> server = fed.Server(torch.nn.Linear(3, 3).double(), members)
        >>> clip = pilot(server, x.flip(0), y.flip(0), rounds=2)
        >>> len(clip.clips), clip.clips[0] > clip.longest[0]
        (2, True)
    """
    rounds = count("rounds", rounds, 1)
    attackers = count("attackers", attackers, 1)
    slack = number("slack", slack, 1.0)
    sizes = np.array(list(server.registry.values()))
    trainers = {id(one.trainer): one.trainer for one in server.clients}
    trainer = next(iter(trainers.values()))
    own = all(isinstance(one, (Client, Remote)) for one in server.clients)
    if not own or not isinstance(trainer, SGD) or any(one != trainer for one in trainers.values()):
        raise ValueError(
            f"server must have clients that train by one fed.SGD, got {len(trainers)} trainers"
        )
    size = int(np.median(sizes))
    parts = [np.arange(first, first + size) for first in range(0, len(x) - size + 1, size)]
    parts = parts[: len(sizes)] or [np.arange(len(x))]
    members = clients(x, y, parts, trainer)
    run = replace(server, clients=members, update_clip=None, sizes=None, keep=()).run(rounds)
    share = min(1.0, attackers * float(sizes.max()) / float(sizes.sum()))
    paces = []
    for record in run.ledger.rounds:
        kappa, slope = local_factors(record)
        longest = max(one.update_norm for one in record.participants)
        paces.append(
            _Pace(record.server_step, longest, float(slope.max()), min(1.0, float(kappa.max())))
        )
    distance, found = 0.0, []
    for pace in paces:
        found.append(slack * pace.longest + pace.slope * distance)
        growth = 1 - pace.step + pace.step * ((1 - share) * pace.kappa + share)
        distance = growth * distance + pace.step * share * (found[-1] + pace.longest)
    return ClipSchedule(
        clips=tuple(float(one) for one in found),
        longest=tuple(float(pace.longest) for pace in paces),
        assumes=f"honest updates are at most {slack:g} times as long as those of {len(parts)} "
        f"clients of {len(parts[0])} public samples, and the other run is led astray by at most "
        f"{attackers} of {len(sizes)} clients; an update that is longer is shortened, and its "
        f"client counts as one more attacker as far as the clip allows",
    )
