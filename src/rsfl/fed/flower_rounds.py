"""Rounds of a run over a grid: the messages of each, what comes of the answers, and which node is
which client.

Needs the extra ``rsfl[flower]``.
"""

from __future__ import (
    annotations,  # the documentation is built without Flower, whose names then are no types
)

import logging
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import torch

from rsfl._checks import count, number
from rsfl.fed import flower_messages as messages
from rsfl.fed.client import Remote
from rsfl.fed.ledger import Entry
from rsfl.fed.rounds import Rounds
from rsfl.fed.training import Failure

try:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
    from flwr.serverapp import Grid
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "rsfl.fed.flower needs Flower: pip install 'rsfl[flower]' (Python 3.11 or newer)"
    ) from error

__all__ = ["Carried", "Seats"]

_LOG = logging.getLogger("flwr")


class Seats:
    """The connected node of each client, by its id: the first that claimed it, among those still
    there.

    Args:
        nodes: Number of the node of each client, where that is known; else the nodes are asked.
        reply_timeout: Seconds to wait for the answer of a node.
    """

    def __init__(self, nodes: Mapping[int, int] | None, reply_timeout: float) -> None:
        if nodes is not None:
            nodes = {count("nodes", id_): node for id_, node in nodes.items()}
            if len(set(nodes.values())) < len(nodes):
                raise ValueError(
                    f"nodes must be different, one for each client, got {nodes!r}: a node of two "
                    f"clients is one that counts as two"
                )
        self.nodes = nodes
        self.reply_timeout = number("reply_timeout", reply_timeout, 0.0, open_low=True)
        self.claims: dict[int, Remote | None] = {}
        self._contested: set[tuple[int, int]] = set()

    def __call__(self, grid: Grid) -> dict[int, int]:
        """The node of each client that is connected."""
        connected = set(grid.get_node_ids())
        if self.nodes is not None:
            return {id_: node for id_, node in self.nodes.items() if node in connected}
        self.claims |= messages.ask(grid, connected - set(self.claims), self.reply_timeout)
        seats: dict[int, int] = {}
        for node, claim in self.claims.items():
            if claim is not None and node in connected:
                seats.setdefault(claim.id, node)
                self._told(claim.id, node, seats[claim.id])
        return seats

    def _told(self, id_: int, node: int, seated: int) -> None:
        """A word, once, about a node that claims a seat that is taken."""
        if node != seated and (id_, node) not in self._contested:
            self._contested.add((id_, node))
            text = "\t└──> node %d says that it is client %d, as node %d did before: not heard"
            _LOG.warning(text, node, id_, seated)


class Carried:
    """A run whose rounds are carried over a grid.

    Args:
        rounds: What the server does before and after the clients' part.

    Raises:
        ValueError: The model has a type that Flower's records cannot hold.
    """

    def __init__(self, rounds: Rounds) -> None:
        if rounds.layout.dtype == torch.bfloat16:
            raise ValueError(
                "model must be of a type that NumPy has, for Flower to send it, got torch.bfloat16"
            )
        self.rounds = rounds
        self.sent: list[Message | None] = []

    def arrays(self) -> ArrayRecord:
        """What the next round sends."""
        return messages.record(self.rounds.layout.split(self.rounds.state.broadcast))

    def invite(
        self, seats: Mapping[int, int], arrays: ArrayRecord, config: Mapping[str, Any]
    ) -> list[Message]:
        """The messages of the next round, to those participants that have a node.

        Args:
            seats: The node of each client.
            arrays: What the round sends.
            config: What else each is told.
        """
        invited, starts, tasks = self.rounds.invite()
        records, self.sent = {id(self.rounds.state.broadcast): arrays}, []
        for one, start, task in zip(invited, starts, tasks, strict=True):
            if one.id not in seats:
                self.sent.append(None)
                continue
            if id(start) not in records:
                records[id(start)] = messages.record(self.rounds.layout.split(start))
            told = {**config, "round": task.round, "client": task.client, "seed": task.seed}
            if task.lr is not None:
                told["lr"] = task.lr
            if task.max_input_norm < inf:
                told["max_input_norm"] = task.max_input_norm
            content = RecordDict({"arrays": records[id(start)], "config": ConfigRecord(told)})
            if task.center:
                content["center"] = arrays
            self.sent.append(
                Message(content, seats[one.id], MessageType.TRAIN, group_id=str(task.round))
            )
        return [message for message in self.sent if message is not None]

    def conclude(self, replies: Iterable[Message]) -> Entry:
        """What became of the round, from the answers of its participants; those to others are left
        alone."""
        answers = messages.answers(replies)
        heard = [
            Failure("was not connected")
            if sent is None
            else messages.reply(messages.answer(sent, answers))
            for sent in self.sent
        ]
        return self.rounds.conclude(enumerate(heard))
