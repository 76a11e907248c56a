"""Whether a ledger is that of the run which ended with a model, and a threat is about it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch import nn

from rsfl import bounds
from rsfl._fingerprint import weights_hash
from rsfl._heads import linear_head
from rsfl.assumptions import (
    FROZEN_FEATURES,
    KNOWN_MODEL,
    OF_TRAINING,
    RETRAINING,
    WHOLE_LEDGER,
    Assumption,
    recorded_features,
)
from rsfl.bounds import Round
from rsfl.fed.ledger import Ledger

__all__ = ["Rounds", "checked", "of_the_model", "of_the_training", "recorded"]

Rounds: TypeAlias = Ledger | Sequence[Round]
"""A ledger, or its rounds alone."""


def recorded(ledger: Rounds) -> tuple[Round, ...]:
    """The rounds of a ledger, or the rounds themselves."""
    rounds = ledger.rounds if isinstance(ledger, Ledger) else ledger
    if not isinstance(rounds, Sequence) or not all(isinstance(one, Round) for one in rounds):
        raise TypeError(
            f"ledger must be a fed.Ledger or a sequence of bounds.Round, got "
            f"{type(ledger).__name__}"
        )
    return tuple(rounds)


def checked(ledger: Rounds, threat: bounds.Threat) -> tuple[Round, ...]:
    """The rounds, if the threat is about them: a slip in its numbers would certify everything."""
    if not isinstance(threat, bounds.Threat):
        raise TypeError(f"threat must be a bounds.Threat, got {type(threat).__name__}")
    rounds = recorded(ledger)
    entries = [one for record in rounds for one in record.participants]
    known = set(ledger.sizes) if isinstance(ledger, Ledger) else {one.client for one in entries}
    if strangers := sorted(set(threat.clients) - known):
        raise ValueError(f"threat.clients must be clients of the ledger, got {strangers!r}")
    samples = getattr(threat, "samples", None)
    for client, named in samples.items() if isinstance(samples, Mapping) else ():
        drawn = [one.samples for one in entries if one.client == client]
        kept = [samples for samples in drawn if samples is not None]
        if len(kept) == len(drawn) and (unknown := sorted(set(named).difference(*kept))):
            raise ValueError(
                f"threat.samples must be samples that client {client} has drawn, got {unknown!r}"
            )
    return rounds


def of_the_model(
    rounds: Sequence[Round], model: nn.Module | str = "", features: str = ""
) -> tuple[Assumption, ...]:
    """What is known of whether the ledger is that of the run which ended with this model, or with
    one whose weights, and whose frozen layers below a linear head, have these hashes.

    Raises:
        ValueError: It is not, or a part of it is missing.
    """
    first, last = rounds[0], rounds[-1]
    if first.index != 1:
        raise ValueError(
            f"ledger must begin with round 1, from which both runs start, got round {first.index}"
        )
    for before, after in pairwise(rounds):
        if before.passed_hash and after.sent_hash and before.passed_hash != after.sent_hash:
            raise ValueError(
                f"ledger must be of one run: round {after.index} sent other weights than round "
                f"{before.index} passed on, got {after.sent_hash[:12]!r} after "
                f"{before.passed_hash[:12]!r}"
            )
    if isinstance(model, nn.Module):
        head = linear_head(model)
        features = "" if head is None else head.fingerprint
        trained = model.parameters() if head is None else head.layer.parameters()
        norm = float(sum(p.detach().double().square().sum() for p in trained)) ** 0.5
        if norm > last.clip * (1 + 1e-6):
            raise ValueError(
                f"model must be the one that the ledger's last round {last.index} ended with, "
                f"within its clip {last.clip!r}, got weights of norm {norm!r}"
            )
        model = weights_hash(model)
    if model and last.model_hash and model != last.model_hash:
        raise ValueError(
            f"model must be the one that the ledger's last round {last.index} ended with, got "
            f"weights of hash {model[:12]!r} where the ledger has {last.model_hash[:12]!r}"
        )
    chained = all(one.sent_hash for one in rounds[1:]) and all(one.passed_hash for one in rounds)
    known = KNOWN_MODEL if model and last.model_hash and chained else WHOLE_LEDGER
    return known, *_of_the_features(rounds, features if model else None)


def _of_the_features(rounds: Sequence[Round], here: str | None) -> tuple[Assumption, ...]:
    """What is known of the frozen layers below the model, whose hash is ``here``; None where
    nothing is known of the model."""
    last = rounds[-1]
    for one in rounds:
        if one.features_hash != last.features_hash:
            raise ValueError(
                f"ledger must be of one run: its round {one.index} trained on other frozen layers "
                f"than round {last.index}, got {one.features_hash[:12]!r} and "
                f"{last.features_hash[:12]!r}"
            )
    if here is not None and here != last.features_hash and (here or last.model == "linear head"):
        raise ValueError(
            f"model must have the frozen layers that the ledger's rounds were trained on, got "
            f"layers of hash {here[:12]!r} where the ledger has {last.features_hash[:12]!r}"
        )
    if not last.features_hash:
        return ()
    return (FROZEN_FEATURES if here is None else recorded_features(),)


def of_the_training(ledger: Rounds, found: Sequence[bounds.Deviation]) -> tuple[Assumption, ...]:
    """What bounds on the deviation rest on, each once. A run that had nothing to draw is the same
    as any retraining, unless a client counts by its clip alone, who may draw what it likes."""
    named = dict.fromkeys(name for one in found for name in (*one.checked, *one.trusted))
    anew = _drew_nothing(ledger) and not any(one.touched for one in found)
    return tuple(
        RETRAINING if anew and name == "coupled-runs" else OF_TRAINING[name] for name in named
    )


def _drew_nothing(ledger: Rounds) -> bool:
    """Whether the run had nothing to draw: everybody in every round, full batches, no noise, and
    nobody failed."""
    if not isinstance(ledger, Ledger):
        return False
    # The server's own numbers do not say how many samples a client has.
    if any(record.weights_from != "registration" for record in ledger.rounds):
        return False
    # Clients that are excluded may have been drawn, and others not for them: nothing tells.
    if ledger.excluded:
        return False
    everybody = set(ledger.sizes)
    return all(
        record.noise_norm == record.noise_std == 0.0
        and {one.client for one in record.participants} == everybody
        and all(
            set(one.batch_sizes) == {ledger.sizes[one.client]} and one.outcome != "absent"
            for one in record.participants
        )
        for record in ledger.rounds
    )
