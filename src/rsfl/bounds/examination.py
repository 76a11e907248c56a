"""The ledger held against the conditions of a bound, before a threat is bounded."""

from collections.abc import Sequence
from math import inf

from rsfl.bounds._safe import ULP
from rsfl.bounds.condition import ConditionError
from rsfl.bounds.records import Participant, Round
from rsfl.bounds.threat import Threat

__all__ = ["conditions", "examined", "trusted"]

AT_EVERY_LEVEL = ("coupled-runs", "fixed-settings", "clean-input-bound", "exact-training")
_OF_A_CLIENT = "name the client in the threat, or give the server an update_clip"

Finding = tuple[str, bool, str]  # name of a condition, whether it holds, and the value to quote


def _of_round(record: Round, threat: Threat) -> list[Finding]:
    """The conditions on a round."""
    total = sum(one.weight for one in record.participants)
    head = record.model == "linear head" and record.features_hash != ""
    found = [
        ("plain-averaging", record.aggregator == "mean", f"aggregator={record.aggregator!r}"),
        ("linear-model", record.model == "linear" or head, f"model={record.model!r}"),
        (
            "server-weights",
            record.weights_from != "clients",
            f"weights_from={record.weights_from!r}",
        ),
        ("server-weights", abs(total - 1.0) <= 1e-12, f"weights that sum to {total!r}"),
        ("server-step", 0.0 < record.server_step <= 1.0, f"server_step={record.server_step!r}"),
        ("fixed-clip", record.clip_fixed, f"clip_fixed={record.clip_fixed!r}"),
        ("zero-for-rejected", record.reject == "zero", f"reject={record.reject!r}"),
        ("float64", record.dtype == "float64", f"dtype={record.dtype!r}"),
    ]
    if head:
        found.append(("features-named", not threat.of_inputs, f"threat={threat!r}"))
    return found


_OF_TRAINING = ("plain-loss", "plain-sgd", "one-decay", "known-inputs", "step-size")


def _longest_step(one: Participant) -> float:
    """The learning rate up to which a local step does not expand."""
    return 2.0 / (one.decay[1] + one.input_norm * one.input_norm / 2)


def _plain(one: Participant) -> bool:
    """Whether a participant's training meets every condition on it: `_of_participant`, quickly."""
    return (
        one.loss == "softmax cross-entropy"
        and one.optimizer == "sgd"
        and one.momentum == 0.0
        and one.decay[0] == one.decay[1]
        and one.input_norm < inf
        # The slack is rounding: contraction factors are not capped at 1, so that it costs nothing
        # but itself.
        and one.lr <= _longest_step(one) * (1 + ULP)
    )


def _of_participant(one: Participant) -> list[Finding]:
    """The conditions on the training of one participant."""
    low, high = one.decay
    limit = _longest_step(one)
    return [
        ("plain-loss", one.loss == "softmax cross-entropy", f"loss={one.loss!r}"),
        ("plain-sgd", one.optimizer == "sgd", f"optimizer={one.optimizer!r}"),
        ("plain-sgd", one.momentum == 0.0, f"momentum={one.momentum!r}"),
        ("one-decay", low == high, f"decay={one.decay!r}"),
        ("known-inputs", one.input_norm < inf, f"input_norm={one.input_norm!r}"),
        ("step-size", one.lr <= limit * (1 + ULP), f"lr={one.lr!r} > {limit!r}"),
    ]


def examined(
    rounds: Sequence[Round], threat: Threat
) -> tuple[tuple[str, ...], tuple[frozenset[int], ...]]:
    """What `conditions` gives, and for each round the clients whose training is not relied on.

    Raises:
        ConditionError, ValueError: As for `conditions`.
    """
    if not rounds:
        raise ValueError("rounds must hold at least one round, got none")
    indices = [record.index for record in rounds]
    missing = sorted(set(threat.rounds or ()) - set(indices))
    if missing:
        raise ValueError(
            f"threat.rounds must lie in the ledger's rounds {indices[0]} to {indices[-1]}, got "
            f"{missing}"
        )
    if indices != list(range(indices[0], indices[0] + len(indices))):
        raise ConditionError("consecutive-rounds", "the ledger", f"rounds {indices!r}")
    unruly = []
    for record in rounds:
        for name, holds, value in _of_round(record, threat):
            if not holds:
                raise ConditionError(name, f"round {record.index}", value)
        odd = [one for one in record.participants if not _plain(one)]
        for one in odd:
            if one.client not in threat.left_out and record.update_clip == inf:
                where = f"round {record.index}, client {one.client}"
                name, value = next(
                    (name, value) for name, holds, value in _of_participant(one) if not holds
                )
                raise ConditionError(name, where, value, _OF_A_CLIENT)
        unruly.append(frozenset(one.client for one in odd))
    of_rounds = [name for record in rounds[:1] for name, _, _ in _of_round(record, threat)]
    return tuple(dict.fromkeys(["consecutive-rounds", *of_rounds, *_OF_TRAINING])), tuple(unruly)


def conditions(rounds: Sequence[Round], threat: Threat) -> tuple[str, ...]:
    """Names of the conditions checked in the ledger before a threat is bounded; raises if one
    fails.

    The training of a removed client is not looked at: the comparison run does without it. Nor is
    a client's training relied on that breaks a condition, where the server clips updates: it is
    counted as one that may send anything in either run, whether or not the threat names it.

    Args:
        rounds: The ledger, every round of it in order.
        threat: The threat that is to be bounded.

    Returns:
        Names out of ``CONDITIONS``, all of them met in every round.

    Raises:
        ConditionError: A condition fails; the message names it and quotes the value, the round and
            the client.
        ValueError: The ledger is empty, or the threat attacks a round that is not in it.

    Example:
        >>> from rsfl.bounds import ClientThreat
        >>> one = Participant(
        ...     client=0, weight=1.0, lr=0.1, decay=(0.1, 0.1), input_norm=1.4, batch_sizes=[10],
        ...     loss="softmax cross-entropy", optimizer="sgd", momentum=0.0,
        ...     update_norm=0.2, gap=0.0)
        >>> record = Round(
        ...     index=1, participants=[one], broadcast_norm=0.0, aggregator="mean", model="linear",
        ...     dtype="float64", weights_from="server",
        ...     seed=0)
        >>> conditions([record], ClientThreat(clients=[0]))[:3]
        ('consecutive-rounds', 'plain-averaging', 'linear-model')
        >>> conditions([record, record], ClientThreat(clients=[0]))
        Traceback (most recent call last):
        rsfl.bounds.condition.ConditionError: the ledger: condition 'consecutive-rounds' fails ...
    """
    return examined(rounds, threat)[0]


def trusted(rounds: Sequence[Round], threat: Threat) -> tuple[str, ...]:
    """Names, out of ``TRUSTED``, of what the bound on a threat takes on trust."""
    claimed = any(record.weights_from == "registration" for record in rounds)
    return AT_EVERY_LEVEL + threat.trusted + ("registered-sizes",) * claimed
