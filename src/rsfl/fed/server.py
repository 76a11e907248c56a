"""The server: a frozen description of a federated run, which it carries out on this machine."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import nn

from rsfl import _heap
from rsfl._progress import progress as shown_progress
from rsfl.fed.faults import watched
from rsfl.fed.poison import Attack
from rsfl.fed.result import Result
from rsfl.fed.rounds import Rounds
from rsfl.fed.settings import Settings
from rsfl.fed.training import train

__all__ = ["Server"]


@dataclass(frozen=True)
class Server(Settings):
    """A federated run: who takes part, how updates are combined, and what is done to the model in
    between.

    One round is: broadcast, local training, screening, clip of the updates, aggregation, clip of
    the model, record, noise. Every draw is keyed by (seed, round, client, purpose): runs that
    differ in one client or one attack share all the other draws. Nothing is mutated, neither the
    model nor the clients: ``run`` twice, and get the same twice.

    Args:
        model: Architecture and initial weights.
        clients: Who may take part: `Client`, or anything with ``id``, ``size``, ``trainer`` and
            ``fit``.
        aggregate: `Mean`, `GeometricMedian`, `CoordinateMedian`, `TrimmedMean`, `Krum`, or any
            `Rule`.
        fraction: Share of the clients that takes part in a round, in (0, 1]; at least one does.
        server_step: The new model is the broadcast plus this times the aggregated update. This and
            the next three may be functions of the round, which counts from 1. They are asked for
            all rounds before the first begins, each once: nothing that clients do can reach them.
        clip: Radius rho_t of the ball on which the trained parameters are projected.
        noise_std: Standard deviation sigma_t of the Gaussian noise that is then added to them,
            except in the last round.
        update_clip: Largest l2 norm C of an update; longer ones are shortened.
        reject_norm: l2 norm above which an update is absurd and thrown away.
        reject: A thrown-away or absent update counts as ``"zero"`` with its weight kept, or the
            other weights are ``"renormalise"``-d.
        min_clients: Fewest usable updates that make a round.
        sizes: The registry: samples of each client by id, from which the weights come; what a
            client says of itself at registration if None, and nothing that it says later.
        max_input_norm: Norm of (x, 1) above which a sample is unusable, of (z, 1) where frozen
            layers make z of x: clients count it as zero,
            as they do a label that is no class. So one client that registers a huge input cannot
            spoil the bound of all.
        timeout: Seconds that a client may take in a round. Each then trains in a thread, which
            cannot be killed: a late one goes on in the background, on a copy of its own, and is not
            listened to. What it draws from the global random state it shares with the others:
            dropout, say, does not repeat after a late client.
        stacked: Whether clients are trained together where they can be.
        keep: What else the ledger keeps: ``"samples"`` (of every mini-batch, by their numbers in
            the data set that the client was given), ``"updates"``.
        seed: Seed of every draw.

    Raises:
        TypeError, ValueError: A setting out of its range, or clients that are not told apart by
            their ids.

    References:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data,
        AISTATS 2017. Xie, Chen, Chen and Li, CRFL: certifiably robust federated learning against
        backdoor attacks, ICML 2021, Alg. 1.
    """

    def run(
        self,
        rounds: int,
        *,
        exclude: Collection[int] = (),
        attacks: Mapping[int, Attack] | None = None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Result:
        """Carry the run out, or take it up where a checkpoint left it.

        Args:
            rounds: Number of rounds in all.
            exclude: Clients that never take part. Participants are drawn before they are left out,
                so that the run is coupled with the one that has them: nobody else's draws change.
            attacks: What simulated attackers do, by client id.
            evaluate: Metrics of the model after each round, by name; shown on the progress bar and
                kept in the ledger.
            checkpoint: Directory in which each round is saved, and from which an interrupted run
                resumes, bit for bit. That of another run is refused: settings, data and weights are
                compared, functions by their names only.
            progress: Whether to show a progress bar.

        Raises:
            RoundError: Too few usable updates; it carries the run so far.
            CheckpointError: The directory belongs to another run, or no intact checkpoint is found.
        """
        run = Rounds(
            self,
            rounds,
            exclude=exclude,
            attacks=attacks or {},
            evaluate=evaluate,
            checkpoint=checkpoint,
        )
        told = shown_progress(
            run.total, shown=progress, what="federated", unit="round", initial=run.state.round
        )
        with _heap.kept(), watched(), told as bar:
            while run.left:
                replies = train(
                    self.model,
                    *run.invite(),
                    stacked=self.stacked,
                    apart=run.apart,
                    timeout=self.timeout,
                )
                bar.update(1, **run.conclude(replies).metrics)
        return run.result()
