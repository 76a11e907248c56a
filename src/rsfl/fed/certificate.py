"""From a certificate in parameter space, a ledger and a threat to predictions that the threat did
not change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rsfl import bounds
from rsfl._fingerprint import weights_hash
from rsfl._text import floored, raised
from rsfl.assumptions import KNOWN_MODEL, OF_TRAINING, RETRAINING, WHOLE_LEDGER, Assumption
from rsfl.bounds import Round
from rsfl.fed.ledger import Ledger
from rsfl.smooth import ABSTAIN, Certificate, margins

__all__ = ["PoisoningCertificate", "certify", "withstood"]

Rounds = Ledger | Sequence[Round]


@dataclass(frozen=True, repr=False)
class PoisoningCertificate(Certificate):
    """Predictions that a threat against the training did not change.

    Where ``label`` is not ``ABSTAIN``, the model of the other run (honest, or without the removed
    clients) gives the same label. ``reach`` is per input and does not depend on the threat: give it
    to :func:`rsfl.bounds.largest_norm`, :func:`rsfl.bounds.most_attackers` or
    :func:`rsfl.bounds.latest_round`.

    Attributes:
        threat: What was withstood.
        unconditional: (B,) int64, the predictions whether or not they withstand the threat;
            ``ABSTAIN`` where there are none.
        reach: (B,) float64, how far the parameters may move, or for :func:`rsfl.fed.published` how
            large the backdoor may be, before the prediction can change. ``radius`` is the same, and
            0 where it abstains.
        deviation: How far apart the threat can have driven the two models; for
            :func:`rsfl.fed.published`, its backdoor norm.
        bound: In words, which bound on the deviation decided.
    """

    threat: bounds.Threat
    unconditional: Tensor
    reach: Tensor
    deviation: float
    bound: str

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Against what, how far each prediction reaches, and how far it has to."""
        _, rows, closing = super()._table()
        sampled = bool(self.n.any())
        heading = (
            f"Certificate of {len(self)} prediction{'s' * (len(self) != 1)}, "
            f"{int(self.abstained.sum())} abstained, against {self.threat}: {self.law}"
            + (f", alpha = {self.alpha:g} for each" if sampled else ", without sampling")
        )
        reaches = ["reach", *(floored(float(reach)) for reach in self.reach[: len(rows) - 1])]
        rows = [
            [*row[:2], reach, *(row[3:] if sampled else [])]
            for row, reach in zip(rows, reaches, strict=True)
        ]
        need = f"Reach in {self.unit}: more than {raised(self.deviation)} is certified"
        return heading, rows, f"{need} ({self.bound}). {closing}"


def certify(
    model: nn.Module, x: Tensor, ledger: Rounds, threat: bounds.Threat, **old: Any
) -> PoisoningCertificate:
    """Which predictions of a federated linear model a threat against its training did not change.

    The same as ``withstood(smooth.margins(model, x), ledger, threat)``: exact, without sampling.
    For other certificates of the model, such as the votes of its noisy copies that
    ``smooth.ParameterSmoother`` samples, call :func:`withstood`.

    Args:
        model: The final model of the run.
        x: Inputs (B, ...), finite.
        ledger: What the run did.
        threat: Who attacks, when and how.
        old: Nothing: what once chose a method says here which call it has become.

    Returns:
        The certificate.

    Raises:
        ConditionError: The run breaks a condition; the message names it and quotes the value.
        ValueError: An argument is out of its range; the ledger is that of another run; the threat
            names clients that the ledger does not know, or samples that were never drawn.
        TypeError: An argument is of another kind.
    """
    if old:
        _moved(old)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    # What the run was is said before what the model is: a run that breaks a condition is refused by
    # the condition's name.
    rounds = checked(ledger, threat)
    found = bounds.deviation(rounds, threat)
    return _held(margins(model, x), ledger, threat, found, of_the_model(rounds, model))


