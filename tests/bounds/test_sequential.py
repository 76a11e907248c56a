"""The sequential test against exact dynamic programming: nothing here is sampled."""

import mpmath as mp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from strategies import open_probabilities, votes

from rsfl import bounds


def crossing_probability(p, looks, crosses):
    """P(some look crosses) for votes of probability p: the law of the count of those that have not,
    look by look."""
    alive, crossed, n = np.ones(1), 0.0, 0
    for look in looks:
        steps = look - n
        pmf = binom.pmf(np.arange(steps + 1), steps, p)
        alive, n = np.convolve(alive, pmf), look
        stop = crosses(np.arange(n + 1), n)
        crossed += alive[stop].sum()
        alive = np.where(stop, 0.0, alive)
    return crossed


SCHEDULES = {
    "every vote": range(1, 401),
    "every 100": range(100, 4001, 100),
    "growing": [100, 200, 300, 500, 800, 1300, 2100, 3400, 5500],
}


@pytest.mark.parametrize("looks", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("p0", [0.5, 0.6, 0.841, 0.977, 0.9987])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_a_false_decision_is_no_more_likely_than_alpha_at_the_boundary(p0, looks, alpha):
    above = crossing_probability(
        p0, looks, lambda k, n: bounds.sequential_decision(k, n, p0, alpha) == 1
    )
    below = crossing_probability(
        p0, looks, lambda k, n: bounds.sequential_decision(k, n, p0, alpha) == -1
    )
    assert above <= alpha
    assert below <= alpha
    if looks == SCHEDULES["every vote"] and p0 < 0.9:
        assert above > alpha / 20  # the test has power: it does cross


def test_looking_again_and_again_at_a_fixed_n_bound_is_not_a_certificate():
    """The trap: recompute Clopper-Pearson after each batch and stop at the first success."""
    alpha, p0, looks = 0.001, 0.6, range(400, 20_001, 400)
    peeking = crossing_probability(
        p0, looks, lambda k, n: bounds.clopper_pearson_lower(k, n, alpha) > p0
    )
    assert peeking > 5 * alpha
    sequential = crossing_probability(
        p0, looks, lambda k, n: bounds.sequential_decision(k, n, p0, alpha) == 1
    )
    assert sequential <= alpha


@settings(max_examples=30)
@given(votes(2000), open_probabilities(0.02, 0.98))
def test_log_wealth_is_never_above_the_mixture_and_close_to_it(kn, p0):
    k, n = kn
    exact = float(oracles.log_wealth(k, n, p0))
    value = bounds.log_wealth(k, n, p0)
    assert value <= exact + 1e-12 * abs(exact)
    if value > -np.inf:  # below, a tail of the formula underflows, which is on the safe side
        assert value == pytest.approx(exact, abs=1e-7)
    else:
        assert exact < 0


@given(votes(5000), open_probabilities(0.01, 0.99), st.data())
def test_wealth_grows_with_successes_and_shrinks_with_the_threshold(kn, p0, data):
    k, n = kn
    value = bounds.log_wealth(k, n, p0)
    assert bounds.log_wealth(k + 1, n + 1, p0) >= value - 1e-9
    if k < n:
        assert bounds.log_wealth(k + 1, n, p0) >= value - 1e-9
    higher = data.draw(st.floats(p0, 0.995))
    if value > 0:
        assert bounds.log_wealth(k, n, higher) <= value + 1e-9


def test_before_any_vote_the_wealth_is_one():
    assert bounds.log_wealth(0, 0, 0.7) == 0.0
    assert bounds.sequential_decision(0, 0, 0.7, 0.05) == 0


@given(votes(3000), open_probabilities(0.01, 0.99))
def test_the_two_sides_mirror_each_other(kn, p0):
    k, n = kn
    q0 = 1 - p0
    if 1 - q0 == p0:  # exactly mirrored thresholds only
        assert bounds.sequential_decision(k, n, p0, 0.01) == -bounds.sequential_decision(
            n - k, n, q0, 0.01
        )


@pytest.mark.parametrize("p0", [1e-6, 0.3, 0.5, 0.841, 0.9987])
@pytest.mark.parametrize("alpha", [0.9, 0.05, 0.001, 1e-12])
def test_so_many_unanimous_votes_decide_and_one_less_does_not(p0, alpha):
    n = bounds.sequential_minimum_trials(p0, alpha)
    assert bounds.sequential_decision(n, n, p0, alpha) == 1
    assert n == 1 or bounds.sequential_decision(n - 1, n - 1, p0, alpha) == 0


def test_thresholds_next_to_one_take_up_to_2_to_the_53_votes():
    assert bounds.sequential_minimum_trials(1 - 1e-12, 0.001) > 2**42
    with pytest.raises(ValueError, match="p0 is too close to 1 for any number of votes"):
        bounds.sequential_minimum_trials(1 - 2.0**-53, 1e-9)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_thresholds_and_levels_lie_inside_the_unit_interval(end):
    for ask in (
        lambda: bounds.log_wealth(3, 5, end),
        lambda: bounds.sequential_decision(3, 5, end, 0.01),
        lambda: bounds.sequential_minimum_trials(end, 0.01),
    ):
        with pytest.raises(ValueError, match=rf"p0 must lie in \(0, 1\), got {end}"):
            ask()
    with pytest.raises(ValueError, match=rf"alpha must lie in \(0, 1\), got {end}"):
        bounds.sequential_decision(3, 5, 0.5, end)


@pytest.mark.parametrize(
    ("k", "n", "p0"), [(12, 12, 0.5), (40, 41, 0.6), (300, 310, 0.9), (980, 1000, 0.95)]
)
def test_a_decision_means_that_the_wealth_reaches_the_exact_logarithm(k, n, p0):
    """Levels whose logarithms lie some units in the last place above and below a wealth."""
    wealth, decided = bounds.log_wealth(k, n, p0), 0
    for steps in range(-60, 400):
        alpha = float(np.exp(-wealth) * (1 + steps * 2.0**-53))
        if bounds.sequential_decision(k, n, p0, alpha) == 1:
            decided += 1
            with mp.workdps(40):
                assert -mp.log(mp.mpf(alpha)) <= mp.mpf(wealth)
    assert 0 < decided < 400
