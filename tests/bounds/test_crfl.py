import mpmath as mp
import numpy as np
import oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import probabilities, scales

from rsfl import bounds
from rsfl.bounds import Attacker
from rsfl.bounds.crfl import _log_contraction

mp.mp.dps = oracles.DIGITS


def attackers(max_size=4):
    return st.lists(
        st.builds(
            Attacker,
            weight=st.floats(1e-6, 1),
            scale=st.floats(0.1, 1000),
            steps=st.integers(1, 500),
            lr=scales(),
            poison_fraction=st.floats(1e-6, 1),
        ),
        min_size=1,
        max_size=max_size,
    )


def rounds():
    return st.lists(st.tuples(st.floats(1e-3, 50), st.floats(1e-3, 5)), max_size=30)


def exact_log_product(later):
    return mp.fsum(mp.log(mp.erf(mp.mpf(rho) / mp.mpf(sigma) / mp.sqrt(2))) for rho, sigma in later)


def exact_divergence(magnitudes, who, lipschitz, sigma, later):
    """Theorem 2 in 60 digits."""
    moved = [
        mp.mpf(a.weight) * a.scale * a.steps * a.lr * a.poison_fraction * lipschitz * m
        for a, m in zip(who, map(mp.mpf, magnitudes), strict=True)
    ]
    total = 2 * len(who) * mp.fsum(x * x for x in moved) / mp.mpf(sigma) ** 2
    return total * mp.exp(exact_log_product(later))


def exact_budget(p_a, p_b):
    return -mp.log1p(-((mp.sqrt(mp.mpf(p_a)) - mp.sqrt(mp.mpf(p_b))) ** 2))


@given(
    probabilities(), probabilities(), attackers(), st.floats(0.1, 50), st.floats(1e-3, 1), rounds()
)
def test_radius_is_corollary_one_and_never_above_it(p_a, p_b, who, lipschitz, sigma, later):
    value = bounds.crfl_radius(
        p_a, p_b, attackers=who, lipschitz=lipschitz, sigma=sigma, later=later
    )
    if p_a <= p_b:
        assert value == 0
    elif (p_a, p_b) == (1, 0):
        assert value == np.inf
    else:
        exact = mp.sqrt(
            exact_budget(p_a, p_b) / exact_divergence([1] * len(who), who, lipschitz, sigma, later)
        )
        assert value <= exact
        if (
            exact_budget(p_a, p_b) > 1e-290
        ):  # below, the budget is a subnormal number, or rounds down to 0
            assert float(value / exact) == pytest.approx(1, rel=1e-9)


@given(attackers(), st.data(), st.floats(0.1, 50), st.floats(1e-3, 1), rounds())
def test_divergence_is_theorem_two_and_never_below_it(who, data, lipschitz, sigma, later):
    magnitudes = data.draw(st.lists(st.floats(1e-6, 10), min_size=len(who), max_size=len(who)))
    value = bounds.crfl_divergence(
        magnitudes, attackers=who, lipschitz=lipschitz, sigma=sigma, later=later
    )
    exact = exact_divergence(magnitudes, who, lipschitz, sigma, later)
    assert value >= exact
    assert float(value / exact) == pytest.approx(1, rel=1e-9)


def test_factors_of_one_attacker_that_cancel_are_paid_for_beside_a_plain_one():
    rng = np.random.default_rng(2)
    plain = Attacker(1.0, 1.0, 1, 1.0, 1.0)
    for _ in range(200):
        far = 10.0 ** rng.uniform(200, 290)
        who = [Attacker(1 / far, far * rng.uniform(1, 9), 1, 1.0, 1.0), plain]
        value = bounds.crfl_divergence(1.0, attackers=who, lipschitz=1.0, sigma=1.0)
        exact = exact_divergence([1, 1], who, 1.0, 1.0, [])
        assert exact <= value <= exact * (1 + mp.mpf("1e-10"))


@given(probabilities(), probabilities())
def test_budget_is_never_above_the_exact_one(p_a, p_b):
    value = bounds.kl_budget(p_a, p_b)
    if p_a <= p_b:
        assert value == 0
    elif (p_a, p_b) == (1, 0):
        assert value == np.inf
    else:
        exact = exact_budget(p_a, p_b)
        assert value <= exact
        if exact > 1e-290:
            assert float(value / exact) == pytest.approx(1, rel=1e-12)
    assert bounds.kl_budget(p_a) == bounds.kl_budget(p_a, 1 - p_a) or p_a < 0.5


@given(st.floats(-300, -1), st.floats(-15, 0))
@example(-289.0, -0.001)
@example(-288.7, -9.5)
def test_budget_of_tiny_probabilities_is_never_above_the_exact_one(exponent, distance):
    p_a = 10.0**exponent
    p_b = p_a * (1 - 10.0**distance)
    with mp.workdps(700):
        assert bounds.kl_budget(p_a, p_b) <= exact_budget(p_a, p_b)


