"""The second derivation of every number: against brute force and 60 digits, and that it is one."""

import ast
import itertools
import math
from fractions import Fraction
from pathlib import Path

import mpmath as mp
import numpy as np
import oracles
import pytest
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

import rsfl
from rsfl import bounds, noise
from rsfl.verify import arithmetic

LEVELS = st.integers(1, 60).map(lambda e: 0.7**e)
GAUSSIAN = {"name": "Gaussian", "sigma": 0.5}


def encloses(number: arithmetic.Number, value: mp.mpf, digits: int = 14) -> bool:
    """Whether 60 digits and the ball agree: the ball is that narrow and holds the value."""
    ball = number.ball(50)
    return (
        abs(mp.mpf(ball.mid().str(40, radius=False)) - value) <= abs(value) * mp.mpf(10) ** -digits
    )


def test_no_code_is_shared_with_the_bounds():
    room = Path(rsfl.__file__).parent / "verify"
    alone = ("rsfl.verify.arithmetic", "rsfl.verify.conditions")
    paths = [room / "recursion.py", room / "conditions.py", *(room / "arithmetic").glob("*.py")]
    assert len(paths) > 5
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("scipy", "numpy", "torch")), f"{path}: {name}"
                if name.startswith("rsfl"):
                    assert name.startswith(alone), f"{path}: {name}"


@given(st.integers(1, 40), st.data(), st.fractions(0, 1, max_denominator=64))
def test_binomial_tails_are_exact_sums(n, data, p):
    k = data.draw(st.integers(0, n + 1))
    whole = sum(oracles.binomial_pmf(n, p)[k:], Fraction(0))
    with ctx.workprec(128):
        found = arithmetic.binomial_tail(k, n, arb(p.numerator) / p.denominator)
        wanted = arb(whole.numerator) / whole.denominator
        assert found.overlaps(wanted)
        assert abs(found - wanted) < arb(2) ** -60


@given(st.integers(1, 10**9), st.data())
def test_binomial_tails_of_many_trials(n, data):
    k = data.draw(st.integers(0, n))
    p = data.draw(st.floats(1e-9, 1 - 1e-9))
    with ctx.workprec(160):
        found = arithmetic.binomial_tail(k, n, arb(p))
        other = arb(p).beta_lower(k, n - k + 1, 1) if k else arb(1)
        assert found.overlaps(other)


@pytest.mark.parametrize(
    ("k", "n", "alpha"),
    [(990, 1000, 1e-3), (5, 10**6, 1e-3), (49, 50, 1e-6), (1, 10**9, 1e-12), (49, 10**4, 1e-300)],
)
def test_confidence_bounds_solve_their_equation(k, n, alpha):
    def decimal(number):
        return mp.mpf(number.ball(60).mid().str(50, radius=False))

    low = decimal(arithmetic.lower_probability(k, n, alpha))
    assert abs(oracles.binomial_tail(k, n, low) / mp.mpf(alpha) - 1) < 1e-12
    if n <= 10**4:  # few terms, or few of them left
        high = decimal(arithmetic.upper_probability(k, n, alpha))
        below = mp.fsum(mp.binomial(n, j) * high**j * (1 - high) ** (n - j) for j in range(k + 1))
        assert abs(below / mp.mpf(alpha) - 1) < 1e-9


@given(st.integers(1, 10**7), st.data(), LEVELS)
def test_a_lower_bound_is_told_from_its_neighbours(n, data, alpha):
    k = data.draw(st.integers(1, n))
    number = arithmetic.lower_probability(k, n, alpha)
    near = float(number.ball().mid())
    assert number.proves_at_least(near * (1 - 1e-13))
    assert not number.proves_at_least(min(near * (1 + 1e-13), 1.0))
    assert not number.proves_at_least(math.nan)
    claimed = bounds.clopper_pearson_lower(k, n, alpha)
    assert number.proves_at_least(claimed)
    assert not number.proves_at_least(claimed * (1 + 3e-9))


