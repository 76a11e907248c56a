import mpmath as mp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint
from strategies import alphas, open_probabilities, votes

from rsfl import bounds

LEVELS = (0.4, 0.05, 1e-3, 1e-6, 1e-12)


def assert_tight_lower(k, n, alpha, p):
    """p is never above the exact lower bound and within 1e-9 of it: the exact tail at p and just
    above p says so."""
    if k == 0:
        assert p == 0
        return
    assert oracles.binomial_tail(k, n, p) <= alpha
    with mp.workdps(oracles.DIGITS):
        above = mp.mpf(p) * (1 + mp.mpf("1e-9"))
    assert above >= 1 or oracles.binomial_tail(k, n, above) > alpha


def assert_tight_upper(k, n, alpha, p):
    if k == n:
        assert p == 1
        return
    assert 1 - oracles.binomial_tail(k + 1, n, p) <= alpha
    with mp.workdps(oracles.DIGITS):
        below = mp.mpf(p) * (1 - mp.mpf("1e-9"))
        assert 1 - oracles.binomial_tail(k + 1, n, below) > alpha


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_clopper_pearson_every_count(n):
    k = np.arange(n + 1)
    for alpha in LEVELS:
        lower, upper = (
            bounds.clopper_pearson_lower(k, n, alpha),
            bounds.clopper_pearson_upper(k, n, alpha),
        )
        for i in k:
            assert_tight_lower(int(i), n, alpha, lower[i])
            assert_tight_upper(int(i), n, alpha, upper[i])


@pytest.mark.parametrize("alpha", [0.4, 1e-3, 1e-12])
def test_clopper_pearson_every_count_of_a_thousand(alpha):
    k = np.arange(1001)
    lower, upper = (
        bounds.clopper_pearson_lower(k, 1000, alpha),
        bounds.clopper_pearson_upper(k, 1000, alpha),
    )
    for i in k:
        assert_tight_lower(int(i), 1000, alpha, lower[i])
        assert_tight_upper(int(i), 1000, alpha, upper[i])


def wide_sample(n, rng):
    """Counts at both ends, near them, and in between."""
    near = np.unique(np.rint(np.geomspace(1, n / 2, 6)).astype(np.int64))
    return np.unique(np.concatenate([[0, n], near, n - near, rng.integers(0, n + 1, 2)]))


@pytest.mark.parametrize("n", [10**5, 10**7, 10**9])
def test_clopper_pearson_up_to_a_billion_trials(n):
    k = wide_sample(n, np.random.default_rng(n))
    for alpha in LEVELS[::2]:
        lower, upper = (
            bounds.clopper_pearson_lower(k, n, alpha),
            bounds.clopper_pearson_upper(k, n, alpha),
        )
        for i, lo, hi in zip(k.tolist(), lower, upper, strict=True):
            assert_tight_lower(i, n, alpha, lo)
            assert_tight_upper(i, n, alpha, hi)


@pytest.mark.parametrize("n", [10**6, 10**9])
def test_close_to_one_as_many_digits_are_right_of_what_is_left(n):
    failures = np.array([1, 3, 4, 17, 25, 43, 48, 122, 923, 1894])
    for alpha in (5e-11, 1.6e-6, 0.0025, 0.1):
        left = bounds.clopper_pearson_upper(failures, n, alpha)
        lower = bounds.clopper_pearson_lower(n - failures, n, alpha)
        np.testing.assert_allclose(1 - lower, left, rtol=2e-9, atol=2.3e-16)
        left = bounds.clopper_pearson_lower(failures, n, alpha)
        upper = bounds.clopper_pearson_upper(n - failures, n, alpha)
        np.testing.assert_allclose(1 - upper, left, rtol=2e-9, atol=2.3e-16)


@pytest.mark.parametrize("n", [10**4, 10**7, 10**9])
def test_levels_above_one_half_are_kept_by_few_successes_and_by_few_failures(n):
    few = np.array([1, 2, 5, 13, 30, 50, 51, 80])[:, None]
    alpha = np.array([0.5, 0.55, 0.65, 0.8, 0.9437, 0.999])
    lower = bounds.clopper_pearson_lower(few, n, alpha)
    upper = bounds.clopper_pearson_upper(n - few, n, alpha)
    for i, low, high in zip(few[:, 0].tolist(), lower, upper, strict=True):
        for level, lo, hi in zip(alpha.tolist(), low.tolist(), high.tolist(), strict=True):
            above, below = lo * (1 + 1e-8), hi - 1e-8 * (1 - hi) - 4 * np.spacing(hi)
            assert oracles.binomial_tail(i, n, lo) <= level < oracles.binomial_tail(i, n, above)
            assert 1 - oracles.binomial_tail(n - i + 1, n, hi) <= level
            assert 1 - oracles.binomial_tail(n - i + 1, n, below) > level


