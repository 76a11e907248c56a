"""What a round's participants do to the distance between two runs as long as they keep to the
protocol: the arrays that every threat starts from.

Equations are those of "A certificate for one trained model", in the documentation.

How rounding is covered, here and in the rooms above: ``up(n)`` makes a result at least as large as
it would be in exact arithmetic, if at most n + 4 floating-point operations lie on the longest way
from recorded numbers to it, all on non-negative numbers. An addition, a product, a root counts one,
a sum over n entries n - 1 in any order, a power of n its factor's own errors n times. Where numbers
are subtracted, ``ULP`` is added instead, eight units of rounding of 1: the terms are at most 1. So
whoever changes a formula counts its operations anew; the count may be too large, never too small.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from rsfl._checks import Float64, Int64
from rsfl.bounds._safe import ULP, up
from rsfl.bounds.records import Round

__all__ = ["ROOT2", "Frame", "largest_sums", "local_factors"]

ROOT2 = sqrt(2.0) * (1 + 2**-52)  # just above: the bound on ||p - y||, ||p - p'|| and ||y - y'||

Bools = NDArray[np.bool_]


def largest_sums(values: Float64, most: Int64) -> Float64:
    """Sums of the ``most[l]`` largest entries of each column l, (lanes,)."""
    if not len(values) or not most.any():
        return np.zeros(np.broadcast_shapes(values.shape[1:], most.shape))
    if (most == 1).all():
        return np.asarray(values.max(axis=0) + np.zeros(most.shape))
    sums = np.cumsum(-np.sort(-values, axis=0), axis=0)
    sums = np.vstack([np.zeros((1, values.shape[1])), sums])
    sums = np.broadcast_to(sums, (len(sums), np.broadcast_shapes(values.shape[1:], most.shape)[0]))
    return np.asarray(sums[np.minimum(most, len(values)), np.arange(sums.shape[1])])


@dataclass(frozen=True, eq=False)
class Frame:
    """The arrays over the P participants of a round that the recursion needs, computed once.

    Attributes:
        record: The round.
        ids: (P,) who they are.
        weight: (P,) shares p_i of the average.
        update: (P,) norms of the updates as they were averaged.
        gap: (P,) p_i || u_i - mean ||.
        input_norm: (P,) bounds B on || (x, 1) ||, inf where none is known.
        rate: (P,) step sizes eta.
        decay: (P,) L2 decay lambda, the largest over the parameters.
        steps: (P,) numbers tau of local steps.
        ruly: (P,) whether training is plain and convex enough for the theorem. Of the others only
            this is used, that the server shortens what they send.
        absent, rejected, clipped: (P,) what became of their updates.
    """

    record: Round
    ids: Int64
    weight: Float64
    update: Float64
    gap: Float64
    input_norm: Float64
    rate: Float64
    decay: Float64
    steps: Int64
    ruly: Bools
    absent: Bools
    rejected: Bools
    clipped: Bools

    @classmethod
    def of(cls, record: Round, unruly: Collection[int] = ()) -> "Frame":
        """The arrays of a round in which the training of ``unruly`` clients is not relied on."""
        everyone = record.participants
        outcome = np.array([one.outcome for one in everyone])
        ids = np.array([one.client for one in everyone], dtype=np.int64)
        numbers = np.array(
            [
                (o.weight, o.update_norm, o.gap, o.input_norm, o.lr, o.decay[1], len(o.batch_sizes))
                for o in everyone
            ]
        )
        weight, update, gap, input_norm, rate, decay, steps = np.ascontiguousarray(numbers.T)
        return cls(
            record=record,
            ids=ids,
            weight=weight,
            update=update,
            gap=gap,
            input_norm=input_norm,
            rate=rate,
            decay=decay,
            steps=steps.astype(np.int64),
            ruly=~np.isin(ids, np.fromiter(unruly, np.int64, len(unruly))),
            absent=outcome == "absent",
            rejected=outcome == "rejected",
            clipped=outcome == "clipped",
        )

    # --- Local training -------------------------------------------------------------------------

    @cached_property
    def smoothness(self) -> Float64:
        """beta = B^2 / 2, the largest curvature of the loss: the softmax's Jacobian has norm at
        most 1/2."""
        return self.input_norm * self.input_norm / 2

    @cached_property
    def factor(self) -> Float64:
        """Eq. (1), the Lipschitz constant k of one local step, rounded up; inf where none is
        known."""
        k = np.maximum(
            abs(1 - self.rate * self.decay), abs(1 - self.rate * (self.decay + self.smoothness))
        )
        return np.where(self.ruly, k + ULP, inf)

    @cached_property
    def _at(self) -> Int64:
        """(1, S) numbers of the local steps, as many as the longest training has."""
        return np.arange(int(self.steps.max()))[None]

    @cached_property
    def _done(self) -> Bools:
        """(P, S) which steps each takes."""
        return np.asarray(self._at < self.steps[:, None])

    @cached_property
    def kept(self) -> Float64:
        """(P, S) what decay leaves of the weights after 0, 1, ... local steps, rounded up; 0 after
        the last."""
        factor = abs(1 - self.rate * self.decay) + ULP * (self.decay > 0)
        powers = np.where(self._done, factor[:, None], 0.0) ** self._at * up(8)
        return np.where(self._done, powers, 0.0)

    @cached_property
    def left(self) -> Float64:
        """(P, S) what the later steps leave of a change in step 0, 1, ...; 0 after the last."""
        later = np.maximum(self.steps[:, None] - 1 - self._at, 0)
        factor = np.where(self.ruly, self.factor, 0.0)
        return np.where(self._done, factor[:, None] ** later, 0.0)

    @cached_property
    def kappa(self) -> Float64:
        """Eq. (1), the Lipschitz constant of a whole training, and of the identity where no update
        was used."""
        kappa = np.where(self.ruly, self.factor, 1.0) ** self.steps * up(4)
        unused = self.absent | self.rejected | ~self.ruly
        return np.where(unused, np.maximum(kappa, 1.0), kappa)

    @cached_property
    def slope(self) -> Float64:
        """Eq. (2), the Lipschitz constant L of an honest update; inf where none is known."""
        curvature = np.where(self.ruly, self.decay + self.smoothness, 0.0)
        by_gradients = self.rate * curvature * self.left.sum(axis=1)
        by_ends = 1 + np.where(self.ruly, self.factor, 1.0) ** self.steps
        slope = np.minimum(by_gradients, by_ends) * (1 + (self.steps + 12) * 2.0**-52)
        return np.where(self.ruly, slope, inf)

    @cached_property
    def _pull_and_push(self) -> tuple[Float64, Float64]:
        pull = abs(1 - (1 - self.rate * self.decay) ** self.steps)
        pull = pull + self.steps * ULP * (self.decay > 0)
        size = np.where(self.ruly, self.input_norm, 0.0)
        push = self.rate * ROOT2 * size * self.kept.sum(axis=1) * (1 + (self.steps + 4) * 2.0**-52)
        return np.where(self.ruly, pull, 0.0), np.where(self.ruly, push, inf)

    def honest(self, sent_norm: Float64) -> Float64:
        """Eq. (5), bounds h (P, lanes) on the honest updates from weights of norm at most
        ``sent_norm`` (lanes,)."""
        pull, push = self._pull_and_push
        return np.asarray((pull[:, None] * sent_norm + push[:, None]) * up(4))

    # --- The server -----------------------------------------------------------------------------

    @property
    def room(self) -> float:
        """Norm up to which the server averages an update as it comes; none that counts is
        longer."""
        return min(self.record.update_clip, self.record.reject_norm)

    def drift(self, distance: Float64) -> Float64:
        """(P, lanes) how far two honest updates can be apart whose weights are; inf where nothing
        is known."""
        slope = np.where(self.ruly, self.slope, 0.0)[:, None]
        return np.where(self.ruly[:, None], slope * distance * up(4), inf)

    def followed(self, sent_norm: Float64, distance: Float64) -> tuple[Float64, Float64, Bools]:
        """Eq. (4), what those who keep to the protocol do to the distance: factors kappa, terms e,
        and whose updates a limit may touch, each (P, lanes).

        Each takes || w - w' || to at most kappa || w - w' || + e, before weights and server step.
        An update that passes the server's limits in both runs contracts: (kappa_i, 0). One that a
        limit may touch in either run leaves the weights as they are and moves by what two such
        updates can be apart. So it is with the updates of clients that are not ``ruly``, absent
        ones included: whether they send anything may depend on the weights.
        """
        shape = (len(self.ids), max(sent_norm.size, distance.size))
        kappa, error = np.broadcast_to(self.kappa[:, None], shape), np.zeros(shape)
        if self.room == inf and self.ruly.all() and not self.rejected.any():
            return kappa, error, np.zeros(shape, bool)
        update, honest = self.update[:, None], self.honest(sent_norm)
        drift = self.drift(distance)
        short = np.minimum(honest, self.room)
        # Of an update that was shortened the length before is not in the ledger.
        longest = np.where(
            self.clipped[:, None], honest, np.minimum(honest, (update + drift) * up(4))
        )
        gone = self.rejected[:, None] | (longest > self.record.reject_norm)
        touched = (longest > self.room) | (self.clipped | self.rejected | ~self.ruly)[:, None]
        # Who follows no protocol that is known may be absent in one run and send in the other.
        touched = touched & ~(self.absent & self.ruly)[:, None]
        # Shortening is non-expansive, and no update that counts is longer than the room.
        apart = np.minimum(drift, update + short)
        # A rejected update is zero in one run, perhaps, and what it was in the other.
        apart = np.where(gone, np.maximum(apart, update), apart)
        apart = np.where(self.rejected[:, None], short, apart)
        return np.where(touched, 1.0, kappa), np.where(touched, apart * up(8), error), touched

    # --- Batches --------------------------------------------------------------------------------

    @cached_property
    def sizes(self) -> Float64:
        """(P, S) true sizes of the batches, 1 after the last."""
        table: dict[tuple[int, ...], Float64] = {}
        for one in self.record.participants:
            if one.batch_sizes not in table:
                row = np.ones(self._at.size)
                row[: len(one.batch_sizes)] = one.batch_sizes
                table[one.batch_sizes] = row
        return np.array([table[one.batch_sizes] for one in self.record.participants])

    @cached_property
    def drawn(self) -> tuple[tuple[Int64, Float64] | None, ...]:
        """For each participant the samples that it drew, and their shares of each batch (samples,
        S); None where they were not kept."""
        found: list[tuple[Int64, Float64] | None] = []
        for one, sizes in zip(self.record.participants, self.sizes, strict=True):
            if one.samples is None:
                found.append(None)
                continue
            names, row = np.unique(one.samples, return_inverse=True)
            step = np.repeat(np.arange(len(one.batch_sizes)), one.batch_sizes)
            shares = np.zeros((names.size, sizes.size))
            np.add.at(shares, (row, step), 1 / sizes[step])
            found.append((names, shares))
        return tuple(found)


def local_factors(record: Round) -> tuple[Float64, Float64]:
    """Eqs. (1) and (2), Lipschitz constants of each participant's local training and of its update.

    Args:
        record: A round whose participants all train as the certificates' conditions have it.

    Returns:
        kappa and L, each (participants,), never below the exact values.
    """
    frame = Frame.of(record)
    return frame.kappa, frame.slope