def test_ends_of_confidence_bounds():
    assert arithmetic.lower_probability(0, 5, 0.1).compare(0.0) == 0
    assert arithmetic.upper_probability(5, 5, 0.1).compare(1.0) == 0
    assert encloses(arithmetic.lower_probability(7, 7, 0.1), mp.mpf(0.1) ** (mp.mpf(1) / 7))
    assert encloses(
        arithmetic.lower_probability(9, 10, 0.1, "hoeffding"),
        mp.mpf(9) / 10 - mp.sqrt(mp.log(1 / mp.mpf(0.1)) / 20),
    )
    assert arithmetic.upper_probability(9, 10, 0.1, "hoeffding").compare(1.0) == 0


@pytest.mark.parametrize(("k", "n", "p0"), [(60, 100, 0.5), (12, 12, 0.5), (940, 1000, 0.9)])
def test_wealth_is_the_integral_over_the_prior(k, n, p0):
    assert encloses(arithmetic.log_wealth(k, n, p0), oracles.log_wealth(k, n, p0), 12)


def test_decisions_of_the_sequential_test():
    assert arithmetic.decides(12, 12, 0.5, 0.001)
    assert not arithmetic.decides(11, 11, 0.5, 0.001)
    assert not arithmetic.decides(0, 0, 0.5, 0.001)


@given(st.floats(0.5, 1 - 1e-15), st.floats(0, 1))
def test_radii_are_those_of_sixty_digits(p, share):
    q = share * (1 - p)
    a = mp.mpf(p)
    if p > 0.5:
        z = oracles.normal_quantile(p)
        assert encloses(arithmetic.radius(GAUSSIAN, p), z / 2)
        assert encloses(
            arithmetic.radius({"name": "Rotation", "half_width": 0.3}, p), mp.mpf(0.3) * (2 * a - 1)
        )
        wanted = -mp.mpf(0.4) * mp.log(2 * (1 - a))
        ratio = mp.mpf(0.4) / 2 * mp.log(a / (1 - a))
        found = arithmetic.radius({"name": "Laplace", "scale": 0.4}, p)
        assert encloses(found, max(wanted, ratio))
    if p > q > 0:
        gap = (oracles.normal_quantile(p) - oracles.normal_quantile(q)) / 4
        assert encloses(arithmetic.radius(GAUSSIAN, p, q), gap, 12)


def test_a_lost_vote_has_no_radius_and_a_certain_one_no_limit():
    assert arithmetic.radius(GAUSSIAN, 0.4).compare(0.0) == 0
    assert arithmetic.radius(GAUSSIAN, 0.5, 0.5).compare(0.0) == 0
    assert arithmetic.radius(GAUSSIAN, 1.0).proves_at_least(math.inf)
    assert not arithmetic.radius(GAUSSIAN, 0.999).proves_at_least(math.inf)
    with pytest.raises(ValueError, match="'Cauchy' is none of"):
        arithmetic.radius({"name": "Cauchy"}, 0.9)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_the_table_of_rounded_noise_is_as_close_as_is_said(sigma):
    table = noise.rounded._magnitude_table(sigma, 256)
    assert arithmetic.total_variation(sigma, 256) == Fraction(len(table) + 1, 2**62)
    with ctx.workprec(256):
        scale = arb(sigma) * 255 * arb(2).sqrt()
        beyond = [(arb(2 * m - 1) / 2 / scale).erfc() for m in range(1, len(table) + 200)]
        drawn = [arb(entry) / 2**62 for entry in table] + [arb(0)] * 199
        # P(N = 0) and, for either sign, half of P(|N| = m)
        errors = [d - b for d, b in zip([arb(1), *drawn], [arb(1), *beyond], strict=True)]
        distance = sum((abs(one - other) for one, other in itertools.pairwise(errors)), arb(0)) / 2
        paid = arithmetic.total_variation(sigma, 256)
        assert distance < arb(paid.numerator) / paid.denominator


def test_rounded_noise_pays_at_both_ends():
    law = {"name": "RoundedGaussian", "sigma": 0.25, "levels": 256}
    dim = 10**9
    paid = mp.mpf(arithmetic.total_variation(0.25, 256).numerator) * dim / 2**60 / 4
    paid = mp.mpf(float(arithmetic.total_variation(0.25, 256))) * dim
    z = [mp.sqrt(2) * mp.erfinv(2 * (p) - 1) for p in (mp.mpf(0.9) - paid, mp.mpf(0.5) + paid)]
    assert encloses(arithmetic.radius(law, 0.9, dim=dim), (z[0] - z[1]) / 4, 10)
    split = arithmetic.radius(law, 0.9, 0.05, dim=dim)
    whole = arithmetic.radius({"name": "Gaussian", "sigma": 0.25}, 0.9, 0.05)
    assert split.ball() < whole.ball()
    assert split.proves_at_least(float(whole.ball().mid()) * (1 - 1e-5))


