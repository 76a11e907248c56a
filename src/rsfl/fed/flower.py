"""Federated runs on Flower: the rounds of `rsfl.fed.Server`, carried between machines by somebody
else's network.

Needs the extra ``rsfl[flower]``. On the server's side `connected` waits for nodes and `register`
asks them who they are, `Strategy` carries a `Server` out over a grid, and `Groups` a run for each
group of its clients; on the clients' side `client_app` makes a ClientApp of a model and a `Client`.
"""

from __future__ import (
    annotations,  # the documentation is built without Flower, whose names then are no types
)

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from math import inf
from os import PathLike

import torch
from torch import nn

from rsfl._checks import count, number
from rsfl.fed import flower_messages as messages
from rsfl.fed.client import Client, Member, Remote
from rsfl.fed.flower_groups import Groups
from rsfl.fed.flower_rounds import Carried, Seats
from rsfl.fed.layout import Layout
from rsfl.fed.result import Result
from rsfl.fed.rounds import Rounds
from rsfl.fed.server import Server
from rsfl.fed.trainer import SGD, Task, Trainer
from rsfl.fed.training import Failure, fit_alone

try:
    from flwr.app import (
        ArrayRecord,
        ConfigRecord,
        Context,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy as Base
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "rsfl.fed.flower needs Flower: pip install 'rsfl[flower]' (Python 3.11 or newer)"
    ) from error

__all__ = ["Groups", "Strategy", "client_app", "connected", "register"]

_LOG = logging.getLogger("flwr")


def client_app(
    build: Callable[[Context], tuple[nn.Module, Member]], *, threads: int | None = 1
) -> ClientApp:
    """The ClientApp of a client: says who it is when asked, and trains when told to.

    What a trainer draws is keyed by seed, round and client, so a client trains here as it does in
    `Server.run`. An exception in training becomes an answer, and an absence in the ledger.

    Args:
        build: From Flower's context (its ``node_config`` says which partition, its ``run_config``
            the settings) the architecture and the `Client`. It is called for every message: nodes
            keep nothing between rounds.
        threads: Threads of PyTorch in the process of the ClientApp, None to leave them as they are.
            More than one is slow where several nodes share a machine.

    Raises:
        ValueError: ``threads`` is not a count of at least 1.
    """
    if threads is not None:
        count("threads", threads, 1)

    def introduce(message: Message, context: Context) -> Message:
        _, client = build(context)
        norm = client.input_norm if isinstance(client, Client) else inf
        said = ConfigRecord({"id": int(client.id), "size": int(client.size), "input_norm": norm})
        return Message(RecordDict({"client": said}), reply_to=message)

    def fit(message: Message, context: Context) -> Message:
        if threads is not None:
            torch.set_num_threads(threads)
        model, client = build(context)
        layout, device = Layout.of(model), next(model.parameters()).device
        told = message.content.config_records["config"]
        vectors = {}
        for name, record in message.content.array_records.items():
            tensors = messages.tensors(record)
            if problem := layout.problem(tensors):
                raise ValueError(f"the server's model is not the one built here: it {problem}")
            vectors[name] = layout.vector(tensors).to(device)
        center = layout.split(vectors["center"]) if "center" in vectors else {}
        task = Task(
            told["round"],
            client.id,
            told["seed"],
            center,
            lr=told.get("lr"),
            max_input_norm=told.get("max_input_norm", inf),
        )
        reply = fit_alone(client, layout.write(model, vectors["arrays"]).train(), task)
        if isinstance(reply, Failure):
            said = ConfigRecord({"raised": reply.removeprefix("raised ")})
            return Message(RecordDict({"failure": said}), reply_to=message)
        return Message(
            RecordDict({} if reply is None else {"arrays": messages.record(reply)}),
            reply_to=message,
        )

    app = ClientApp()
    app.query()(introduce)
    app.train()(fit)
    return app


def register(
    grid: Grid,
    clients: int,
    trainer: Trainer | None = None,
    *,
    max_samples: int = 1_000_000,
    reply_timeout: float = 60.0,
    timeout: float = 3600.0,
) -> list[Remote]:
    """Ask the nodes who they are, until there are enough different clients.

    Number of samples and bound on the inputs are what each node says of itself, once, before
    training: nobody checks them. Give `Server` its own ``sizes``, or make the `Remote` clients by
    hand, where that is not good enough.

    Args:
        grid: What Flower gives to a ServerApp.
        clients: How many clients to wait for, at least.
        trainer: How all of them are told to train, for the ledger; plain `SGD` if None. Its step
            size is what the clients use: each is told it, round by round.
        max_samples: A node that claims more samples is left out.
        reply_timeout: Seconds to wait for the answer of a node that is connected.
        timeout: Seconds to wait for all of them.

    Returns:
        The clients for `Server`, by id. Where two nodes claim one id, the first that was heard.

    Raises:
        TimeoutError: Fewer clients than that registered in time.
    """
    count("clients", clients, 1)
    claims: dict[int, Remote | None] = {}
    end = time.monotonic() + number("timeout", timeout, 0.0)
    while True:
        claims |= messages.ask(grid, set(grid.get_node_ids()) - set(claims), reply_timeout)
        found: dict[int, Remote] = {}
        for claim in claims.values():
            if claim is not None and claim.size <= max_samples:
                found.setdefault(claim.id, claim)
        if len(found) >= clients:
            return [
                replace(found[id_], trainer=SGD() if trainer is None else trainer)
                for id_ in sorted(found)
            ]
        if time.monotonic() > end:
            raise TimeoutError(
                f"only {len(found)} of {clients} clients registered within {timeout:g} s"
            )
        time.sleep(min(1.0, timeout))


