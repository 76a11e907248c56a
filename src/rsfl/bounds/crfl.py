"""The certificate of CRFL as published: how far training may be poisoned before a
parameter-smoothed vote can change.

It bounds the divergence between the *distributions* over training runs, for one attacked round,
under assumptions that the paper's own experiments do not meet (see "What it does not cover" in the
documentation). It is here to reproduce the published numbers; :func:`rsfl.bounds.deviation` has a
certificate for the one model that was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rsfl._checks import Float64, Floats, count, number, numbers, unwrapped
from rsfl.bounds._safe import EPS, LARGEST, finished, pair

__all__ = [
    "Attacker",
    "contraction",
    "crfl_divergence",
    "crfl_radius",
    "kl_budget",
    "logistic_lipschitz",
]


@dataclass(frozen=True)
class Attacker:
    """One attacking client, as the published certificate reads it.

    Args:
        weight: Aggregation weight p_i, in [0, 1].
        scale: Factor gamma_i by which it scales its update, positive.
        steps: Local steps tau_i, at least 1.
        lr: Local learning rate eta_i, positive.
        poison_fraction: Share q_i / n_i of poisoned samples in *every* one of its batches, in [0,
            1].
    """

    weight: float
    scale: float
    steps: int
    lr: float
    poison_fraction: float

    def __post_init__(self) -> None:
        number("weight", self.weight, 0, 1)
        number("scale", self.scale, 0, np.inf, open_low=True, open_high=True)
        count("steps", self.steps, 1)
        number("lr", self.lr, 0, np.inf, open_low=True, open_high=True)
        number("poison_fraction", self.poison_fraction, 0, 1)

    def factors(self) -> tuple[float, ...]:
        """p_i, gamma_i, tau_i, eta_i, q_i / n_i, whose product says how far it moves the mean, but
        for the gradient's change."""
        return (self.weight, self.scale, float(self.steps), self.lr, self.poison_fraction)


def kl_budget(p_a: ArrayLike, p_b: ArrayLike | None = None) -> Floats:
    r"""The largest KL divergence that cannot change the vote,
    :math:`-\log(1 - (\sqrt{p_A} - \sqrt{p_B})^2)`.

    Assumes:
        p_a bounds the probability of the label from below, p_b that of every other class from
        above.

    Args:
        p_a: Lower bound on the probability of the label, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.

    Returns:
        A budget never above the exact one: 0 where p_a <= p_b, inf only for p_a exactly 1 and p_b
        exactly 0.

    Raises:
        ValueError: A probability is outside [0, 1].
        TypeError: An argument is not a number.

    Example:
        >>> kl_budget(0.9, 0.1)
        0.5108...

    References:
        Xie et al., "CRFL", ICML 2021, Theorem 3.
    """
    a, b, gap, _ = pair(p_a, p_b)
    lost, unbounded = gap <= 0, (a == 1) & (b == 0)
    a, b, gap = (
        np.where(lost | unbounded, value, x) for value, x in ((0.75, a), (0.25, b), (0.5, gap))
    )
    d = gap / (np.sqrt(a) + np.sqrt(b))
    rest = (1 - a) / (1 + np.sqrt(a)) + np.sqrt(b)  # 1 - d without cancelling
    with np.errstate(divide="ignore"):
        budget = np.where(d < 0.5, -np.log1p(-d * d), -np.log(rest) - np.log1p(d))
    return finished(np.asarray(budget), lost, unbounded)


def _argument(rho: ArrayLike, sigma: ArrayLike) -> Float64:
    """The a with 2 Phi(rho / sigma) - 1 = erf(a)."""
    r = numbers("rho", rho, 0)
    s = numbers("sigma", sigma, 0, np.inf, open_low=True, open_high=True)
    with np.errstate(over="ignore", under="ignore"):
        a = (r / s) / np.sqrt(2)
    return np.asarray(
        np.where(r > 0, np.maximum(a, 1e-300), 0.0)
    )  # only an exact 0 may be 0: it makes a radius infinite


def _log_contraction(rho: ArrayLike, sigma: ArrayLike) -> Float64:
    """log(2 Phi(rho / sigma) - 1), rounded up; a factor that float64 cannot tell from 1 keeps its
    distance to it."""
    a = _argument(rho, sigma)
    with np.errstate(divide="ignore"):
        log = np.where(a < 1, np.log(special.erf(np.minimum(a, 1))), np.log1p(-special.erfc(a)))
    # the error of erfc grows like a squared, that of log(erf) is absolute
    return np.asarray(
        np.minimum(
            log * (1 - 8 * EPS * (1 + np.minimum(a * a, 800))) + np.where(a < 1, 8 * EPS, 0), 0.0
        )
    )