def withstood(
    certificate: Certificate,
    ledger: Rounds,
    threat: bounds.Threat,
    model: nn.Module | None = None,
) -> PoisoningCertificate:
    """Hold a threat against a certificate in parameter space: which of its predictions stay.

    Strictly where the deviation that the threat can have caused (:func:`rsfl.bounds.deviation`) is
    below the radius.

    Args:
        certificate: Of the final model of the run, in the space of its parameters and in l2: from
            :func:`rsfl.smooth.margins`, :func:`rsfl.smooth.exact_votes` or
            :class:`rsfl.smooth.ParameterSmoother`, sequential ones included.
        ledger: What the run did.
        threat: Who attacks, when and how.
        model: The model that was certified. With it, or with a certificate that knows it, the
            ledger is checked to be that of the run which ended with this model.

    Returns:
        The certificate.

    Raises:
        ConditionError, ValueError, TypeError: As for :func:`certify`; also for a certificate in
            another space.
    """
    if not isinstance(certificate, Certificate):
        raise TypeError(
            f"certificate must be a smooth.Certificate, got {type(certificate).__name__}"
        )
    if (certificate.space, certificate.norm) != ("parameters", "l2"):
        raise ValueError(
            "certificate must be in l2 over parameters, as those of smooth.margins or "
            f"smooth.ParameterSmoother are, got {certificate.norm} over {certificate.space}"
        )
    if isinstance(certificate, PoisoningCertificate):
        raise TypeError(
            "certificate must be one that no threat was held against, got a PoisoningCertificate"
        )
    rounds = checked(ledger, threat)
    found = bounds.deviation(rounds, threat)
    known = getattr(certificate.law, "model", "") if model is None else model
    return _held(certificate, ledger, threat, found, of_the_model(rounds, known))


def _held(
    base: Certificate,
    ledger: Rounds,
    threat: bounds.Threat,
    found: bounds.Deviation,
    known: Assumption,
) -> PoisoningCertificate:
    """The base certificate where its radius is above the deviation."""
    assumptions = tuple(OF_TRAINING[name] for name in (*found.checked, *found.trusted))
    if _drew_nothing(ledger):
        assumptions = tuple(RETRAINING if one.id == "coupled-runs" else one for one in assumptions)
    bound = f"the other run is {found.comparison}"
    if found.touched:
        bound += f"; clients {list(found.touched)!r} counted by the clip of their updates"
    return joined(
        base,
        threat=threat,
        reach=base.radius,
        held=base.radius > found.value,  # strictly: the ball is open
        deviation=found.value,
        bound=bound,
        assumptions=(*base.assumptions, known, *assumptions),
    )


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


def of_the_model(rounds: Sequence[Round], model: nn.Module | str = "") -> Assumption:
    """What is known of whether the ledger is that of the run which ended with this model, or with
    one whose weights have this hash.

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
        norm = float(sum(p.detach().double().square().sum() for p in model.parameters())) ** 0.5
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
    return KNOWN_MODEL if model and last.model_hash and chained else WHOLE_LEDGER


def _drew_nothing(ledger: Rounds) -> bool:
    """Whether the run had nothing to draw: everybody in every round, full batches, no noise, and
    nobody failed."""
    if not isinstance(ledger, Ledger):
        return False
    everybody = set(ledger.sizes) - set(ledger.excluded)
    return all(
        record.noise_norm == 0.0
        and {one.client for one in record.participants} == everybody
        and all(
            set(one.batch_sizes) == {ledger.sizes[one.client]} and one.outcome != "absent"
            for one in record.participants
        )
        for record in ledger.rounds
    )


def joined(
    base: Certificate, *, held: Tensor, assumptions: tuple[Assumption, ...], **extra: Any
) -> PoisoningCertificate:
    """The base certificate where the threat is withstood, abstention elsewhere."""
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__} | extra
    fields["unconditional"] = base.label
    fields["label"] = torch.where(held, base.label, ABSTAIN)
    fields["radius"] = torch.where(held, extra["reach"], 0.0)
    return PoisoningCertificate(**fields | {"assumptions": assumptions})


_NOW = {
    "margin": "fed.certify(model, x, ledger, threat)",
    "votes": "fed.withstood(smooth.exact_votes(model, x, sigma), ledger, threat)",
    "sampled": "fed.withstood(smooth.ParameterSmoother(model, sigma, num_classes)"
    ".certify(x, n=n), ledger, threat)",
    "published": "fed.published(smooth.ParameterSmoother(model, sigma, num_classes)"
    ".certify(x, n=n), ledger, threat)",
    "index": "fed.withstood(smooth.margins(model, x, index), ledger, threat)",
}


def _moved(old: Mapping[str, Any]) -> NoReturn:
    """The error of who uses arguments that `certify` once had, with the call to make instead."""
    method = old.get("method", "index" if set(old) == {"index"} else "votes")
    if method == "votes" and old.get("n") is not None:
        method = "sampled"
    now = _NOW.get(method if isinstance(method, str) else "", _NOW["margin"])
    raise TypeError(
        f"certify takes a model, inputs, a ledger and a threat; instead of {', '.join(old)} write "
        f"{now}"
    )
