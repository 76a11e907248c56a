"""How far poisoned clients can have moved one trained model: threats, and their deviation through a ledger."""

from dataclasses import KW_ONLY, dataclass
from math import inf

from rsfl._checks import choice, count, counts, number, numbers
from rsfl.bounds.ledger import Participant, Round, _set

__all__ = ["LEVELS", "Participant", "Round", "Threat"]

LEVELS = ("feature", "sample", "client", "forensic", "removal")


@dataclass(frozen=True)
class Threat:
    """Who attacks, when, and with what power, in one line.

    The levels, from the weakest attacker to the strongest, and a question about the past:

    - ``"feature"``: moves some training inputs by at most ``norm``, with or without flipping their labels.
    - ``"sample"``: replaces some training samples by any others with || (x, 1) || <= ``input_norm``.
    - ``"client"``: sends any update whatever, under the server's update clip.
    - ``"forensic"``: sent what the ledger says it sent; compared with the run in which it had been honest.
    - ``"removal"``: compared with the run in which the clients had never taken part.

    Arguments:
        level: One of the above.
        clients: The attackers. Or else
        at_most: any unknown set of at most so many clients.
        rounds: Indices of the attacked rounds; None for all of them.
        norm: Largest l2 norm of the change of one input (feature level).
        flips: Whether labels may change as well (feature level).
        samples: Which of its samples each attacker poisons: their indices per client, or any so many of them.
        per_batch: Most poisoned draws in one mini-batch.
        share: Largest poisoned share of any mini-batch, the short ones included.
            With none of these three, every sample of the attackers may be poisoned.
        scale: Factor on the attackers' updates (data levels); a pair (low, high) when only its range is known.
        input_norm: Bound on || (x, 1) || of poisoned inputs; at the feature level it defaults to the ledger's bound
            plus ``norm``.
        comparator: ``"clean"`` for the plain honest run; ``"scaled"`` for CRFL's, in which the attackers train on
            clean data but scale their updates all the same.

    Example:
        >>> Threat("feature", clients=[3], rounds=[10], norm=0.1, per_batch=5, scale=10.0).level
        'feature'
        >>> Threat("removal", at_most=2).at_most
        2
    """

    level: str
    _: KW_ONLY
    clients: tuple[int, ...] | None = None
    at_most: int | None = None
    rounds: tuple[int, ...] | None = None
    norm: float | None = None
    flips: bool = True
    samples: int | dict[int, tuple[int, ...]] | None = None
    per_batch: int | None = None
    share: float | None = None
    scale: float | tuple[float, float] = 1.0
    input_norm: float | None = None
    comparator: str = "clean"