def contraction(rho: ArrayLike, sigma: ArrayLike) -> Floats:
    r"""The factor :math:`2 \Phi(\rho / \sigma) - 1` by which one clipped and noised round shrinks a
    divergence.

    Args:
        rho: Norm to which the round's parameters are clipped, at least 0 (inf: no clip).
        sigma: Standard deviation of the noise that is added to them, positive.

    Returns:
        A factor in [0, 1], never below the exact one.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not a number.

    Example:
        >>> contraction(1.0, 1.0)
        0.6826...

    References:
        Xie et al., "CRFL", ICML 2021, Lemma 10.
    """
    return unwrapped(np.minimum(special.erf(_argument(rho, sigma)) * (1 + 8 * EPS), 1.0))


def logistic_lipschitz(rho: ArrayLike) -> Floats:
    r"""Lemma 1 of CRFL, :math:`L_Z = \sqrt{2 + 2\rho + \rho^2}`.

    Assumes:
        Multi-class logistic regression whose parameters have norm at most rho, inputs of norm at
        most 1 and unchanged labels. With larger inputs (MNIST in [0, 1] has norms of about 9) the
        true constant is several times larger.

    Args:
        rho: Bound on the norm of the parameters, at least 0.

    Returns:
        The constant, never below the exact square root.

    Raises:
        ValueError: rho is negative or NaN.
        TypeError: rho is not a number.

    Example:
        >>> logistic_lipschitz(3.0)
        4.1231...

    References:
        Xie et al., "CRFL", ICML 2021, Lemma 1.
    """
    r = numbers("rho", rho, 0)
    return unwrapped(np.asarray(np.hypot(1.0, 1.0 + r) * (1 + 4 * EPS)))


def _log_divergence_factor(
    attackers: Sequence[Attacker],
    log_magnitudes: Float64,
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]],
) -> float:
    """log of 2 R sum_i (reach_i L magnitude_i)^2 / sigma^2 times the product of the later
    contractions, rounded up."""
    if len(attackers) == 0:
        raise ValueError(f"attackers must not be empty, got {attackers!r}")
    for attacker in attackers:
        if not isinstance(attacker, Attacker):
            raise TypeError(f"attackers must be a sequence of bounds.Attacker, got {attacker!r}")
    lipschitz = number("lipschitz", lipschitz, 0, np.inf, open_high=True)
    sigma = number("sigma", sigma, 0, np.inf, open_low=True, open_high=True)
    with np.errstate(divide="ignore"):
        logs = np.log([(*attacker.factors(), lipschitz) for attacker in attackers])
    logs = np.column_stack([logs, log_magnitudes])
    reach = logs.sum(axis=1)
    rounds = np.asarray(later, dtype=np.float64)
    if rounds.size and (rounds.ndim != 2 or rounds.shape[1] != 2):
        raise ValueError(f"later must be a sequence of (rho, sigma) pairs, got {later!r}")
    shrink = _log_contraction(*rounds.T) if rounds.size else np.zeros(0)
    # An exact factor 0 (rho = 0, or nothing poisoned) is settled before logarithms of opposite
    # infinities meet.
    if np.isneginf(reach).all() or np.isneginf(shrink).any():
        return -np.inf
    terms = [
        np.log(2 * len(attackers)),
        float(special.logsumexp(2 * reach)),
        -2 * np.log(sigma),
        float(shrink.sum()),
    ]
    # What is rounded: factors may be far from 1 although their product is not.
    largest = np.abs(logs[np.isfinite(reach)]).sum(axis=1).max()
    size = np.abs(terms).sum() + 2 * largest + np.abs(shrink).sum()
    return float(sum(terms) + 16 * EPS * (size + 1))


