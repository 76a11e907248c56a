"""From a trained model, its ledger and a threat to certified predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import bounds
from rsfl._checks import Float64, choice, number
from rsfl._models import affine_layer, evaluating
from rsfl._text import floored, raised
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
from rsfl.smooth.certificate import CONFIDENCE
from rsfl.smooth.voter import checked_batch, checked_index

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
    """Measure of the published certificate: the size of the change to each poisoned training
    input."""

    norm = "l2"
    space = "training inputs"
    unit = "backdoor, input units"

    def __str__(self) -> str:
        return "backdoor norm"


@dataclass(frozen=True, repr=False)
class PoisoningCertificate(Certificate):
    """Predictions that a threat against the training did not change.

    Where ``label`` is not ``ABSTAIN``, the model of the other run (honest, or without the removed
    clients) gives the same label. ``reach`` is per input and does not depend on the threat: give it
    to :func:`rsfl.bounds.largest_norm`, :func:`rsfl.bounds.most_attackers` or
    :func:`rsfl.bounds.latest_round`.

    Attributes:
        method: ``margin``, ``votes`` or ``published``.
        threat: What was withstood.
        unconditional: (B,) int64, the predictions whether or not they withstand the threat;
            ``ABSTAIN`` where the votes make none.
        reach: (B,) float64, how far the parameters may move (``margin``, ``votes``) or how large
            the backdoor may be (``published``) before the prediction can change. ``radius`` is the
            same, and 0 where it abstains.
        deviation: How far apart the threat can have driven the two models; for ``published``, its
            backdoor norm.
    """

    method: str
    threat: bounds.Threat
    unconditional: Tensor
    reach: Tensor
    deviation: float

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Against what, how far each prediction reaches, and how far it has to."""
        _, rows, closing = super()._table()
        sampled = bool(self.n.any())
        heading = (
            f"Certificate of {len(self)} prediction{'s' * (len(self) != 1)}, "
            f"{int(self.abstained.sum())} abstained, "
            f"against {self.threat}: {self.method}, {self.law}"
            + (f", alpha = {self.alpha:g} for each" if sampled else ", without sampling")
        )
        reaches = ["reach", *(floored(float(reach)) for reach in self.reach[: len(rows) - 1])]
        rows = [
            [*row[:2], reach, *(row[3:] if sampled else [])]
            for row, reach in zip(rows, reaches, strict=True)
        ]
        need = f"Reach in {self.unit}: more than {raised(self.deviation)} is certified. "
        return heading, rows, need + closing


# What sampled votes take where nothing else is said.
_SAMPLING: dict[str, Any] = {"n0": 100, "alpha": 0.001, "confidence": "clopper-pearson", "seed": 0}


