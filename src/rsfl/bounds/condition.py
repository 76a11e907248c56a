"""What a bound on a threat rests on: conditions that are checked in the ledger, and what no ledger
can show."""

from collections.abc import Sequence
from math import inf

from rsfl.bounds._safe import ULP
from rsfl.bounds.records import Participant, Round
from rsfl.bounds.threat import Threat

__all__ = ["CONDITIONS", "TRUSTED", "ConditionError", "conditions", "trusted"]

CONDITIONS = {
    "consecutive-rounds": "the rounds of the ledger follow on one another",
    "plain-averaging": "the aggregator is the weighted mean: medians, Krum and RFA are not "
    "Lipschitz with constant 1",
    "linear-model": "an nn.Linear, alone or after flattening at the end of an nn.Sequential, all "
    "trained, no hooks: "
    "the loss is convex",
    "plain-loss": "local steps follow the gradient of the softmax cross-entropy: a convex loss "
    "with smoothness B^2/2",
    "plain-sgd": "no momentum, no adaptive steps: either makes a convex step expand",
    "one-decay": "every parameter has the same L2 decay: an undecayed bias would stop the "
    "contraction",
    "known-inputs": "a finite bound B on the norm of (x, 1) over each client's clean inputs",
    "step-size": "learning rate at most 2 / (decay + B^2/2), so that a local step does not expand",
    "server-weights": "the weights are set before training, by the server or at registration, "
    "and sum to 1",
    "server-step": "the server applies a fraction of the average in (0, 1]",
    "fixed-clip": "clip radii are set in advance, not from what clients send",
    "zero-for-rejected": "a rejected or absent update counts as zero and keeps its weight",
    "honest-updates-intact": "no honest update is clipped or rejected, in either run: that would "
    "not be a contraction",
    "float64": "training and averaging in float64, so that rounding stays far below the "
    "deviations bounded here",
    "update-clip": "at the client level, the server clips each update at a finite norm",
    "recorded-samples": "the indices of the samples drawn are in the ledger",
    "someone-left": "after the removal, each round keeps a participant of positive weight",
}
"""Every condition that is checked in the ledger, by name."""

TRUSTED = {
    "coupled-runs": "both runs share their initial weights, participants, mini-batches, server "
    "noise and absences",
    "fixed-settings": "learning rates, decays, schedules and the number of rounds do not depend "
    "on what clients send",
    "clean-input-bound": "the recorded bound holds for the clean inputs of every client that "
    "trains honestly in either "
    "run",
    "exact-training": "exact arithmetic: float64 rounding in training is not added to the bound",
    "threat-respected": "poisoned samples, and how many there are, keep to the threat; attackers "
    "otherwise follow the "
    "protocol",
    "working-clip": "the server clips every update at update_clip and counts a non-finite one as "
    "zero",
    "recorded-settings": "the attackers' recorded settings are those they would have trained with",
    "others-honest": "everyone but the removed clients follows the protocol, in both runs",
    "drawn-before-removal": "the comparison run draws its participants before the clients are "
    "left out, "
    "renormalises the weights, and goes on however few are left",
    "registered-sizes": "the numbers of samples that clients gave at registration, which set the "
    "weights, are those of "
    "both runs",
}
"""Everything that no ledger can show and that a bound rests on nevertheless, by name."""

_AT_EVERY_LEVEL = ("coupled-runs", "fixed-settings", "clean-input-bound", "exact-training")
_AT_LEVEL = {
    "feature": ("threat-respected",),
    "sample": ("threat-respected",),
    "client": ("working-clip",),
    "forensic": ("recorded-settings",),
    "removal": ("others-honest", "drawn-before-removal"),
}


class ConditionError(ValueError):
    """The run breaks a condition of the certificate, so that nothing can be certified from its
    ledger.

    Attributes:
        condition: Name of the condition, one of those in ``CONDITIONS``.
    """

    def __init__(self, condition: str, where: str, found: str):
        super().__init__(
            f"{where}: condition '{condition}' fails ({CONDITIONS[condition]}), got {found}"
        )
        self.condition = condition


def _of_round(record: Round) -> list[tuple[str, bool, str]]:
    """The conditions on a round: name, whether it holds, and the value to quote."""
    total = sum(one.weight for one in record.participants)
    return [
        ("plain-averaging", record.aggregator == "mean", f"aggregator={record.aggregator!r}"),
        ("linear-model", record.model == "linear", f"model={record.model!r}"),
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


def smoothness(one: Participant) -> float:
    """Largest curvature of the loss, B^2 / 2: the softmax's Jacobian has norm at most 1/2."""
    return one.input_norm * one.input_norm / 2


def _of_participant(one: Participant) -> list[tuple[str, bool, str]]:
    """The conditions on the training of one participant."""
    low, high = one.decay
    limit = 2.0 / (high + smoothness(one))
    return [
        ("plain-loss", one.loss == "softmax cross-entropy", f"loss={one.loss!r}"),
        ("plain-sgd", one.optimizer == "sgd", f"optimizer={one.optimizer!r}"),
        ("plain-sgd", one.momentum == 0.0, f"momentum={one.momentum!r}"),
        ("one-decay", low == high, f"decay={one.decay!r}"),
        ("known-inputs", one.input_norm < inf, f"input_norm={one.input_norm!r}"),
        # The slack is rounding: contraction factors are not capped at 1, so that it costs nothing
        # but itself.
        ("step-size", one.lr <= limit * (1 + ULP), f"lr={one.lr!r} > {limit!r}"),
    ]


def conditions(rounds: Sequence[Round], threat: Threat) -> tuple[str, ...]:
    """Names of the conditions checked in the ledger before a threat is bounded; raises if one
    fails.

    A removed client's own training is not looked at: the comparison run does without it. That
    honest updates stay intact depends on the deviation itself, and is checked along with it.

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
        >>> one = Participant(
        ...     client=0, weight=1.0, lr=0.1, decay=(0.1, 0.1), input_norm=1.4, batch_sizes=[10],
        ...     loss="softmax cross-entropy", optimizer="sgd", momentum=0.0,
        ...     update_norm=0.2, gap=0.0)
        >>> record = Round(
        ...     index=1, participants=[one], broadcast_norm=0.0, aggregator="mean", model="linear",
        ...     dtype="float64", weights_from="server",
        ...     seed=0)
        >>> conditions([record], Threat("client", clients=[0]))[:3]
        ('consecutive-rounds', 'plain-averaging', 'linear-model')
        >>> conditions([record, record], Threat("client", clients=[0]))
        Traceback (most recent call last):
        rsfl.bounds.condition.ConditionError: the ledger: condition 'consecutive-rounds' fails ...
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
    outside = set(threat.clients or ()) if threat.level == "removal" else set()
    names = ["consecutive-rounds"]
    for record in rounds:
        found = [(f"round {record.index}", *rest) for rest in _of_round(record)]
        for one in record.participants:
            if one.client not in outside:
                found += [
                    (f"round {record.index}, client {one.client}", *rest)
                    for rest in _of_participant(one)
                ]
        for where, name, holds, value in found:
            if not holds:
                raise ConditionError(name, where, value)
            names.append(name)
    return tuple(dict.fromkeys(names))


def trusted(rounds: Sequence[Round], threat: Threat) -> tuple[str, ...]:
    """Names, out of ``TRUSTED``, of what the bound on a threat takes on trust."""
    claimed = any(record.weights_from == "registration" for record in rounds)
    return _AT_EVERY_LEVEL + _AT_LEVEL[threat.level] + ("registered-sizes",) * claimed