def crfl_divergence(
    magnitudes: ArrayLike,
    *,
    attackers: Sequence[Attacker],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]] = (),
) -> float:
    r"""Theorem 2 of CRFL: a bound on the divergence that backdoors of given magnitudes cause.

    .. math::
        \frac{2 R \sum_i (p_i \gamma_i \tau_i \eta_i \tfrac{q_i}{n_i} L_Z \|\delta_i\|)^2}
        {\sigma_{t_{adv}}^2}
        \prod_{t > t_{adv}} \Bigl(2 \Phi\bigl(\tfrac{\rho_t}{\sigma_t}\bigr) - 1\Bigr)

    A prediction keeps its label while this is below :func:`kl_budget`. Unlike :func:`crfl_radius`
    it takes attackers whose backdoors differ in size.

    Assumes:
        As for :func:`crfl_radius`.

    Args:
        magnitudes: Norm of each attacker's backdoor, at least 0; one number stands for all.
        attackers: The clients that attack in the one attacked round.
        lipschitz: Lipschitz constant L_Z of the loss gradient in the data, at least 0.
        sigma: Standard deviation of the noise added in the attacked round, positive.
        later: (rho_t, sigma_t) of each later round, the last with the smoothing sigma.

    Returns:
        The divergence, never below the exact value of the formula.

    Raises:
        ValueError: An argument is out of its range, or there is no attacker.
        TypeError: An argument is not a number, or an attacker no :class:`Attacker`.

    Example:
        >>> two = [Attacker(0.05, 10, 30, 0.001, 0.05)] * 2
        >>> crfl_divergence([0.1, 0.3], attackers=two, lipschitz=4.1, sigma=0.01)
        0.0378...

    References:
        Xie et al., "CRFL", ICML 2021, Theorem 2.
    """
    norms = np.broadcast_to(
        numbers("magnitudes", magnitudes, 0, np.inf, open_high=True), (len(attackers),)
    )
    with np.errstate(divide="ignore", over="ignore"):
        log = _log_divergence_factor(attackers, np.log(norms), lipschitz, sigma, later)
        return float(np.exp(log)) if np.isneginf(log) else float(np.nextafter(np.exp(log), np.inf))


def crfl_radius(
    p_a: ArrayLike,
    p_b: ArrayLike | None = None,
    *,
    attackers: Sequence[Attacker],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]] = (),
) -> Floats:
    r"""Corollary 1 of CRFL: the backdoor magnitude below which the published theorem keeps a
    prediction.

    .. math::
        \sqrt{\frac{-\log(1 - (\sqrt{p_A} - \sqrt{p_B})^2)\, \sigma_{t_{adv}}^2}
        {2 R L_Z^2 \sum_i (p_i \gamma_i \tau_i \eta_i \tfrac{q_i}{n_i})^2
        \prod_{t > t_{adv}} (2 \Phi(\rho_t / \sigma_t) - 1)}}

    Assumes:
        Convex and smooth local losses with learning rates at most 1 / smoothness; aggregation
        weights that do not depend on the data; one attacked round; the stated share of poisoned
        samples in every batch; a comparator run in which the attackers' clean updates are scaled by
        gamma too; the Lipschitz constant given.

    Args:
        p_a: Lower bound on the probability of the label under parameter noise, in [0, 1].
        p_b: Upper bound on the probability of any other class, in [0, 1]; None means 1 - p_a.
        attackers: The clients that attack, all with one backdoor magnitude.
        lipschitz: Lipschitz constant L_Z of the loss gradient in the data, at least 0.
        sigma: Standard deviation of the noise added in the attacked round, positive.
        later: (rho_t, sigma_t) of each later round, the last with the smoothing sigma.

    Returns:
        A magnitude never above the formula's exact value: 0 where p_a <= p_b; inf only where p_a is
        exactly 1 and p_b exactly 0, or where nothing that the attackers do reaches the model (a
        zero weight, poison fraction or rho).

    Raises:
        ValueError: An argument is out of its range, or there is no attacker.
        TypeError: An argument is not a number, or an attacker no :class:`Attacker`.

    Example:
        >>> h = (np.log(1000) / 2000) ** 0.5
        >>> one = Attacker(weight=1 / 20, scale=10, steps=30, lr=0.001, poison_fraction=0.05)
        >>> crfl_radius(1 - h, h, attackers=[one], lipschitz=logistic_lipschitz(3.0), sigma=0.01)
        1.9858...

    References:
        Xie et al., "CRFL", ICML 2021, Corollary 1.
    """
    budget = np.asarray(kl_budget(p_a, p_b))
    factor = _log_divergence_factor(attackers, np.zeros(len(attackers)), lipschitz, sigma, later)
    lost, unbounded = budget == 0, np.isinf(budget) | np.isneginf(factor)
    log = np.log(np.where(lost | unbounded, 1.0, budget))
    factor = max(factor, -LARGEST)
    with np.errstate(over="ignore"):
        radius = np.exp((log - factor) / 2) * (1 - 16 * EPS * (1 + abs(factor) + np.abs(log)))
    return finished(radius, lost, unbounded)