def connected(grid: Grid, nodes: int, *, timeout: float = 3600.0) -> list[int]:
    """The numbers of the nodes, in ascending order, as soon as so many are connected.

    An app that has just started has none yet, and a round without nodes is an error.

    Args:
        grid: What Flower gives to a ServerApp.
        nodes: How many to wait for, at least.
        timeout: Seconds to wait.

    Raises:
        TimeoutError: Fewer nodes than that are connected in time.
    """
    count("nodes", nodes, 1)
    end = time.monotonic() + number("timeout", timeout, 0.0)
    while len(found := sorted(grid.get_node_ids())) < nodes:
        if time.monotonic() > end:
            raise TimeoutError(f"only {len(found)} of {nodes} nodes connected within {timeout:g} s")
        time.sleep(min(1.0, timeout))
    return found


class Strategy(Base):  # type: ignore[misc]
    """Carries a `Server` out on Flower: same rounds, same draws and same ledger as `Server.run`.

    Before and after the clients' part of a round this calls what `Server.run` calls; only the
    messages are Flower's. The seconds that a client may take are ``server.timeout``. A client whose
    node is not connected, does not answer in time, or answers with an error is absent in that
    round; one whose node comes back, even under another number, takes part again. Flower counts
    rounds from 1 each time it starts: its count is not used, the run's own goes on.

    Args:
        server: The settings. Its clients may be `Remote`; their samples are elsewhere.
        rounds: Number of rounds in all.
        exclude: Clients that never take part.
        evaluate: Metrics of the model after each round, by name: on the server, from its own data.
        checkpoint: Directory in which each round is saved, and from which an interrupted run goes
            on.
        nodes: Number of the Flower node of each client, by client id. If None the nodes are asked,
            and trusted: then one may pass itself off as a client that is not connected. Flower's
            node authentication fixes the numbers.
        reply_timeout: Seconds to wait for a node to say who it is.

    Raises:
        rsfl.train.CheckpointError: The directory belongs to another run, or no intact checkpoint is
        found. ValueError: The model has a type that Flower's records cannot hold (``bfloat16``), or
        a setting is out of range.
    """

    def __init__(
        self,
        server: Server,
        rounds: int,
        *,
        exclude: Collection[int] = (),
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        checkpoint: str | PathLike[str] | None = None,
        nodes: Mapping[int, int] | None = None,
        reply_timeout: float = 60.0,
    ):
        self._carried = Carried(
            Rounds(server, rounds, exclude=exclude, evaluate=evaluate, checkpoint=checkpoint)
        )
        self._rounds = self._carried.rounds
        self._seats = Seats(nodes, reply_timeout)

    def run(self, grid: Grid) -> Result:
        """Carry the run out, or take it up where the checkpoint left it.

        Args:
            grid: What Flower gives to a ServerApp.

        Raises:
            RoundError: Too few usable updates; it carries the run so far.
        """
        if self._rounds.left:
            timeout = self._rounds.settings.timeout
            self.start(
                grid,
                self._carried.arrays(),
                self._rounds.left,
                timeout=inf if timeout is None else timeout,
            )
        return self._rounds.result()

    def summary(self) -> None:
        """Log what is carried out."""
        server, state = self._rounds.settings, self._rounds.state
        _LOG.info(
            "\t└──> rsfl: %r of %d clients, seed %d",
            server.aggregate,
            len(server.clients),
            server.seed,
        )
        _LOG.info("\t└──> rounds %d to %d of the run", state.round + 1, self._rounds.total)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of the next round.

        Raises:
            ValueError: ``arrays`` is not the model of the run, which starts by ``run``.
        """
        if not torch.equal(
            self._rounds.layout.vector(messages.tensors(arrays)), self._rounds.state.broadcast.cpu()
        ):
            raise ValueError(
                "arrays must be the model of the run: start it by run(grid), not by start(...)"
            )
        return self._carried.invite(self._seats(grid), arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model that is sent next, and what became of the round."""
        entry = self._carried.conclude(replies)
        fates = [one.outcome for one in entry.round.participants]
        told = {
            "round": entry.round.index,
            **{fate: fates.count(fate) for fate in dict.fromkeys(fates)},
        }
        return self._carried.arrays(), MetricRecord(
            {**told, **{name: float(v) for name, v in entry.metrics.items()}}
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """None: ``evaluate`` looks at the model without its noise, on the server."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing: no client was asked."""
        return None