def certify(
    model: nn.Module,
    x: Tensor,
    ledger: Ledger | Sequence[Round],
    threat: bounds.Threat,
    *,
    method: str = "margin",
    sigma: float | None = None,
    n: int | None = None,
    n0: int | None = None,
    alpha: float | None = None,
    confidence: str | None = None,
    lipschitz: float | None = None,
    seed: int | None = None,
    index: Tensor | Sequence[int] | None = None,
) -> PoisoningCertificate:
    """Which predictions of a federated model a threat against its training did not change.

    - ``margin``: linear models, exact and without sampling: certified where the deviation is below
      the distance to the closest parameters with another label.
    - ``votes``: the label is the vote of noisy copies of the model (``sigma``). For linear models
      the votes are exact; with ``n``, they are sampled, and alpha is the failure probability for
      each input.
    - ``published``: CRFL's Corollary 1 on sampled votes, for comparison (``sigma``, and ``n`` noisy
      models, 1000 by default). The radius is a backdoor norm.

    The first two refuse, by name, a run that breaks a condition of the theorem
    (:class:`rsfl.bounds.ConditionError`).

    Args:
        model: The final model of the run.
        x: Inputs (B, ...), finite.
        ledger: What the run did.
        threat: Who attacks, when and how. For ``published``: feature level, one attacked round,
            named clients.
        method: ``margin``, ``votes`` or ``published``.
        sigma: Standard deviation of the noise on each parameter, for votes.
        n: Noisy models that estimate the votes; None for exact votes of a linear model.
        n0: Noisy models that select the label, 100 by default. This and the next two, and ``seed``,
            are for sampled votes only.
        alpha: Probability, for each input, with which sampled votes may mislead, 0.001 by default.
        confidence: Bound for sampled votes, ``clopper-pearson`` by default, or ``hoeffding``.
        lipschitz: L_Z of the published formula; by default, for linear models alone, Lemma 1 at the
            clip radius of the attacked round.
        seed: Seed of the noisy models, 0 by default; not one of the training.
        index: (B,) which inputs these are; 0 ... B - 1 by default.

    Returns:
        The certificate.

    Raises:
        ConditionError: The run breaks a condition; the message names it and quotes the value.
        ValueError: An argument is out of its range, missing, or does not apply to this method; the
            threat names clients that the ledger does not know, or samples that were never drawn.
        TypeError: An argument is of another kind.
    """
    for name, value, kind in (("model", model, nn.Module), ("threat", threat, bounds.Threat)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    x, rounds = checked_batch(x), _rounds(ledger)
    _check_known(threat, ledger, rounds)
    choice("method", method, ("margin", "votes", "published"))
    sampling: dict[str, Any] = {"n0": n0, "alpha": alpha, "confidence": confidence, "seed": seed}
    if method == "margin":
        _refuse("method='margin'", sigma=sigma, n=n, **sampling, lipschitz=lipschitz)
    elif sigma is None:
        raise ValueError(f"sigma must be given for method={method!r}, got None")
    elif method == "votes":
        _refuse("method='votes'", lipschitz=lipschitz)
        if n is None:
            _refuse("exact votes, without n", **sampling)
    if sigma is not None:
        sigma = number("sigma", sigma, 0, inf, open_low=True, open_high=True)
    sampling = _SAMPLING | {name: value for name, value in sampling.items() if value is not None}
    sampling |= {"sigma": sigma, "n": 1000 if n is None else n, "index": index}
    if method == "published":
        entries = ledger.entries if isinstance(ledger, Ledger) else ()
        final_shares = {entry.round.index: entry.shares for entry in entries}
        return _published(model, x, rounds, final_shares, threat, lipschitz, **sampling)
    moved = bounds.deviation(rounds, threat)
    if n is None:
        base = _exact(model, x, sigma, index)
    else:
        base = _sampled(model, x, _linear_layer(model).out_features, **sampling)
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


def _rounds(ledger: Ledger | Sequence[Round]) -> tuple[Round, ...]:
    rounds = ledger.rounds if isinstance(ledger, Ledger) else ledger
    if not isinstance(rounds, Sequence) or not all(isinstance(one, Round) for one in rounds):
        raise TypeError(
            f"ledger must be a fed.Ledger or a sequence of bounds.Round, got "
            f"{type(ledger).__name__}"
        )
    return tuple(rounds)


def _check_known(
    threat: bounds.Threat, ledger: Ledger | Sequence[Round], rounds: Sequence[Round]
) -> None:
    """Refuse clients and samples that the run did not have: a slip in their numbers would certify
    everything."""
    entries = [one for record in rounds for one in record.participants]
    known = set(ledger.sizes) if isinstance(ledger, Ledger) else {one.client for one in entries}
    if strangers := sorted(set(threat.clients or ()) - known):
        raise ValueError(f"threat.clients must be clients of the ledger, got {strangers!r}")
    for client, named in threat.samples.items() if isinstance(threat.samples, Mapping) else ():
        drawn = [one.samples for one in entries if one.client == client]
        kept = [samples for samples in drawn if samples is not None]
        if len(kept) == len(drawn) and (unknown := sorted(set(named).difference(*kept))):
            raise ValueError(
                f"threat.samples must be samples that client {client} has drawn, got {unknown!r}"
            )


def _refuse(where: str, **arguments: Any) -> None:
    """Raise for the first argument that was given although it does not apply."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} does not apply to {where}; leave it out, got {value!r}")


def largest_backdoors(
    certificate: PoisoningCertificate, ledger: Ledger | Sequence[Round]
) -> PoisoningCertificate:
    """The same predictions, with the largest backdoor norm that each withstands as its radius.

    All else in the threat, of the feature level, stays as it is: who attacks, when, how many
    samples and with which scale. So a sound certificate can be drawn beside a published one, whose
    radius is a backdoor norm already.

    Args:
        certificate: What :func:`certify` gave for a feature-level threat.
        ledger: The run's ledger.

    Returns:
        A certificate whose radius and reach are backdoor norms; it abstains where the norm is 0.
    """
    if certificate.method == "published":
        norms = certificate.reach
    else:
        found = bounds.largest_norm(
            _rounds(ledger), certificate.threat, certificate.reach.cpu().numpy()
        )
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


def _linear_layer(model: nn.Module) -> nn.Linear:
    """The one affine layer of a linear model."""
    layer = affine_layer(model)
    if layer is None:
        raise bounds.ConditionError("linear-model", "the model", type(model).__name__)
    return layer[1]


def _sampled(
    model: nn.Module, x: Tensor, num_classes: int, *, sigma: float, confidence: str, **votes: Any
) -> Certificate:
    """Labels and reaches by the votes of noisy models."""
    choice("confidence", confidence, tuple(CONFIDENCE))
    smoother = ParameterSmoother(model, sigma, num_classes)
    return smoother.certify(x, runner_up="bounded", confidence=confidence, **votes)


def _exact(
    model: nn.Module, x: Tensor, sigma: float | None, index: Tensor | Sequence[int] | None
) -> Certificate:
    """Labels and reaches of a linear model without sampling: by its margins, or by its exact
    votes."""
    linear = _linear_layer(model)
    if x.dtype != torch.float64 or linear.weight.dtype != torch.float64:
        raise ValueError(
            f"x and the model must be float64, got {x.dtype} and {linear.weight.dtype}"
        )
    with evaluating(model):
        logits: Float64 = model(x).cpu().numpy()
        flat, weight = x.flatten(1), linear.weight.detach()
        size = flat.abs() @ weight.abs().T + (
            0 if linear.bias is None else linear.bias.detach().abs()
        )
    chosen, rows = logits.argmax(axis=1), np.arange(len(logits))
    biased = 0.0 if linear.bias is None else 1.0
    norms = np.maximum(
        np.sqrt((flat.cpu().numpy() ** 2).sum(axis=1) + biased), np.finfo(np.float64).tiny
    )
    # Rounded logits are the exact ones of parameters that lie this far away: radii are distances
    # between parameters, so it comes off them. The bound is that of a dot product in any order of
    # summation.
    rounded = (
        np.linalg.norm((flat.shape[1] + 2) * 2.0**-52 * size.cpu().numpy(), axis=1)
        / norms
        * (1 + 1e-9)
    )
    reach = np.asarray(bounds.margin_radius(logits, norms * (1 + 1e-13)))
    p_a, p_b = np.ones(len(rows)), np.zeros(len(rows))
    if sigma is not None:
        lower, upper = bounds.linear_vote_bounds(logits, norms, sigma=sigma)
        upper[rows, chosen] = 0.0
        drift = (
            0.4 * rounded / sigma
        )  # a probability changes by at most the density at 0 a unit of distance
        p_a, p_b = (
            np.maximum(lower[rows, chosen] - drift, 0.0),
            np.minimum(upper.max(axis=1) + drift, 1.0),
        )
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
        index=checked_index(index, len(rows)).to(device),
        alpha=0.0,
        law=ParameterDistance(sigma),
        seed=0,
        assumptions=(ONE_FUNCTION,),
    )


def _published(
    model: nn.Module,
    x: Tensor,
    rounds: Sequence[Round],
    final_shares: Mapping[int, Mapping[int, float]],
    threat: bounds.Threat,
    lipschitz: float | None,
    *,
    sigma: float,
    **sampling: Any,
) -> PoisoningCertificate:
    """Corollary 1, with the weights that the aggregation rule ended up with."""
    if (
        threat.level != "feature"
        or threat.clients is None
        or threat.rounds is None
        or len(threat.rounds) != 1
    ):
        raise ValueError(
            f"threat must name the clients and one round of a feature-level attack, got {threat!r}"
        )
    by_index = {record.index: record for record in rounds}
    if threat.rounds[0] not in by_index:
        raise ValueError(f"threat.rounds must lie in the ledger's rounds, got {threat.rounds!r}")
    record = by_index[threat.rounds[0]]
    if record.aggregator not in ("mean", "GeometricMedian"):
        raise bounds.ConditionError(
            "plain-averaging", f"round {record.index}", f"aggregator={record.aggregator!r}"
        )
    if record.server_step > 1:
        raise bounds.ConditionError(
            "server-step", f"round {record.index}", f"server_step={record.server_step!r}"
        )
    for one in record.participants:
        if one.optimizer != "sgd" or one.momentum:
            where = f"round {record.index}, client {one.client}"
            raise bounds.ConditionError("plain-sgd", where, f"{one.optimizer!r}, {one.momentum!r}")
    shares = final_shares.get(record.index, {})
    if record.reject == "renormalise" and not shares:
        raise bounds.ConditionError(
            "zero-for-rejected", f"round {record.index}", f"reject={record.reject!r}"
        )
    attackers = [
        _attacker(one, threat, shares.get(one.client, one.weight))
        for one in record.participants
        if one.client in threat.clients
    ]
    if lipschitz is None:
        if record.model != "linear":
            raise ValueError(
                f"lipschitz must be given for {record.model}: Lemma 1 is of linear models, got None"
            )
        if record.clip == inf:
            raise ValueError(
                f"lipschitz must be given for a run without a clip in round {record.index}, got "
                f"None"
            )
        lipschitz = bounds.logistic_lipschitz(record.clip)
    lipschitz = number("lipschitz", lipschitz, 0, inf, open_high=True)
    last = rounds[-1]
    later = [
        (one.clip, one.noise_std)
        for one in rounds
        if record.index < one.index < last.index and one.noise_std
    ]
    if last is not record:
        later.append((last.clip, sigma))  # the last factor is that of the smoothing noise
    base = _sampled(model, x, _outputs(model, x), sigma=sigma, **sampling)
    noise = record.noise_std if record is not last else sigma
    p_a, p_b = base.p_lower.cpu().numpy(), base.p_upper.cpu().numpy()
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
            later=later,
        )
    reach = torch.as_tensor(np.asarray(radius), device=x.device)
    norm = cast(float, threat.norm)  # which the feature level has
    unsound = (WEIGHTS_OF_DATA,) if record.aggregator == "GeometricMedian" else ()
    return _joined(
        replace(base, law=BackdoorNorm()),
        method="published",
        threat=threat,
        reach=reach,
        held=reach > norm,
        deviation=norm,
        assumptions=(
            PUBLISHED_FORM,
            *unsound,
            WHOLE_LEDGER,
            PER_INPUT,
            INDEPENDENT_DRAWS,
            IDEAL_NOISE,
            ONE_FUNCTION,
        ),
    )


def _attacker(one: Participant, threat: bounds.Threat, weight: float) -> bounds.Attacker:
    """A participant as Corollary 1 reads it, with the largest poisoned share of any of its
    batches."""
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


def _outputs(model: nn.Module, x: Tensor) -> int:
    with evaluating(model):
        return int(model(x[:1].clone()).shape[1])
