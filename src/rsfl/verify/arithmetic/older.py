"""Older radii, for comparison only."""

from collections.abc import Callable

from flint import arb, ctx

from rsfl.verify.arithmetic.number import Number, Real, exact

__all__ = ["lecuyer_radius", "li_radius"]


def _highest(value: Callable[[arb], arb], low: arb, high: arb) -> Number:
    """A curve with one hill at its top, as nearly as it is found: never above its supremum."""

    def at(x: arb) -> arb:
        found = value(x)
        return found.mid() if found.is_finite() else arb(0)

    with ctx.workprec(160):
        nodes = [(low + (high - low) * i / 256).mid() for i in range(257)]
        best = max(range(257), key=lambda i: float(at(nodes[i])))
        left, right = nodes[max(best - 1, 0)], nodes[min(best + 1, 256)]
        golden = (arb(5).sqrt() - 1) / 2
        for _ in range(160):
            inner, outer = (right - golden * (right - left)), (left + golden * (right - left))
            if at(inner.mid()) >= at(outer.mid()):
                right = outer.mid()
            else:
                left = inner.mid()
        top = ((left + right) / 2).mid()
    return Number(lambda: value(top).max(arb(0)))


def lecuyer_radius(p_a: Real, p_b: Real, sigma: float) -> Number:
    """A radius just below the supremum of Lecuyer et al.'s, in the form of Cohen et al. 2019."""
    a, b = exact(p_a), exact(p_b)

    def value(beta: arb) -> arb:
        room = a.enclose() - (2 * beta).exp() * b.enclose()
        if not room > 0 or not beta > 0:
            return arb(0)
        return arb(sigma) * beta / (2 * (arb(1.25) * (1 + beta.exp()) / room).log()).sqrt()

    with ctx.workprec(160):
        p, q = a.enclose(), b.enclose()
        if not p > q:
            return exact(0)
        high = arb(1) if q == 0 else ((p / q).log() / 2).min(arb(1))
    return _highest(value, arb(0), high)


def li_radius(p_a: Real, p_b: Real, sigma: float) -> Number:
    """A radius just below the supremum of Li et al.'s, in the form of Cohen et al. 2019."""
    a, b = exact(p_a), exact(p_b)
    with ctx.workprec(160):
        p, q = a.enclose(), b.enclose()
        if not p > q:
            return exact(0)
        if p == 1 and q == 0:
            return Number(arb.pos_inf)

    def value(log_order: arb) -> arb:
        order = log_order.exp()  # alpha - 1
        p, q = a.enclose(), b.enclose()
        # At p_B = 0 the mean of order below 0 is 0.
        mean = (
            arb(0) if q == 0 else (((-order * p.log()).exp() + (-order * q.log()).exp()) / 2).log()
        )
        mean = arb(0) if q == 0 else (-mean / order).exp()
        inside = 1 - p - q + 2 * mean
        if not inside > 0:
            return arb(0)
        drop = -2 / (1 + order) * inside.log()
        return arb(sigma) * drop.sqrt() if drop > 0 else arb(0)

    return _highest(value, arb(-30), arb(12))