def far_tail(k, n, p):
    """P[Bin(n, p) >= k] for p well below k / n, by the continued fraction of the incomplete beta
    function."""
    with mp.workdps(50):
        a, b, x = mp.mpf(k), mp.mpf(n - k + 1), mp.mpf(p)
        assert x < (a + 1) / (a + b + 2)
        c, d = mp.mpf(1), 1 / (1 - (a + b) * x / (a + 1))
        value, m, factor = d, 0, mp.mpf(0)
        while abs(factor - 1) > mp.mpf("1e-25"):
            m += 1
            for term in (
                m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
            ):
                d, c = 1 / (1 + term * d), 1 + term / c
                factor = d * c
                value *= factor
        log = (
            a * mp.log(x)
            + b * mp.log1p(-x)
            + mp.loggamma(a + b)
            - mp.loggamma(a + 1)
            - mp.loggamma(b)
        )
        return value * mp.exp(log)


@pytest.mark.parametrize("n", [10**9, 10**11, 10**13, 10**15, 2**53])
def test_clopper_pearson_beyond_a_billion_trials(n):
    """scipy's tails err the more, the more trials: bounds must stay on their sides all the same."""
    rng = np.random.default_rng(1)
    share = np.concatenate([rng.uniform(0.5, 1, 20), 1 - 10.0 ** -rng.uniform(0, 8, 20)])
    k, alpha = (
        np.rint(n * np.clip(share, 0.05, 1)).astype(np.int64),
        10.0 ** -rng.uniform(0.5, 9, 40),
    )
    lower = bounds.clopper_pearson_lower(k, n, alpha)
    upper = bounds.clopper_pearson_upper(n - k, n, alpha)
    for i, level, low, high in zip(k.tolist(), alpha, lower, upper, strict=True):
        if 0 < i < n:
            assert far_tail(i, n, low) <= level
            assert far_tail(i, n, 1 - mp.mpf(high)) <= level
            spread = mp.sqrt(mp.mpf(i) * (n - i) / n) / n
            assert (
                mp.mpf(i) / n - low < 7 * spread + mp.mpf(40) / n
            )  # and no looser than levels of 1e-9 are


def test_tails_of_known_trials_agree_with_the_series():
    for k, n, p in ((700, 1000, 0.6), (10**6, 10**6 + 10, 0.9999)):
        assert abs(far_tail(k, n, p) / oracles.binomial_tail(k, n, p) - 1) < mp.mpf("1e-20")


@pytest.mark.parametrize(
    ("k", "n", "alpha", "rest"),
    [(49, 50, 1e-6, 2.00000098e-8), (20, 21, 1e-9, 4.7619e-11), (49, 10_000, 1e-200, 0.9386063720)],
)
def test_upper_bounds_keep_their_digits_next_to_one_and_at_tiny_levels(k, n, alpha, rest):
    p = bounds.clopper_pearson_upper(k, n, alpha)
    terms = (mp.binomial(n, i) * mp.mpf(p) ** i * (1 - mp.mpf(p)) ** (n - i) for i in range(k + 1))
    assert alpha * (1 - 1e-4) < mp.fsum(terms) <= alpha
    assert 1 - p == pytest.approx(rest, rel=1e-5)


def test_levels_at_which_no_tail_has_digits_are_refused():
    for bound in (bounds.clopper_pearson_lower, bounds.clopper_pearson_upper):
        with pytest.raises(ValueError, match=r"alpha must lie in \[1e-200, 1\), got 1e-300"):
            bound(49, 10_000, 1e-300)


def test_published_quantiles():
    p = bounds.clopper_pearson_lower([100_000, 99_999, 99_990], 100_000, alpha=0.001)
    np.testing.assert_allclose(
        bounds.cohen_radius(p, sigma=1.0), [3.81146, 3.73913, 3.49021], atol=5e-6
    )