@given(st.just(0.0) | st.floats(1e-280, 1e3), scales())
def test_contraction_is_never_below_the_exact_one(rho, sigma):
    value, exact = bounds.contraction(rho, sigma), mp.erf(mp.mpf(rho) / mp.mpf(sigma) / mp.sqrt(2))
    assert exact <= value <= 1
    assert float(value - exact) <= 1e-14 * value


def test_logarithms_of_contractions_are_never_below_the_exact_ones():
    rng = np.random.default_rng(3)
    sigma = 10 ** rng.uniform(-3, 3, 400)
    rho = sigma * 10 ** rng.uniform(-6, np.log10(7), 400)
    for r, s, value in zip(rho, sigma, _log_contraction(rho, sigma), strict=True):
        exact = exact_log_product([(r, s)])
        assert exact <= value <= min(exact * (1 - mp.mpf("1e-12")) + 1e-14, 0)


def test_radii_of_tiny_budgets_pay_for_the_rounding_of_their_logarithms():
    one = [Attacker(1.0, 1.0, 1, 1.0, 1.0)]
    for exponent in np.linspace(-190, -10, 300):
        p_a = float(10.0**exponent)
        value = bounds.crfl_radius(p_a, 0.0, attackers=one, lipschitz=1.0, sigma=1.0)
        exact = mp.sqrt(exact_budget(p_a, 0.0) / 2)
        assert exact * (1 - mp.mpf("1e-11")) <= value <= exact


@given(st.floats(0, 1e8))
def test_lemma_one_is_never_below_the_exact_root(rho):
    value, exact = bounds.logistic_lipschitz(rho), mp.sqrt(2 + 2 * mp.mpf(rho) + mp.mpf(rho) ** 2)
    assert exact <= value <= exact * (1 + 1e-14)


def radius(p_a=0.9, p_b=0.1, **changes):
    arguments = {
        "attackers": [Attacker(0.05, 10, 30, 0.001, 0.05)],
        "lipschitz": 4.0,
        "sigma": 0.01,
    } | changes
    return bounds.crfl_radius(p_a, p_b, **arguments)


@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_later_rounds_and_of_attackers_is_irrelevant(later, random):
    shuffled = random.sample(later, len(later))
    assert radius(later=shuffled) == pytest.approx(radius(later=later), rel=1e-12)
    two = [Attacker(0.05, 10, 30, 0.001, 0.05), Attacker(0.2, 1, 3, 0.1, 0.5)]
    assert radius(attackers=two) == pytest.approx(radius(attackers=two[::-1]), rel=1e-12)


@given(st.sampled_from(["weight", "scale", "steps", "lr", "poison_fraction"]), st.integers(2, 9))
def test_a_stronger_attacker_shrinks_the_radius_in_proportion(field, factor):
    weak = {"weight": 0.05, "scale": 10, "steps": 30, "lr": 0.001, "poison_fraction": 0.05}
    strong = weak | {field: weak[field] * factor}
    assert radius(attackers=[Attacker(**strong)]) == pytest.approx(
        radius(attackers=[Attacker(**weak)]) / factor
    )


def test_every_argument_moves_the_radius_the_right_way():
    one = Attacker(0.05, 10, 30, 0.001, 0.05)
    assert radius(sigma=0.02) == pytest.approx(2 * radius())
    assert radius(lipschitz=8.0) == pytest.approx(radius() / 2)
    assert radius(attackers=[one, one]) == pytest.approx(radius() / 2)
    assert radius(later=[(1.0, 1.0)]) > radius()
    assert radius(later=[(1.0, 1.0), (2.0, 1.0)]) > radius(later=[(1.0, 1.0)])
    assert radius(later=[(2.0, 1.0)]) < radius(later=[(1.0, 1.0)])
    assert radius(0.95) > radius() > radius(0.9, 0.2)


def test_worked_value_of_the_published_setting():
    h = np.sqrt(np.log(1000) / 2000)  # Hoeffding at M = 1000, alpha = 0.001, unanimous votes
    lipschitz = bounds.logistic_lipschitz(3.0)
    assert radius(1 - h, h, lipschitz=lipschitz) == pytest.approx(1.98583, abs=5e-6)
    # at rho / sigma = 300 a hundred later rounds change nothing in float64, and must not add
    assert radius(1 - h, h, lipschitz=lipschitz, later=[(3.0, 0.01)] * 100) == pytest.approx(
        1.98583, abs=5e-6
    )


def test_lost_votes_of_the_published_code_get_nothing():
    assert radius(0.3, 0.5) == 0
    assert radius(0.5 - 0.06, 0.5 + 0.06) == 0


def test_products_of_many_factors_keep_their_digits():
    near_one = [(7.0, 1.0)] * 100_000  # each factor is 1 - 2.6e-12
    gain = radius(later=near_one) / radius() - 1
    exact = mp.expm1(-exact_log_product(near_one[:1]) * 50_000)
    assert gain == pytest.approx(float(exact), rel=1e-4)
    near_zero = radius(
        later=[(1e-3, 1.0)] * 150
    )  # the product is 1e-465: below every float, and not zero
    exact = mp.mpf(radius()) * mp.exp(-exact_log_product([(1e-3, 1.0)]) * 75)
    assert float(near_zero / exact) == pytest.approx(1, rel=1e-9)
    assert (
        radius(later=[(1e-3, 1.0)] * 20_000) == np.finfo(np.float64).max
    )  # finite, since the exact one is
    assert radius(0.3, 0.5, later=[(1e-3, 1.0)] * 20_000) == 0


