"""From a trained model, its ledger and a threat to certified predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import bounds
from rsfl._checks import Float64, choice, count, number
from rsfl.assumptions import (
    IDEAL_NOISE,
    INDEPENDENT_DRAWS,
    OF_TRAINING,
    ONE_FUNCTION,
    PER_INPUT,
    PUBLISHED_FORM,
    WEIGHTS_OF_DATA,
    WHOLE_LEDGER,
    Assumption,
)
from rsfl.bounds.records import Participant, Round
from rsfl.fed.ledger import Ledger
from rsfl.smooth import ABSTAIN, Certificate, ParameterSmoother
from rsfl.smooth.affine import affine_layer
from rsfl.smooth.modes import evaluating

__all__ = ["PoisoningCertificate", "certify", "largest_backdoors"]


@dataclass(frozen=True)
class ParameterDistance:
    """Measure of the sound certificates: how far all parameters together may move."""

    sigma: float | None = None
    norm = "l2"
    space = "parameters"
    unit = "parameter units"

    def __str__(self) -> str:
        return "exact margins" if self.sigma is None else f"exact votes at sigma = {self.sigma:g}"


@dataclass(frozen=True)
class BackdoorNorm:
    """Measure of the published certificate: the size of the change to each poisoned training input."""

    norm = "l2"
    space = "training inputs"
    unit = "backdoor, input units"

    def __str__(self) -> str:
        return "backdoor norm"


@dataclass(frozen=True, repr=False)
class PoisoningCertificate(Certificate):
    """Predictions that a threat against the training did not change.

    Where ``label`` is not ``ABSTAIN``, the model of the other run (honest, or without the removed clients) gives the
    same label. ``reach`` is per input and does not depend on the threat: give it to
    :func:`rsfl.bounds.largest_norm`, :func:`rsfl.bounds.most_attackers` or :func:`rsfl.bounds.latest_round`.

    Attributes:
        method: ``margin``, ``votes`` or ``published``.
        threat: What was withstood.
        unconditional: (B,) int64, the predictions whether or not they withstand the threat; ``ABSTAIN`` where the votes
            make none.
        reach: (B,) float64, how far the parameters may move (``margin``, ``votes``) or how large the backdoor may be
            (``published``) before the prediction can change. ``radius`` is the same, and 0 where it abstains.
        deviation: How far apart the threat can have driven the two models; for ``published``, its backdoor norm.
    """

    method: str
    threat: bounds.Threat
    unconditional: Tensor
    reach: Tensor
    deviation: float


def certify(
    model: nn.Module,
    x: Tensor,
    ledger: Ledger | Sequence[Round],
    threat: bounds.Threat,
    *,
    method: str = "margin",
    sigma: float | None = None,
    n: int | None = None,
    n0: int = 100,
    alpha: float = 0.001,
    confidence: str = "clopper-pearson",
    lipschitz: float | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
) -> PoisoningCertificate:
    """Which predictions of a federated model a threat against its training did not change.

    - ``margin``: linear models, exact and without sampling: certified where the deviation is below the distance to the
      closest parameters with another label.
    - ``votes``: the label is the vote of noisy copies of the model (``sigma``). For linear models the votes are exact;
      with ``n``, they are sampled, and alpha is the failure probability for each input.
    - ``published``: CRFL's Corollary 1 on sampled votes, for comparison (``sigma``, and ``n`` noisy models, 1000 by
      default). The radius is a backdoor norm.

    The first two refuse, by name, a run that breaks a condition of the theorem
    (:class:`rsfl.bounds.ConditionError`).

    Args:
        model: The final model of the run.
        x: Inputs (B, ...), finite.
        ledger: What the run did.
        threat: Who attacks, when and how. For ``published``: feature level, one attacked round, named clients.
        method: ``margin``, ``votes`` or ``published``.
        sigma: Standard deviation of the noise on each parameter, for votes.
        n: Noisy models that estimate the votes; None for exact votes of a linear model.
        n0: Noisy models that select the label.
        alpha: Probability, for each input, with which sampled votes may mislead.
        confidence: Bound for sampled votes, ``clopper-pearson`` or ``hoeffding``.
        lipschitz: L_Z of the published formula; by default, for linear models alone, Lemma 1 at the clip radius of the
            attacked round.
        seed: Seed of the noisy models; not one of the training.
        index: (B,) which inputs these are; 0 ... B - 1 by default.

    Returns:
        The certificate.

    Raises:
        ConditionError: The run breaks a condition; the message names it and quotes the value.
        ValueError: An argument is out of its range, missing, or says nothing for this method.
    """
    choice("method", method, ("margin", "votes", "published"))
    if (sigma is None) != (method == "margin"):
        raise ValueError(f"sigma must be given for votes and for nothing else, got {sigma!r} with method={method!r}")
    rounds = ledger.rounds if isinstance(ledger, Ledger) else tuple(ledger)
    if method == "published":
        shares = ledger.entries if isinstance(ledger, Ledger) else ()
        final = {entry.round.index: entry.shares for entry in shares}
        return _published(
            model,
            x,
            rounds,
            final,
            threat,
            sigma=number("sigma", sigma, 0, inf, open_low=True, open_high=True),
            n=1000 if n is None else n,
            n0=n0,
            alpha=alpha,
            confidence=confidence,
            lipschitz=lipschitz,
            seed=seed,
            index=index,
        )
    moved = bounds.deviation(rounds, threat)
    if n is not None and method == "votes":
        smoother = ParameterSmoother(model, number("sigma", sigma), _classes(model))
        base = smoother.certify(
            x, n0=n0, n=n, alpha=alpha, seed=seed, index=index, runner_up="bounded", method=confidence
        )
    else:
        if n is not None:
            raise ValueError(f"n says nothing for method='margin', got {n!r}")
        base = _exact(model, x, sigma, index)
    held = base.radius > moved.value  # strictly: the ball is open
    return _joined(
        base,
        method=method,
        threat=threat,
        reach=base.radius,
        held=held,
        deviation=moved.value,
        assumptions=(
            *base.assumptions,
            WHOLE_LEDGER,
            *(OF_TRAINING[name] for name in (*moved.checked, *moved.trusted)),
        ),
    )


def largest_backdoors(certificate: PoisoningCertificate, ledger: Ledger | Sequence[Round]) -> PoisoningCertificate:
    """The same predictions, with the largest backdoor norm that each withstands as its radius.

    All else in the threat, of the feature level, stays as it is: who attacks, when, how many samples and with which
    scale. So a sound certificate can be drawn beside a published one, whose radius is a backdoor norm already.

    Args:
        certificate: What :func:`certify` gave for a feature-level threat.
        ledger: The run's ledger.

    Returns:
        A certificate whose radius and reach are backdoor norms; it abstains where the norm is 0.
    """
    if certificate.method == "published":
        norms = certificate.reach
    else:
        rounds = ledger.rounds if isinstance(ledger, Ledger) else tuple(ledger)
        found = bounds.largest_norm(rounds, certificate.threat, certificate.reach.cpu().numpy())
        norms = torch.as_tensor(found, device=certificate.reach.device)
    label = torch.where(norms > 0, certificate.unconditional, ABSTAIN)
    return replace(certificate, label=label, radius=norms, reach=norms, law=BackdoorNorm())


def _joined(
    base: Certificate, *, held: Tensor, assumptions: tuple[Assumption, ...], **extra: Any
) -> PoisoningCertificate:
    """The base certificate where the threat is withstood, abstention elsewhere."""
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__} | extra
    fields["unconditional"] = base.label
    fields["label"] = torch.where(held, base.label, ABSTAIN)
    fields["radius"] = torch.where(held, extra["reach"], 0.0)
    return PoisoningCertificate(**fields | {"assumptions": assumptions})


def _classes(model: nn.Module) -> int:
    layer = affine_layer(model)
    if layer is None:
        raise bounds.ConditionError("linear-model", "the model", type(model).__name__)
    return layer[1].out_features


def _exact(model: nn.Module, x: Tensor, sigma: float | None, index: Tensor | Sequence[int] | None) -> Certificate:
    """Labels and reaches of a linear model without sampling: by its margins, or by its exact votes."""
    layer = affine_layer(model)
    if layer is None:
        raise bounds.ConditionError("linear-model", "the model", type(model).__name__)
    linear = layer[1]
    if x.dtype != torch.float64 or linear.weight.dtype != torch.float64:
        raise ValueError(f"x and the model must be float64, got {x.dtype} and {linear.weight.dtype}")
    if not bool(x.isfinite().all()):
        raise ValueError("x must be finite")
    with evaluating(model):
        logits: Float64 = model(x).cpu().numpy()
        flat, weight = x.flatten(1), linear.weight.detach()
        size = flat.abs() @ weight.abs().T + (0 if linear.bias is None else linear.bias.detach().abs())
    chosen, rows = logits.argmax(axis=1), np.arange(len(logits))
    biased = 0.0 if linear.bias is None else 1.0
    norms = np.maximum(np.sqrt((flat.cpu().numpy() ** 2).sum(axis=1) + biased), np.finfo(np.float64).tiny)
    # Rounded logits are the exact ones of parameters that lie this far away: radii are distances between parameters,
    # so it comes off them. The bound is that of a dot product in any order of summation.
    rounded = np.linalg.norm((flat.shape[1] + 2) * 2.0**-52 * size.cpu().numpy(), axis=1) / norms * (1 + 1e-9)
    reach = np.asarray(bounds.margin_radius(logits, norms * (1 + 1e-13)))
    p_a, p_b = np.ones(len(rows)), np.zeros(len(rows))
    if sigma is not None:
        lower, upper = bounds.linear_vote_bounds(logits, norms, sigma=sigma)
        upper[rows, chosen] = 0.0
        drift = 0.4 * rounded / sigma  # a probability changes by at most the density at 0 a unit of distance
        p_a, p_b = np.maximum(lower[rows, chosen] - drift, 0.0), np.minimum(upper.max(axis=1) + drift, 1.0)
        # Both classifiers coincide, so the votes can never reach beyond the margin.
        reach = np.minimum(reach, bounds.cohen_radius(p_a, p_b, sigma=sigma))
    reach = np.maximum(reach - rounded, 0.0)
    device, none = x.device, torch.zeros(len(rows), dtype=torch.int64, device=x.device)
    return Certificate(
        label=torch.as_tensor(np.where(reach > 0, chosen, ABSTAIN), device=device),
        radius=torch.as_tensor(reach, device=device),
        p_lower=torch.as_tensor(p_a, device=device),
        p_upper=torch.as_tensor(p_b, device=device),
        selection_counts=torch.zeros(logits.shape, dtype=torch.int64, device=device),
        counts=torch.zeros(logits.shape, dtype=torch.int64, device=device),
        invalid=none,
        n0=none,
        n=none,
        index=torch.arange(len(rows), device=device) if index is None else torch.as_tensor(index, device=device),
        alpha=0.0,
        law=ParameterDistance(sigma),
        seed=0,
        assumptions=(ONE_FUNCTION,),
    )


def _published(
    model: nn.Module,
    x: Tensor,
    rounds: Sequence[Round],
    shares: dict[int, Any],
    threat: bounds.Threat,
    *,
    sigma: float,
    n: int,
    n0: int,
    alpha: float,
    confidence: str,
    lipschitz: float | None,
    seed: int,
    index: Tensor | Sequence[int] | None,
) -> PoisoningCertificate:
    if threat.level != "feature" or threat.clients is None or threat.rounds is None or len(threat.rounds) != 1:
        raise ValueError(f"threat must name the clients and one round of a feature-level attack, got {threat!r}")
    by_index = {record.index: record for record in rounds}
    if threat.rounds[0] not in by_index:
        raise ValueError(f"threat.rounds must lie in the ledger's rounds, got {threat.rounds!r}")
    record = by_index[threat.rounds[0]]
    final = shares.get(record.index, {}) if record.aggregator == "GeometricMedian" else {}
    if record.aggregator not in ("mean", "GeometricMedian"):
        raise bounds.ConditionError("plain-averaging", f"round {record.index}", f"aggregator={record.aggregator!r}")
    attackers = [
        _attacker(one, threat, final.get(one.client, one.weight))
        for one in record.participants
        if one.client in threat.clients
    ]
    if lipschitz is None:
        if record.model != "linear":
            raise ValueError(f"lipschitz must be given for {record.model}: Lemma 1 is of linear models, got None")
        if record.clip == inf:
            raise ValueError(f"lipschitz must be given for a run without a clip in round {record.index}, got None")
        lipschitz = bounds.logistic_lipschitz(record.clip)
    last = rounds[-1]
    later = [(one.clip, one.noise_std) for one in rounds if record.index < one.index < last.index and one.noise_std]
    if last is not record:
        later.append((last.clip, sigma))  # the last factor is that of the smoothing noise
    smoother = ParameterSmoother(model, sigma, _outputs(model, x))
    base = smoother.certify(
        x, n0=n0, n=count("n", n, 1), alpha=alpha, seed=seed, index=index, runner_up="bounded", method=confidence
    )
    noise = record.noise_std if record is not last else sigma
    p_a, p_b = base.p_lower.cpu().numpy(), base.p_upper.cpu().numpy()
    if not attackers:  # none of them took part in the attacked round
        radius = np.where(p_a > p_b, inf, 0.0)
    elif not noise:
        raise ValueError(f"the ledger must have noise in the attacked round {record.index}, got noise_std={noise!r}")
    else:
        radius = bounds.crfl_radius(
            p_a,
            p_b,
            attackers=attackers,
            lipschitz=lipschitz,
            sigma=noise,
            later=later,
        )
    reach = torch.as_tensor(np.asarray(radius), device=x.device)
    unsound = (WEIGHTS_OF_DATA,) if record.aggregator == "GeometricMedian" else ()
    measured = {name: getattr(base, name) for name in base.__dataclass_fields__} | {"law": BackdoorNorm()}
    return _joined(
        Certificate(**measured),
        method="published",
        threat=threat,
        reach=reach,
        held=reach > number("norm", threat.norm, 0),
        deviation=float(threat.norm or 0.0),
        assumptions=(PUBLISHED_FORM, *unsound, WHOLE_LEDGER, PER_INPUT, INDEPENDENT_DRAWS, IDEAL_NOISE, ONE_FUNCTION),
    )


def _attacker(one: Participant, threat: bounds.Threat, weight: float) -> bounds.Attacker:
    """A participant as Corollary 1 reads it, with the largest poisoned share of any of its batches."""
    if threat.share is not None:
        share = threat.share
    elif threat.per_batch is not None:
        share = max(min(1.0, threat.per_batch / size) for size in one.batch_sizes)
    else:
        raise ValueError(f"threat must give share or per_batch for the published formula, got {threat!r}")
    scale = np.broadcast_to(threat.scale, (2,)).max()
    return bounds.Attacker(
        weight=min(1.0, weight),
        scale=float(scale),
        steps=len(one.batch_sizes),
        lr=one.learning_rate,
        poison_fraction=share,
    )


def _outputs(model: nn.Module, x: Tensor) -> int:
    with evaluating(model):
        return int(model(x[:1]).shape[1])