@given(votes(), alphas())
def test_statsmodels_agrees(kn, alpha):
    k, n = kn
    low, high = proportion_confint(k, n, alpha=2 * min(alpha, 0.49), method="beta")
    assert bounds.clopper_pearson_lower(k, n, min(alpha, 0.49)) == pytest.approx(
        low, rel=1e-7, abs=1e-300
    )
    assert bounds.clopper_pearson_upper(k, n, min(alpha, 0.49)) == pytest.approx(high, rel=1e-7)


@given(votes(), alphas())
def test_lower_and_upper_mirror_each_other(kn, alpha):
    k, n = kn
    lower, mirrored = (
        bounds.clopper_pearson_lower(k, n, alpha),
        1 - bounds.clopper_pearson_upper(n - k, n, alpha),
    )
    assert lower == pytest.approx(mirrored, rel=1e-8, abs=1e-9)
    assert bounds.hoeffding_lower(k / n, n, alpha) == pytest.approx(
        1 - bounds.hoeffding_upper(1 - k / n, n, alpha), abs=1e-12
    )


@given(votes(), alphas(), alphas())
def test_monotone_in_every_argument(kn, alpha, other):
    k, n = kn
    small, large = sorted((alpha, other))
    lower, upper = bounds.clopper_pearson_lower, bounds.clopper_pearson_upper
    # neighbours may touch within the width that the safe side costs
    assert lower(k, n, small) <= lower(k, n, large) * (1 + 1e-10)
    assert upper(k, n, small) * (1 + 1e-10) >= upper(k, n, large)
    if k < n:
        assert lower(k, n, alpha) < lower(k + 1, n, alpha)
        assert upper(k, n, alpha) < upper(k + 1, n, alpha) or upper(k, n, alpha) == 1
    assert lower(k, n + 1, alpha) <= lower(k, n, alpha)
    assert bounds.hoeffding_lower(k / n, n, small) <= bounds.hoeffding_lower(k / n, n, large)
    # Hoeffding's exponent is never larger than the exact tail's, so its bound is never tighter
    assert bounds.hoeffding_lower(k / n, n, alpha) <= lower(k, n, alpha) + 1e-9
    assert bounds.hoeffding_upper(k / n, n, alpha) >= upper(k, n, alpha) - 1e-9


@given(st.lists(votes(), min_size=1, max_size=5), alphas())
def test_arrays_and_scalars_agree(pairs, alpha):
    k, n = map(list, zip(*pairs, strict=True))
    for function in (bounds.clopper_pearson_lower, bounds.clopper_pearson_upper):
        together = function(k, n, alpha)
        assert isinstance(together, np.ndarray)
        assert together.dtype == np.float64
        for i in range(len(k)):
            assert type(function(k[i], n[i], alpha)) is float
            assert together[i] == pytest.approx(function(k[i], n[i], alpha), rel=1e-14)


@given(st.integers(0, 60), st.integers(0, 60))
def test_top_two_p_value_is_the_exact_binomial_one(first, second):
    n = first + second
    pmf = oracles.binomial_pmf(n, oracles.Fraction(1, 2))
    exact = min(1, 2 * sum(pmf[max(first, second) :]))
    value = bounds.top_two_p_value(first, second)
    assert exact <= value <= exact * (1 + 1e-10)
    assert value == bounds.top_two_p_value(second, first)


def test_least_trials():
    assert (bounds.minimum_trials(0.001), bounds.minimum_trials(0.0005)) == (10, 11)
    assert bounds.top_two_minimum_trials(0.001) == 11
    assert bounds.sequential_minimum_trials(0.5, 0.001) == 12
    assert (
        1074 < bounds.sequential_minimum_trials(0.5, 5e-324) < 1100
    )  # each vote doubles the wealth, at most