@pytest.mark.parametrize(("a", "b"), [(0.99, 0.01), (0.9, 0.05), (0.6, 0.4), (0.51, 0.48)])
def test_older_radii_are_suprema(a, b):
    beta = np.linspace(0, min(1, math.log(a / b) / 2) * (1 - 1e-12), 100_001)[1:]
    best = np.max(
        beta / np.sqrt(2 * np.log(1.25 * (1 + np.exp(beta)) / (a - np.exp(2 * beta) * b)))
    )
    assert float(arithmetic.lecuyer_radius(a, b, 1.0).ball().mid()) == pytest.approx(best, rel=1e-7)
    order = np.exp(np.linspace(-8, 4, 100_001))
    mean = ((a**-order + b**-order) / 2) ** (-1 / order)
    best = np.max(np.sqrt(-2 / (1 + order) * np.log(1 - a - b + 2 * mean)))
    assert float(arithmetic.li_radius(a, b, 1.0).ball().mid()) == pytest.approx(best, rel=1e-7)
    gaussian = arithmetic.radius({"name": "Gaussian", "sigma": 1.0}, a, b)
    assert arithmetic.li_radius(a, b, 1.0).ball() < gaussian.ball()


def test_crfl_as_published():
    h = (math.log(1000) / 2000) ** 0.5
    lipschitz = bounds.logistic_lipschitz(3.0)
    found = arithmetic.crfl_radius(1 - h, h, [(1 / 20, 10, 30, 0.001, 0.05)], lipschitz, 0.01)
    assert float(found.ball().mid()) == pytest.approx(1.98583, abs=5e-6)
    assert arithmetic.crfl_radius(0.3, 0.5, [(0.1, 1, 1, 1, 1)], 1.0, 0.1).compare(0.0) == 0
    later = [(3.0, 0.5), (math.inf, 0.1)]
    shrunk = arithmetic.crfl_divergence([0.1], [(0.1, 1, 1, 0.1, 1)], 2.0, 0.1, later)
    plain = arithmetic.crfl_divergence([0.1], [(0.1, 1, 1, 0.1, 1)], 2.0, 0.1)
    factor = 2 * mp.ncdf(6) - 1
    assert encloses(shrunk, mp.mpf(plain.ball(60).mid().str(40, radius=False)) * factor)


def test_votes_and_margins_of_linear_models():
    logits, norm, sigma = [1.0, 0.3, -0.5], 2.0, 0.5
    votes = arithmetic.linear_votes(logits, norm, sigma)
    assert abs(sum((vote.ball() for vote in votes), arb(0)) - 1) < 1e-15
    for vote, found in zip(
        votes, bounds.linear_votes([logits], [norm], sigma=sigma)[0], strict=True
    ):
        assert float(vote.ball().mid()) == pytest.approx(found, abs=1e-14)
    two = arithmetic.linear_votes([1.0, 0.0], 2.0, 0.5)[0]
    assert encloses(two, mp.ncdf(1 / mp.sqrt(2)))
    assert encloses(arithmetic.margin_radius(logits, norm), (1 - mp.mpf(0.3)) / mp.sqrt(8))
    assert arithmetic.margin_radius([1.0, 1.0], norm).compare(0.0) == 0


@given(st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(any))
def test_groups_are_replaced_one_after_the_other(votes):
    label, replaced = bounds.group_votes(votes)
    assert arithmetic.group_votes(votes) == (label, replaced)


def test_what_numbers_answer():
    third = arithmetic.exact(Fraction(1, 3))
    assert third.proves_at_least(1 / 3) == (Fraction(1 / 3) <= Fraction(1, 3))
    assert third.proves_at_most(1 / 3) == (Fraction(1 / 3) >= Fraction(1, 3))
    assert arithmetic.exact(0.25).compare(0.25) == 0
    assert str(arithmetic.exact(0.25)) == "0.25"
    assert arithmetic.linf_radius(0.5, 4).compare(0.25) == 0
