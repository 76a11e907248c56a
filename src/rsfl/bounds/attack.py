"""What attackers and removals do to the distance between two runs in one round.

Equations are those of "A certificate for one trained model", in the documentation; how rounding is
covered is said in :mod:`rsfl.bounds.frame`.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from rsfl._checks import Float64, Int64
from rsfl.bounds._safe import up
from rsfl.bounds.frame import ROOT2, Frame, largest_sums

__all__ = ["Effect", "Lanes", "Submitted", "carried_out", "injected", "left_out", "scaled"]

_OVERFLOW = 1e300  # logits beyond it might leave float64, and the training fail
Rows = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Lanes:
    """What a round starts from, for L questions at once.

    Attributes:
        norm: (L,) backdoor norms.
        most: (L,) how many unknown attackers.
        distance: (L,) bounds D on the distance of the two runs so far.
        reach: Largest norm that the broadcast which was not observed can have by the clip and noise
            of the round before.
    """

    norm: Float64
    most: Int64
    distance: Float64
    reach: float

    def sent_norm(self, frame: Frame) -> Float64:
        """(L,) bounds on the norm of the weights that were sent, in either run.

        One of the two broadcasts was observed. Of the other this is known: it is within D of it,
        and the clip and the noise bound it.
        """
        observed = frame.record.broadcast_norm
        other = np.minimum(observed + self.distance, self.reach) * up(2)
        return np.maximum(observed, other)


@dataclass(frozen=True, eq=False)
class Effect:
    """What a round does to the distance: D' = kappa D + base + the largest ``added``.

    Attributes:
        kappa: (L,) Lipschitz constants of the comparison run's round.
        base: (L,) what is added for certain.
        added: (P, L) what each participant adds if it is one of the unknown.
        touched: (P,) whose honest update a limit may touch, in the first lane.
        clipped: Whether the bound, in the first lane, is on the distance to a run in which the
            attackers' honest updates may be clipped as well.
        void: (L,) where nobody is left to compare with; None for nowhere.
    """

    kappa: Float64
    base: Float64
    added: Float64
    touched: Bools
    clipped: bool
    void: Bools | None = None


@dataclass(frozen=True, eq=False)
class Submitted:
    """What some participants submit if they attack, compared with the other run, for n rows and L
    lanes.

    Attributes:
        error: (n, L) bounds on || submitted update - comparison update from the same weights ||,
            both before the server's limits.
        own: (n, L) bounds on the norm of the comparison update.
        kappa: (n,) Lipschitz constants of the comparison training.
        stretch: Factor on the comparison update.
        observed: Whether the run with the attack in it is the one that was observed.
    """

    error: Float64
    own: Float64
    kappa: Float64
    stretch: float = 1.0
    observed: bool = False

    def prices(self, frame: Frame, rows: Rows, distance: Float64) -> tuple[Float64, Float64, Bools]:
        """Eqs. (7) and (8), the smaller of two: factors kappa and terms e, each (n, L), and where
        the comparison update may be clipped.

        (7): the comparison update passes untouched. Its map contracts, and the attack is one error
        from the same weights. (8): whatever is averaged in either run is no longer than ``room``,
        and one of the two updates was observed; the weights stay as they are.
        """
        room, update = frame.room, frame.update[rows, None]
        short = np.minimum(self.own, room)
        error = np.minimum(self.error, (room + self.own))
        untouched = self.own <= room
        apart = np.minimum(short, update) + room
        if self.observed:
            apart = np.minimum(apart, update + short)
        # Shortening is non-expansive, so that the error from the same weights is still one.
        drift = scaled(self.stretch, frame.drift(distance)[rows])
        rejectable = self.own > frame.record.reject_norm
        apart = np.where(rejectable, apart, np.minimum(apart, drift + error)) * up(8)
        kappa = np.broadcast_to(self.kappa[:, None], error.shape)
        with np.errstate(invalid="ignore"):  # inf - inf, where neither is known
            contracting = untouched & (kappa * distance + error <= distance + apart)
        return (
            np.where(contracting, kappa, 1.0),
            np.where(contracting, error, apart) * up(16),
            ~untouched,
        )


def scaled(factor: float, values: Float64) -> Float64:
    """A factor times bounds, of which some may be infinite: nothing times anything is nothing."""
    return factor * values if factor else np.zeros_like(values)


def injected(
    frame: Frame,
    rows: Rows,
    lanes: Lanes,
    *,
    moves: bool,
    flips: bool,
    input_norm: float | None,
    shares: "list[tuple[Float64, int]] | Float64",
) -> tuple[Float64, Bools]:
    """Eq. (6), bounds (n, L) on || poisoned update - honest update ||, both unscaled and from the
    same weights; and where the training may leave float64 and fail.

    One step apart: the honest step from both iterates, which contracts, and the change of the
    gradient at the poisoned iterate. With a = p - y, a sample adds || a x - a' x' || <= || a' || ||
    x - x' || + || a - a' || || x ||.

    Zero for those of whose training nothing is known.

    Args:
        frame: The round.
        rows: (n,) who poisons.
        lanes: The questions.
        moves: Whether poisoned inputs are clean ones moved by at most ``lanes.norm``.
        flips: Whether labels may change as well.
        input_norm: Bound on || (x, 1) || of poisoned inputs.
        shares: Poisoned share of each batch, (n, S), or for each row a matrix (samples, S) of which
            the worst so many samples may be poisoned.
    """
    ruly = frame.ruly[rows, None]
    clean, norm = np.where(ruly, frame.input_norm[rows, None], 1.0), lanes.norm
    rate, kept = frame.rate[rows, None], frame.kept[rows]
    poisoned = np.full((len(rows), norm.size), inf if input_norm is None else input_norm)
    if moves:
        poisoned = np.minimum(poisoned, clean + norm)
    travelled = np.hstack([np.zeros((len(rows), 1)), np.cumsum(kept, axis=1)[:, :-1]])
    change = (ROOT2 * (clean + poisoned))[:, None, :]
    pushed = rate * ROOT2 * np.maximum(clean, poisoned)
    weights = kept[:, :, None] * lanes.sent_norm(frame) + travelled[:, :, None] * pushed[:, None, :]
    if moves:
        outputs = np.minimum(ROOT2, weights * norm / 2) + flips * ROOT2
        change = np.minimum(change, ROOT2 * norm + clean[:, :, None] * outputs)
    change = np.broadcast_to(change, weights.shape)
    if isinstance(shares, list):
        total = np.array(
            [
                largest_sums((share * frame.left[row]) @ one, np.full(norm.size, most))
                for (share, most), row, one in zip(shares, rows, change, strict=True)
            ]
        )
    else:
        total = np.einsum("pj,pjl->pl", shares * frame.left[rows], change)
    drawn = np.where(frame.left[rows] > 0, frame.sizes[rows], 0.0).sum(axis=1)
    total = rate * total * (1 + (4 * frame.steps[rows] + drawn + 4)[:, None] * 2.0**-52)
    fails = (weights * poisoned[:, None, :] > _OVERFLOW).any(axis=1)
    return np.where(ruly, total, 0.0), fails


def carried_out(
    frame: Frame, lanes: Lanes, submitted: Submitted | None, named: Rows, unknown: Rows
) -> Effect:
    """Eq. (3), a round in which the named clients attack, and perhaps some of the unknown ones.

    Args:
        frame: The round.
        lanes: The questions.
        submitted: What the attackers submit, for the rows ``named`` and then ``unknown``; None if
            there are none.
        named: Rows of the participants that attack.
        unknown: Rows of those of whom ``lanes.most`` may attack.
    """
    step = frame.record.server_step
    weight = frame.weight[:, None]
    kappa, error, touched = frame.followed(lanes.sent_norm(frame), lanes.distance)
    clipped, added = False, np.zeros(kappa.shape)
    if submitted is not None:
        rows = np.concatenate([named, unknown])
        factor, term, beyond = submitted.prices(frame, rows, lanes.distance)
        clipped = bool(beyond[:, 0].any())
        first, rest = slice(len(named)), slice(len(named), None)
        # For the unknown: what attacking adds to what they are counted with as honest clients.
        more = np.maximum(factor[rest] - kappa[unknown], 0.0) * lanes.distance
        more = (more + np.maximum(term[rest] - error[unknown], 0.0)) * up(4)
        added[unknown] = step * weight[unknown] * more
        kappa, error, touched = kappa.copy(), error.copy(), touched.copy()
        kappa[named], error[named], touched[named] = factor[first], term[first], False
    return Effect(
        kappa=(abs(1 - step * frame.weight.sum()) + step * (weight * kappa).sum(axis=0))
        * up(len(frame.ids)),
        base=step * (weight * error).sum(axis=0) * up(len(frame.ids)),
        added=added,
        touched=touched[:, 0],
        clipped=clipped,
    )


def left_out(frame: Frame, lanes: Lanes, named: Bools) -> Effect:
    """Eqs. (9) and (10), a round from which the named clients, and any ``lanes.most`` others, are
    taken away.

    Removing the share P from a weighted mean moves it by || sum over the removed of p (u - mean) ||
    / (1 - P). The same algebra bounds the mean of the Lipschitz constants over whoever is left.
    """
    step, weight, gap = frame.record.server_step, frame.weight, frame.gap
    kappa, error, touched = frame.followed(lanes.sent_norm(frame), lanes.distance)
    others = ~named
    share = np.broadcast_to(weight[others, None], (int(others.sum()), lanes.most.size))
    # The smallest are added up: what a difference of sums leaves of small weights is rounding.
    smallest = np.concatenate([[0.0], np.cumsum(np.sort(weight[others]))])
    left = smallest[np.maximum(len(smallest) - 1 - lanes.most, 0)] / up(weight.size)
    alone = left <= 0
    left = np.where(alone, 1.0, left)
    kappa, error = kappa[others], error[others]
    mean = np.ones(left.shape)
    if others.any():
        # Rounded up before something is taken from it, so that no difference is too small.
        mean = (share * kappa).sum(axis=0) / share.sum(axis=0) * up(2 * weight.size)
        lost = largest_sums(share * np.maximum(mean - kappa, 0.0), lanes.most) / left
        mean = np.minimum(kappa.max(axis=0), mean + lost) * up(8 * weight.size)
    changes = (gap[:, None] / left) * up(weight.size)
    base = changes[named].sum(axis=0) + (share * error).sum(axis=0) / left
    touched = np.where(named, False, touched[:, 0])
    return Effect(
        kappa=(abs(1 - step) + step * mean) * up(weight.size),
        base=step * base * up(int(named.sum()) + weight.size * bool(touched.any())),
        added=np.where(named[:, None], 0.0, step * changes),
        touched=touched,
        clipped=False,
        void=alone,
    )
