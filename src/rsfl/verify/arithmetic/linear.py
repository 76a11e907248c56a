"""Linear models: exact logits, margins and votes."""

from collections.abc import Callable, Sequence

from flint import acb, arb

from rsfl.verify.arithmetic.number import Number, Real, exact
from rsfl.verify.arithmetic.radii import normal_cdf

__all__ = ["affine", "length", "linear_votes", "margin_radius"]


def affine(weights: Sequence[float], x: Sequence[float], bias: float) -> Number:
    """The exact value of an affine map with these coefficients."""

    def enclose() -> arb:
        total = arb(bias)
        for weight, value in zip(weights, x, strict=True):
            total += arb(weight) * value
        return total

    return Number(enclose)


def length(x: Sequence[float]) -> Number:
    """The exact l2 norm of a vector."""
    return Number(lambda: sum((arb(value) ** 2 for value in x), arb(0)).sqrt())


def margin_radius(logits: Sequence[Real], input_norm: Real) -> Number:
    """The distance to the closest parameters of a linear model with another label.

    Args:
        logits: The exact logits of one input.
        input_norm: The exact norm of (x, 1).
    """
    values, norm = [exact(value) for value in logits], exact(input_norm)

    def enclose() -> arb:
        found = [value.enclose() for value in values]
        gaps = []
        for at, first in enumerate(found):
            others = [first - other for i, other in enumerate(found) if i != at]
            gaps.append(_fold(arb.min, others))
        # The label's smallest lead; every other class has a negative one.
        lead = _fold(arb.max, gaps)
        return lead.max(arb(0)) / (arb(2).sqrt() * norm.enclose())

    return Number(enclose)


def _fold(operation: Callable[[arb, arb], arb], values: Sequence[arb]) -> arb:
    total = values[0]
    for value in values[1:]:
        total = operation(total, value)
    return total


def linear_votes(logits: Sequence[float], input_norm: float, sigma: float) -> list[Number]:
    """The probability of each class of a linear model under Gaussian noise on its parameters.

    Args:
        logits: Logits of one input.
        input_norm: Norm of (x, 1).
        sigma: Standard deviation of the noise.
    """

    def vote(label: int) -> Number:
        def enclose() -> arb:
            spread = arb(sigma) * input_norm
            leads = [
                (arb(logits[label]) - other) / spread
                for i, other in enumerate(logits)
                if i != label
            ]

            def integrand(t: acb, _: bool) -> acb:
                product = (-t * t / 2).exp() / (2 * acb.pi()).sqrt()
                for lead in leads:
                    product *= (-(t + lead) / acb(2).sqrt()).erfc() / 2
                return product

            reach = arb(40)  # beyond it the density leaves less than 1e-349
            found = acb.integral(integrand, -reach, reach).real
            return found + (normal_cdf(-reach) * 2 * arb(0.5, 0.5))

        return Number(enclose)

    return [vote(label) for label in range(len(logits))]
