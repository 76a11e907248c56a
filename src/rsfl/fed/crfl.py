"""The certificate of CRFL as it was published, and backdoor norms to compare it with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch

from rsfl import bounds
from rsfl._checks import number
from rsfl.assumptions import PUBLISHED_FORM, WEIGHTS_OF_DATA
from rsfl.bounds import Participant, Round
from rsfl.fed.certificate import PoisoningCertificate, joined
from rsfl.fed.ledger import Ledger
from rsfl.fed.provenance import Rounds, checked, of_the_model, recorded
from rsfl.noise import ParameterGaussian
from rsfl.smooth import ABSTAIN, Certificate

__all__ = ["largest_backdoors", "published"]


@dataclass(frozen=True)
class BackdoorNorm:
    """Measure of the published certificate: the size of the change to each poisoned training
    input."""

    norm = "l2"
    space = "training inputs"
    unit = "backdoor, input units"

    def __str__(self) -> str:
        return "backdoor norm"


def published(
    certificate: Certificate,
    ledger: Rounds,
    threat: bounds.FeatureThreat,
    lipschitz: float | None = None,
) -> PoisoningCertificate:
    """CRFL's Corollary 1 on the votes of noisy models, for comparison: its radius is a backdoor
    norm.

    With the weights that the aggregation rule ended up with, on the ledger's numbers. Not a
    guarantee for the model that was trained: what it assumes is in its list, its gaps are in the
    documentation.

    Args:
        certificate: Of the final model, from :class:`rsfl.smooth.ParameterSmoother`; the paper has
            1000 noisy models and ``confidence="hoeffding"``.
        ledger: What the run did.
        threat: A threat to features in one round, by named clients, with ``share`` or
            ``per_batch``.
        lipschitz: L_Z of the formula; by default, for linear models alone, Lemma 1 at the clip
            radius of the attacked round.

    Returns:
        The certificate; ``reach`` is the largest backdoor norm.

    Raises:
        ConditionError: The run is not one that the formula is about.
        ValueError: An argument is out of its range, missing, or does not fit the ledger.
        TypeError: An argument is of another kind.

    References:
        Xie, Chen, Chen and Li, CRFL: certifiably robust federated learning against backdoor
        attacks, ICML 2021.
    """
    law = getattr(certificate, "law", None)
    if not isinstance(law, ParameterGaussian):
        raise TypeError(
            "certificate must be of smooth.ParameterSmoother, whose noise the formula has, got "
            f"{law if law is not None else certificate!r}"
        )
    rounds = checked(ledger, threat)
    record = _attacked(rounds, threat)
    attackers = _attackers(ledger, record, threat)
    if lipschitz is None:
        lipschitz = _lemma_one(record)
    lipschitz = number("lipschitz", lipschitz, 0, inf, open_high=True)
    noise = record.noise_std if record is not rounds[-1] else law.sigma
    p_a, p_b = certificate.p_lower.cpu().numpy(), certificate.p_upper.cpu().numpy()
    if not attackers:  # none of them took part in the attacked round
        radius = np.where(p_a > p_b, inf, 0.0)
    elif not noise:
        raise ValueError(
            f"the ledger must have noise in the attacked round {record.index}, got "
            f"noise_std={noise!r}"
        )
    else:
        radius = bounds.crfl_radius(
            p_a,
            p_b,
            attackers=attackers,
            lipschitz=lipschitz,
            sigma=noise,
            later=_later(rounds, record, law.sigma),
        )
    reach = torch.as_tensor(np.asarray(radius), device=certificate.label.device)
    unsound = (WEIGHTS_OF_DATA,) if record.aggregator == "GeometricMedian" else ()
    rests_on = (
        PUBLISHED_FORM,
        *unsound,
        *of_the_model(rounds),
        *certificate.assumptions,
    )
    return joined(
        replace(certificate, law=BackdoorNorm()),
        threat=threat,
        reach=reach,
        held=reach > threat.norm,
        deviation=threat.norm,
        bound="as published",
        assumptions=rests_on,
    )


def _attacked(rounds: Sequence[Round], threat: bounds.Threat) -> Round:
    """The attacked round, if the formula is about such a threat and such a round."""
    if (
        not isinstance(threat, bounds.FeatureThreat)
        or threat.at_most
        or len(threat.rounds or ()) != 1
    ):
        raise ValueError(
            f"threat must name the clients and one round of a FeatureThreat, got {threat!r}"
        )
    by_index = {record.index: record for record in rounds}
    (index,) = threat.rounds or ()
    if index not in by_index:
        raise ValueError(f"threat.rounds must lie in the ledger's rounds, got {threat.rounds!r}")
    record = by_index[index]
    plain = [(one.optimizer, one.momentum) == ("sgd", 0.0) for one in record.participants]
    odd = record.participants[plain.index(False) if False in plain else 0]
    for name, holds, value in (
        (
            "plain-averaging",
            record.aggregator in ("mean", "GeometricMedian"),
            f"aggregator={record.aggregator!r}",
        ),
        ("plain-sgd", all(plain), f"{odd.optimizer!r}, {odd.momentum!r}"),
        ("server-step", record.server_step <= 1, f"server_step={record.server_step!r}"),
    ):
        if not holds:
            raise bounds.ConditionError(name, f"round {record.index}", value)
    return record


def _attackers(
    ledger: Rounds, record: Round, threat: bounds.FeatureThreat
) -> list[bounds.Attacker]:
    """The attackers of a round as Corollary 1 reads them, with the weights that were used."""
    entries = ledger.entries if isinstance(ledger, Ledger) else ()
    final: dict[int, Mapping[int, float]] = {one.round.index: one.shares for one in entries}
    shares = final.get(record.index, {})
    if record.reject == "renormalise" and not shares:
        raise bounds.ConditionError(
            "zero-for-rejected", f"round {record.index}", f"reject={record.reject!r}"
        )
    return [
        _attacker(one, threat, shares.get(one.client, one.weight))
        for one in record.participants
        if one.client in threat.clients
    ]


def _attacker(one: Participant, threat: bounds.FeatureThreat, weight: float) -> bounds.Attacker:
    """A participant with the largest poisoned share of any of its batches."""
    if threat.share is not None:
        share = threat.share
    elif threat.per_batch is not None:
        share = max(min(1.0, threat.per_batch / size) for size in one.batch_sizes)
    else:
        raise ValueError(
            f"threat must give share or per_batch for the published formula, got {threat!r}"
        )
    return bounds.Attacker(
        weight=min(1.0, weight),
        scale=threat.scales[1],
        steps=len(one.batch_sizes),
        lr=one.lr,
        poison_fraction=share,
    )


def _lemma_one(record: Round) -> float:
    """L_Z of a linear model at the clip radius of the attacked round."""
    if record.model != "linear":
        raise ValueError(
            f"lipschitz must be given for {record.model}: Lemma 1 is of linear models, got None"
        )
    if record.clip == inf:
        raise ValueError(
            f"lipschitz must be given for a run without a clip in round {record.index}, got None"
        )
    return float(bounds.logistic_lipschitz(record.clip))


def _later(rounds: Sequence[Round], attacked: Round, smoothing: float) -> list[tuple[float, float]]:
    """Clip radius and noise of each later round; the last factor is that of the smoothing noise."""
    last = rounds[-1]
    later = [
        (one.clip, one.noise_std)
        for one in rounds
        if attacked.index < one.index < last.index and one.noise_std
    ]
    return later if last is attacked else [*later, (last.clip, smoothing)]


def largest_backdoors(certificate: PoisoningCertificate, ledger: Rounds) -> PoisoningCertificate:
    """The same predictions, with the largest backdoor norm that each withstands as its radius.

    All else in the threat, of the feature level, stays as it is: who attacks, when, how many
    samples and with which scale. So a sound certificate can be drawn beside a published one, whose
    radius is a backdoor norm already.

    Args:
        certificate: What :func:`certify`, :func:`withstood` or :func:`published` gave for a
            :class:`rsfl.bounds.FeatureThreat`.
        ledger: The run's ledger.

    Returns:
        A certificate whose radius and reach are backdoor norms; it abstains where the norm is 0.
    """
    norms = certificate.reach
    if not isinstance(certificate.law, BackdoorNorm):
        found = bounds.largest_norm(
            recorded(ledger), certificate.threat, certificate.reach.cpu().numpy()
        )
        norms = torch.as_tensor(found, device=certificate.reach.device)
    label = torch.where(norms > 0, certificate.unconditional, ABSTAIN)
    return replace(certificate, label=label, radius=norms, reach=norms, law=BackdoorNorm())
