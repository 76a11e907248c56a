"""Groups of clients over a grid: one training run for each, all of them a round at a time.

Needs the extra ``rsfl[flower]``.
"""

from __future__ import (
    annotations,  # the documentation is built without Flower, whose names then are no types
)

import logging
from collections.abc import Mapping, Sequence
from os import PathLike

from rsfl._checks import count
from rsfl.assumptions import APART_NODES, CLAIMED_CLIENTS
from rsfl.fed.ensemble import GroupVote
from rsfl.fed.faults import told
from rsfl.fed.flower_rounds import Carried, Seats
from rsfl.fed.groups import decided, divided, grouped, kept_apart, voting
from rsfl.fed.ours import RULES, is_ours, named_rule
from rsfl.fed.processes import Group
from rsfl.fed.server import Server

try:
    from flwr.app import ConfigRecord
    from flwr.serverapp import Grid
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "rsfl.fed.flower needs Flower: pip install 'rsfl[flower]' (Python 3.11 or newer)"
    ) from error

__all__ = ["Groups"]

_LOG = logging.getLogger("flwr")


class Groups:
    """Trains one model a group of clients over Flower, and gives their vote: what
    `rsfl.fed.train_groups` does in one process.

    Each client is in one group by its registered id, and each group is a run of its own: its own
    model, draws, ledger and checkpoint here, its own nodes there. In each round all groups are
    asked at once, each client for its own group's model. Who is not connected, late or fails is
    absent in its group; a group that cannot go on ends by itself, and does not vote.

    Args:
        server: The settings, the initial model and the clients, which may be `Remote`. The seconds
            that a client may take in a round are ``server.timeout``.
        groups: Number of groups.
        rounds: Rounds of each run.
        num_classes: Number of labels.
        roster: A registered, public fact of each client by id, by which groups are balanced, as in
            `rsfl.fed.train_groups`.
        checkpoint: Directory in which each group's rounds are saved, and from which an interrupted
            training goes on.
        nodes: Number of the Flower node of each client, by client id. Else nodes are asked, and
            trusted (`claimed-clients`): one that lies reaches the group of the client that it says
            it is, and its own by its absence.
        reply_timeout: Seconds to wait for a node to say who it is.

    Raises:
        TypeError: The rule is not one of rsfl's: it runs here for all groups, and could keep
            something from group to group.
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        server: Server,
        groups: int,
        rounds: int,
        *,
        num_classes: int,
        roster: Mapping[int, int] | None = None,
        checkpoint: str | PathLike[str] | None = None,
        nodes: Mapping[int, int] | None = None,
        reply_timeout: float = 60.0,
    ):
        if not is_ours(server.aggregate, *RULES):
            raise TypeError(
                f"server must aggregate by a rule of rsfl's, got {named_rule(server.aggregate)!r}: "
                f"it could keep something from group to group"
            )
        rounds, self._labels = count("rounds", rounds, 1), count("num_classes", num_classes, 2)
        self._server, self._divided = server, divided(server, groups, roster)
        settings = decided(server, rounds)
        self._parts = grouped(settings, self._divided, {}, checkpoint)
        self._runs = {one.number: Carried(one.rounds(rounds)) for one in self._parts}
        said = (CLAIMED_CLIENTS,) if nodes is None else ()
        self._apart = (*kept_apart(server, groups, roster), APART_NODES, *said)
        self._seats = Seats(nodes, reply_timeout)

    def run(self, grid: Grid) -> GroupVote:
        """Train all groups, or take them up where the checkpoints left them.

        Args:
            grid: What Flower gives to a ServerApp.

        Raises:
            RuntimeError: No more than half of the groups have a model; the message names the
                others.
        """
        while active := [one for one in self._parts if self._goes_on(one)]:
            self._round(grid, active)
        for one in self._parts:
            if not one.failure:
                one.done(self._runs[one.number].rounds)
        return voting(self._server.model, self._divided, self._parts, self._labels, self._apart)

    def _goes_on(self, group: Group) -> bool:
        return bool(self._runs[group.number].rounds.left) and not group.failure

    def _round(self, grid: Grid, active: Sequence[Group]) -> None:
        """The next round of some groups: asked together, concluded each by itself."""
        seats, messages = self._seats(grid), []
        for one in active:
            run = self._runs[one.number]
            try:
                messages += run.invite(seats, run.arrays(), ConfigRecord())
            except Exception as error:
                self._end(one, error)
        timeout = self._server.timeout
        replies = list(grid.send_and_receive(messages, timeout=timeout)) if messages else []
        for one in active:
            if one.failure:
                continue
            try:
                entry = self._runs[one.number].conclude(replies)
            except Exception as error:
                self._end(one, error)
                continue
            fates = [participant.outcome for participant in entry.round.participants]
            words = ", ".join(f"{fates.count(fate)} {fate}" for fate in dict.fromkeys(fates))
            _LOG.info("\t└──> group %d, round %d: %s", one.number, entry.round.index, words)

    def _end(self, group: Group, error: Exception) -> None:
        """A group that cannot go on; the others do."""
        group.failure = told(error)
        _LOG.warning("\t└──> group %d ends: %s", group.number, group.failure)