def test_one_attacker_who_reaches_nothing_does_not_absolve_the_others():
    one = bounds.Attacker(0.05, 10, 30, 0.001, 0.05)
    idle = bounds.Attacker(0.0, 10, 30, 0.001, 0.05)
    settings = {"lipschitz": 4.0, "sigma": 0.01}
    alone = bounds.crfl_radius(0.9, 0.1, attackers=[one], **settings)
    both = bounds.crfl_radius(0.9, 0.1, attackers=[idle, one], **settings)
    assert both == pytest.approx(alone / 2**0.5, rel=1e-12)  # the formula counts heads
    assert bounds.crfl_radius(0.9, 0.1, attackers=[idle, idle], **settings) == np.inf
    assert bounds.crfl_divergence(1.0, attackers=[idle, one], **settings) > 0
    assert bounds.crfl_divergence([0.0, 1.0], attackers=[one, one], **settings) > 0


def test_what_cannot_reach_the_model_is_harmless():
    assert radius(attackers=[Attacker(0.0, 10, 30, 0.001, 0.05)]) == np.inf
    assert radius(attackers=[Attacker(0.05, 10, 30, 0.001, 0.0)]) == np.inf
    assert radius(later=[(0.0, 1.0)]) == np.inf
    assert radius([0.3, 0.9], [0.5, 0.1], later=[(0.0, 1.0)]).tolist() == [0.0, np.inf]
    assert (
        bounds.crfl_divergence(
            0.0, attackers=[Attacker(0.1, 1, 1, 1.0, 1.0)], lipschitz=1.0, sigma=1.0
        )
        == 0
    )


def test_arrays():
    p_a, p_b = np.array([0.9, 0.6, 0.4]), np.array([0.1, 0.3, 0.5])
    np.testing.assert_allclose(
        radius(p_a, p_b), [radius(a, b) for a, b in zip(p_a, p_b, strict=True)], rtol=1e-13
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: radius(attackers=[]), r"attackers must not be empty, got \[\]"),
        (lambda: radius(sigma=-0.1), r"sigma must lie in \(0, inf\), got -0.1"),
        (lambda: radius(lipschitz=np.nan), r"lipschitz must lie in \[0, inf\), got nan"),
        (lambda: radius(later=[(1.0, -1.0)]), r"sigma must lie in \(0, inf\), got -1.0 at index 0"),
        (lambda: radius(later=[1.0, 2.0]), r"later must be a sequence of \(rho, sigma\) pairs"),
        (lambda: radius(1.1), r"p_a must lie in \[0, 1\], got 1.1"),
        (lambda: Attacker(1.5, 1, 1, 1.0, 0.5), r"weight must lie in \[0, 1\], got 1.5"),
        (lambda: Attacker(0.5, np.inf, 1, 1.0, 0.5), r"scale must lie in \(0, inf\), got inf"),
        (lambda: Attacker(0.5, 1, 1, np.inf, 0.5), r"lr must lie in \(0, inf\), got inf"),
        (lambda: radius(sigma=np.inf), r"sigma must lie in \(0, inf\), got inf"),
        (lambda: Attacker(0.5, 0, 1, 1.0, 0.5), r"scale must lie in \(0, inf\), got 0"),
        (lambda: Attacker(0.5, 1, 0, 1.0, 0.5), "steps must be a count of at least 1.*got 0"),
        (lambda: Attacker(0.5, 1, 1.5, 1.0, 0.5), "steps must be whole, got 1.5"),
        (lambda: Attacker(0.5, 1, 1, -1.0, 0.5), r"lr must lie in \(0, inf\), got -1.0"),
        (lambda: Attacker(0.5, 1, 1, 1.0, 2.0), r"poison_fraction must lie in \[0, 1\], got 2.0"),
        (lambda: bounds.contraction(1.0, np.inf), r"sigma must lie in \(0, inf\), got inf"),
        (lambda: bounds.contraction(1.0, 0.0), r"sigma must lie in \(0, inf\), got 0.0"),
        (lambda: bounds.contraction(-1.0, 1.0), r"rho must lie in \[0, inf\], got -1.0"),
        (lambda: bounds.logistic_lipschitz(-1.0), r"rho must lie in \[0, inf\], got -1.0"),
        (lambda: bounds.kl_budget(0.5, 1.5), r"p_b must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_values_are_named_and_quoted(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_attackers_are_attackers():
    for function in (lambda who: radius(attackers=who), lambda who: divergence_of(who)):
        with pytest.raises(
            TypeError, match=r"attackers must be a sequence of bounds.Attacker, got \(0.05, 10"
        ):
            function([(0.05, 10, 30, 0.001, 0.05)])


def divergence_of(who):
    return bounds.crfl_divergence(0.1, attackers=who, lipschitz=4.0, sigma=0.01)