@given(alphas(), open_probabilities(0.01, 0.999))
def test_least_trials_are_least(alpha, p0):
    n = bounds.minimum_trials(alpha, p0)
    assert bounds.clopper_pearson_lower(n, n, alpha) > p0
    assert n == 1 or not bounds.clopper_pearson_lower(n - 1, n - 1, alpha) > p0
    n = bounds.sequential_minimum_trials(p0, alpha)
    assert bounds.sequential_decision([n - 1, n], [n - 1, n], p0, alpha).tolist() == [0, 1]
    n = bounds.top_two_minimum_trials(alpha)
    assert bounds.top_two_p_value(n, 0) <= alpha
    assert n == 1 or bounds.top_two_p_value(n - 1, 0) > alpha


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (
            bounds.clopper_pearson_lower,
            (11, 10, 0.1),
            "successes must not exceed trials, got 11 of 10",
        ),
        (
            bounds.clopper_pearson_lower,
            (-1, 10, 0.1),
            "successes must be a count of at least 0.*got -1",
        ),
        (bounds.clopper_pearson_upper, (1.5, 10, 0.1), "successes must be whole, got 1.5"),
        (
            bounds.clopper_pearson_upper,
            ([1, 2.5], 10, 0.1),
            "successes must be whole, got 2.5 at index 1",
        ),
        (bounds.clopper_pearson_lower, (1, 0, 0.1), "trials must be a count of at least 1.*got 0"),
        (bounds.clopper_pearson_lower, (1, 10, 0.0), r"alpha must lie in \[1e-200, 1\), got 0.0"),
        (bounds.clopper_pearson_lower, (1, 10, 1), r"alpha must lie in \[1e-200, 1\), got 1"),
        (
            bounds.clopper_pearson_upper,
            (1, 10, np.nan),
            r"alpha must lie in \[1e-200, 1\), got nan",
        ),
        (bounds.clopper_pearson_upper, (np.nan, 10, 0.1), "successes must be whole, got nan"),
        (bounds.hoeffding_lower, (0.5, 0, 0.1), "trials must be a count of at least 1.*got 0"),
        (bounds.hoeffding_lower, (1.1, 10, 0.1), r"mean must lie in \[0, 1\], got 1.1"),
        (bounds.hoeffding_lower, (0.5, 10, 1.0), r"alpha must lie in \(0, 1\), got 1.0"),
        (bounds.hoeffding_lower, (0.5, 10, 0.0), r"alpha must lie in \(0, 1\), got 0.0"),
        (bounds.minimum_trials, (1.0,), r"alpha must lie in \(0, 1\), got 1.0"),
        (bounds.minimum_trials, (0.0,), r"alpha must lie in \(0, 1\), got 0.0"),
        (bounds.minimum_trials, (0.1, 1.0), r"threshold must lie in \(0, 1\), got 1.0"),
        (bounds.minimum_trials, (0.1, 0.0), r"threshold must lie in \(0, 1\), got 0.0"),
        (bounds.top_two_minimum_trials, (0.0,), r"alpha must lie in \(0, 1\), got 0.0"),
        (bounds.top_two_minimum_trials, (1.0,), r"alpha must lie in \(0, 1\), got 1.0"),
        (bounds.log_wealth, (1, 2, 0.0), r"p0 must lie in \(0, 1\), got 0.0"),
        (bounds.sequential_decision, (1, 2, 0.5, 1.0), r"alpha must lie in \(0, 1\), got 1.0"),
        (bounds.sequential_decision, (1, 2, 0.5, 0.0), r"alpha must lie in \(0, 1\), got 0.0"),
        (bounds.sequential_decision, (1, 2, 1.0, 0.1), r"p0 must lie in \(0, 1\), got 1.0"),
        (bounds.sequential_decision, (1, 2, 0.0, 0.1), r"p0 must lie in \(0, 1\), got 0.0"),
        (bounds.sequential_minimum_trials, (0.0, 0.1), r"p0 must lie in \(0, 1\), got 0.0"),
        (bounds.sequential_minimum_trials, (1.0, 0.1), r"p0 must lie in \(0, 1\), got 1.0"),
        (bounds.hoeffding_upper, (0.5, 10.5, 0.1), "trials must be whole, got 10.5"),
        (bounds.log_wealth, (1, 2, 1.0), r"p0 must lie in \(0, 1\), got 1.0"),
        (
            bounds.sequential_decision,
            (3, 2, 0.5, 0.1),
            "successes must not exceed trials, got 3 of 2",
        ),
        (bounds.sequential_minimum_trials, (1 - 2**-53, 0.001), "p0 is too close to 1"),
        (bounds.top_two_p_value, (1, -2), "second must be a count of at least 0.*got -2"),
    ],
)
def test_bad_values_are_named_and_quoted(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        function(*arguments)


@pytest.mark.parametrize("bad", ["3", None, True, 1j, object()])
def test_bad_types_are_named(bad):
    with pytest.raises(TypeError, match="successes must be a whole number"):
        bounds.clopper_pearson_lower(bad, 10, 0.1)
    with pytest.raises(TypeError, match="alpha must be a real number"):
        bounds.hoeffding_lower(0.5, 10, bad)
