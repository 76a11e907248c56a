"""CRFL as it was published."""

from collections.abc import Sequence
from math import inf

from flint import arb

from rsfl.verify.arithmetic.number import Number, Real, complement, exact

__all__ = ["crfl_divergence", "crfl_radius", "kl_budget"]


def kl_budget(p_a: Real, p_b: Real | None = None) -> Number:
    """The divergence below which the published theorem keeps a vote."""
    a = exact(p_a)
    b = complement(a) if p_b is None else exact(p_b)

    def enclose() -> arb:
        p, q = a.enclose(), b.enclose()
        if p <= q:
            return arb(0)
        if p == 1 and q == 0:
            return arb.pos_inf()
        return -(1 - (p.sqrt() - q.sqrt()) ** 2).log()

    return Number(enclose)


def _divergence_factor(
    attackers: Sequence[Sequence[float]],
    magnitudes: Sequence[float],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]],
) -> arb:
    total = arb(0)
    for factors, magnitude in zip(attackers, magnitudes, strict=True):
        reach = arb(lipschitz) * magnitude
        for factor in factors:
            reach *= factor
        total += reach**2
    total *= 2 * len(attackers)
    total /= arb(sigma) ** 2
    for rho, noise in later:
        if rho != inf:
            total *= (arb(rho) / noise / arb(2).sqrt()).erf()
    return total


def crfl_divergence(
    magnitudes: Sequence[float],
    attackers: Sequence[Sequence[float]],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]] = (),
) -> Number:
    """Theorem 2 of CRFL.

    Args:
        magnitudes: Norm of each attacker's backdoor.
        attackers: Of each: its weight, scale, steps, learning rate and poisoned share.
        lipschitz: The constant of the loss gradient in the data.
        sigma: Noise of the attacked round.
        later: (rho, sigma) of each later round.
    """
    return Number(lambda: _divergence_factor(attackers, magnitudes, lipschitz, sigma, later))


def crfl_radius(
    p_a: Real,
    p_b: Real | None,
    attackers: Sequence[Sequence[float]],
    lipschitz: float,
    sigma: float,
    later: Sequence[tuple[float, float]] = (),
) -> Number:
    """Corollary 1 of CRFL; arguments as for :func:`crfl_divergence`."""
    budget = kl_budget(p_a, p_b)

    def enclose() -> arb:
        allowed = budget.enclose()
        factor = _divergence_factor(attackers, [1.0] * len(attackers), lipschitz, sigma, later)
        if allowed == 0:
            return arb(0)
        return arb.pos_inf() if factor == 0 else (allowed / factor).sqrt()

    return Number(enclose)
