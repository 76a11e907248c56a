"""Exact votes of linear models against twenty digits, against sampled models, and against the
closest other label."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

from rsfl.bounds.linear import _grid, linear_vote_bounds, linear_votes, margin_radius
from rsfl.bounds.radii import cohen_radius


def exact_votes(logits, norm, sigma):
    """The integral over the value of the class, by adaptive quadrature in 20 digits."""
    with mp.workdps(20):
        means = [
            mp.mpf(float(one)) / (mp.mpf(float(norm)) * mp.mpf(float(sigma))) for one in logits
        ]
        votes = []
        for c, mean in enumerate(means):
            others = [m for j, m in enumerate(means) if j != c]
            # The mass lies around the class itself or, if that is behind, between it and the best
            # of the others.
            middle = max(mean, (mean + max(others)) / 2)
            ends = [
                mean - 14,
                *(middle + step for step in (-8, -4, -2, 0, 2, 4, 8)),
                max(mean, middle) + 14,
            ]
            votes.append(
                mp.quad(
                    lambda u, m=mean, o=others: (
                        mp.npdf(u - m) * mp.fprod(mp.ncdf(u - j) for j in o)
                    ),
                    sorted(ends),
                )
            )
        return votes


def cases(rng, count):
    for _ in range(count):
        k = int(rng.integers(2, 6))
        yield (
            rng.normal(size=k) * 10 ** rng.uniform(-1, 1.3),
            rng.uniform(0.5, 3),
            10 ** rng.uniform(-0.5, 0.5),
        )


def test_votes_and_bounds_against_twenty_digits():
    for logits, norm, sigma in cases(np.random.default_rng(0), 16):
        exact = exact_votes(logits, norm, sigma)
        assert abs(mp.fsum(exact) - 1) < 1e-14
        found = linear_votes([logits], [norm], sigma=sigma)[0]
        lower, upper = (bound[0] for bound in linear_vote_bounds([logits], [norm], sigma=sigma))
        for c, value in enumerate(exact):
            assert abs(value - mp.mpf(float(found[c]))) < 1e-14
            assert mp.mpf(float(lower[c])) <= value <= mp.mpf(float(upper[c]))
        assert (upper - lower).max() < 2e-13


@pytest.mark.parametrize("classes", [3, 47, 300, 3000])
def test_many_classes(classes):
    # Equal logits are the hardest for the quadrature, and have equal votes.
    lower, upper = linear_vote_bounds(np.zeros((1, classes)), [1.0], sigma=1.0)
    assert (lower * classes <= 1).all()
    assert (upper * classes >= 1).all()
    np.testing.assert_allclose(
        linear_votes(np.zeros((1, classes)), [1.0], sigma=1.0), 1 / classes, rtol=1e-12
    )
    # Three levels of logits: the product over the classes is a product of three powers.
    levels, sizes = (0.0, -1.5, -4.0), (1, classes // 3, classes - 1 - classes // 3)
    logits = np.repeat(levels, sizes)
    found = linear_votes([logits], [1.0], sigma=1.0)[0]
    with mp.workdps(25):
        beaten = mp.quad(
            lambda u: mp.npdf(u) * mp.ncdf(u + 1.5) ** sizes[1] * mp.ncdf(u + 4) ** sizes[2],
            range(-10, 12),
        )
    assert abs(beaten - mp.mpf(float(found[0]))) < 1e-14
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_votes_of_sampled_models():
    rng = np.random.default_rng(2)
    weights, x, sigma, models = rng.normal(size=(4, 6)), rng.normal(size=(10, 6)), 0.7, 20_000
    noisy = weights + sigma * rng.normal(size=(models, 4, 6))
    counts = np.stack(
        [(np.argmax(noisy @ one, axis=1)[:, None] == np.arange(4)).sum(0) for one in x]
    )
    p = linear_votes(x @ weights.T, np.sqrt((x**2).sum(1)), sigma=sigma)
    assert (np.abs(counts - models * p) <= 5 * np.sqrt(models * p * (1 - p)) + 5).all()


@settings(max_examples=50)
@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=6), st.floats(0.1, 10), st.floats(0.01, 10)
)
def test_votes_are_probabilities_in_the_order_of_the_logits(logits, norm, sigma):
    votes = linear_votes([logits], [norm], sigma=sigma)[0]
    lower, upper = (bound[0] for bound in linear_vote_bounds([logits], [norm], sigma=sigma))
    assert votes.sum() == pytest.approx(1, abs=1e-13)
    order = np.argsort(logits)
    assert (np.diff(votes[order]) >= -1e-14).all()
    assert (lower <= upper).all()
    assert (upper <= 1).all()
    assert (lower < 1).all()
    assert (upper > 0).all()
    again = linear_votes([np.array(logits) * 2 + 1], [norm * 2], sigma=sigma)[0]
    np.testing.assert_allclose(again, votes, atol=1e-12)


@settings(max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0.1, 10), st.floats(0.01, 10))
def test_margin_radius_is_never_smaller_than_the_smoothed_one(logits, norm, sigma):
    lower, upper = (bound[0] for bound in linear_vote_bounds([logits], [norm], sigma=sigma))
    a, b = np.sort(lower)[-1], np.sort(upper)[-2]
    assert (
        cohen_radius(a, b, sigma=sigma) <= margin_radius([logits], [norm])[0] * (1 + 1e-12) + 1e-15
    )


def test_far_tails_keep_their_digits():
    # 20 and 60 deviations apart: a quadrature in float64 has nothing left, the closed forms do.
    lower, upper = linear_vote_bounds([[20.0, 0.0], [60.0, 0.0]], [1.0, 1.0], sigma=1.0)
    for row, gap in enumerate((20, 60)):
        with mp.workdps(30):
            exact = mp.ncdf(-gap / mp.sqrt(2))
            assert exact <= mp.mpf(float(upper[row, 1]))
            assert row or mp.mpf(float(upper[row, 1])) <= exact * (1 + mp.mpf("1e-11"))
            assert mp.mpf(float(lower[row, 0])) <= 1 - exact
    assert (lower[:, 0] == 1 - np.finfo(float).eps).all()


def test_margin_radius_is_reached_and_not_passed():
    rng = np.random.default_rng(3)
    weights, x = rng.normal(size=(5, 4)), rng.normal(size=(20, 4))
    logits, length = x @ weights.T, np.sqrt((x**2).sum(1))
    for one, size, radius, row in zip(
        x, length, margin_radius(logits, length), logits, strict=True
    ):
        first, second = np.argsort(row)[[-1, -2]]
        push = np.zeros_like(weights)
        push[first], push[second] = -one, one
        push /= np.sqrt((push**2).sum())  # straight towards the runner-up
        assert np.argmax((weights + 0.999999 * radius * push) @ one) == first
        assert np.argmax((weights + 1.000001 * radius * push) @ one) == second
        with mp.workdps(30):
            exact = (mp.mpf(float(row[first])) - mp.mpf(float(row[second]))) / (
                mp.sqrt(2) * mp.mpf(float(size))
            )
            assert exact * (1 - mp.mpf("1e-14")) <= mp.mpf(float(radius)) <= exact
    assert margin_radius([[1.0, 1.0, 0.0]], [1.0])[0] == 0
    assert margin_radius([[1e308, -1e308]], [1e-300])[0] < np.inf


def test_chunks_do_not_show():
    rng = np.random.default_rng(4)
    logits, length = rng.normal(size=(3000, 10)), rng.uniform(1, 2, 3000)
    whole = linear_votes(logits, length, sigma=0.5)
    np.testing.assert_array_equal(
        whole[1234:1236], linear_votes(logits[1234:1236], length[1234:1236], sigma=0.5)
    )


@pytest.mark.slow
def test_ten_thousand_inputs_take_about_a_second():
    rng = np.random.default_rng(5)
    for classes, seconds in ((10, 2.0), (47, 10.0)):
        logits, length = 3 * rng.normal(size=(10_000, classes)), rng.uniform(8, 11, 10_000)
        start = time.perf_counter()
        linear_vote_bounds(logits, length, sigma=0.1)
        assert time.perf_counter() - start < seconds


@pytest.mark.parametrize(
    ("logits", "length", "sigma", "message"),
    [
        ([[1.0, np.nan]], [1.0], 1.0, "logits must lie in"),
        ([[1.0, np.inf]], [1.0], 1.0, "logits must lie in"),
        ([1.0, 2.0], [1.0], 1.0, "logits must have shape"),
        ([[1.0]], [1.0], 1.0, "at least 2 classes"),
        ([[1.0, 2.0]], [1.0, 2.0], 1.0, "input_norms must have shape"),
        ([[1.0, 2.0]], [0.0], 1.0, "input_norms must lie in"),
        ([[1.0, 2.0]], [1.0], 0.0, "sigma must lie in"),
        ([[1.0, 2.0]], [1.0], np.inf, "sigma must lie in"),
    ],
)
def test_bad_arguments_are_refused(logits, length, sigma, message):
    for votes in (linear_votes, linear_vote_bounds):
        with pytest.raises(ValueError, match=message):
            votes(logits, length, sigma=sigma)
    if "sigma" not in message:
        with pytest.raises(ValueError, match=message):
            margin_radius(logits, length)


def test_the_largest_numbers_overflow_nowhere():
    largest = np.finfo(np.float64).max
    cases = [
        ([1e308, -1e308], 10.0),
        ([1e308, -1e308], 1.0),
        ([1.0, 0.0], 4e-309),
        ([1.0, 0.0], 5e-324),
        ([largest, -largest], largest),
        ([5e-324, 0.0], 1e-300),
        ([5e-324, 0.0], 5e-324),
        ([5e-324, 0.0], 2.0),
    ]
    for (first, second), norm in cases:
        (value,) = margin_radius([[first, second]], [norm])
        with mp.workdps(800):
            assert mp.mpf(float(value)) <= (mp.mpf(first) - mp.mpf(second)) / (
                mp.sqrt(2) * mp.mpf(norm)
            )
    assert margin_radius([[1e308, -1e308]], [10.0])[0] > 1e307
    lower, upper = linear_vote_bounds([[1e308, -1e308]], [1e308], sigma=1.0)
    exact = [mp.ncdf(mp.sqrt(2)), mp.ncdf(-mp.sqrt(2))]
    for low, p, high in zip(lower[0], exact, upper[0], strict=True):
        assert low <= p <= high <= low + 1e-12


@pytest.mark.parametrize(("norm", "sigma"), [(1e-200, 1e-200), (1e200, 1e200), (1e-160, 1e-155)])
@pytest.mark.parametrize("function", [linear_votes, linear_vote_bounds])
def test_a_deviation_that_float64_cannot_hold_is_refused(function, norm, sigma):
    with pytest.raises(
        ValueError, match=r"sigma \* input_norms must lie in \[2\.22507e-308, .* at index 0"
    ):
        function([[1.0, 0.0]], [norm], sigma=sigma)


@pytest.mark.parametrize("classes", [2, 3, 10, 62, 1000, 30_000])
def test_the_nodes_are_as_close_as_the_error_asks(classes):
    nodes = _grid(classes)
    assert (nodes[0], nodes[-1]) == (-9, 9)
    with mp.workdps(30):
        h, errors = mp.mpf(18) / (len(nodes) - 1), []
        for y, log_m in ((0.5, 0.0089), (1, 0.2434), (2, 1.858)):
            size = 2 * mp.exp(mp.mpf(y) ** 2 / 2 + (classes - 1) * mp.mpf(log_m))
            errors.append(size / mp.expm1(2 * mp.pi * y / h))
        assert min(errors) <= mp.mpf("1e-17")


def test_tails_are_closed_in_on_as_far_as_the_function_is_right():
    for score in (7.0, 8.0, 12.0):
        upper = linear_vote_bounds([[score, 0.0]], [1.0], sigma=1.0)[1][0, 1]
        exact = mp.ncdf(-mp.mpf(score) / mp.sqrt(2))
        assert exact <= mp.mpf(float(upper)) <= exact * (1 + mp.mpf("1e-12"))


def test_what_is_said_of_an_input_does_not_depend_on_the_others():
    rng = np.random.default_rng(4)
    for classes in (2, 3, 40):
        logits, norms = rng.normal(0, 2, (30, classes)), rng.uniform(0.5, 3, 30)
        together = linear_vote_bounds(logits, norms, sigma=0.7)
        for i in (0, 17):
            alone = linear_vote_bounds(logits[i : i + 1], norms[i : i + 1], sigma=0.7)
            for many, one in zip(together, alone, strict=True):
                np.testing.assert_array_max_ulp(1 + many[i], 1 + one[0], 2)


@pytest.mark.parametrize("classes", [10, 200])
def test_bounds_leave_the_error_that_votes_are_said_to_have(classes):
    """All scores equal: every chance is 1 / K, and no duel says more."""
    error = (16 * classes + 128) * 2.0**-52
    lower, upper = linear_vote_bounds(np.zeros((3, classes)), np.ones(3), sigma=0.5)
    assert (
        abs(linear_votes(np.zeros((3, classes)), np.ones(3), sigma=0.5) * classes - 1) < 1e-13
    ).all()
    for width in (1 / classes - lower[:, 1:], upper[:, 1:] - 1 / classes):
        assert width == pytest.approx(error, rel=0.02, abs=0)


@pytest.mark.parametrize("ahead", [10.5, 11.0, 11.5])
def test_a_class_far_ahead_loses_no_more_than_its_duels(ahead):
    """Nearer to 1 than the quadrature can tell."""
    lower, _ = linear_vote_bounds([[ahead, 0.0, -50.0]], [1.0], sigma=1.0)
    with mp.workdps(30):
        duel = mp.ncdf(-mp.mpf(ahead) / mp.sqrt(2))
        assert duel <= 1 - mp.mpf(lower[0, 0]) <= duel * mp.mpf("1.001") + 4 * 2.0**-52
        assert duel < 1e-13
