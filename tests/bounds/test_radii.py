from itertools import pairwise

import mpmath as mp
import numpy as np
import oracles
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import probabilities, scales

from rsfl import bounds

LAWS = {  # law: (function, name of its scale)
    "gaussian": (bounds.cohen_radius, "sigma"),
    "uniform": (bounds.uniform_radius, "half_width"),
    "laplace": (bounds.laplace_radius, "scale"),
    "lecuyer": (bounds.lecuyer_radius, "sigma"),
    "li": (bounds.li_radius, "sigma"),
}


def radius(law, p_a, p_b=None, scale=1.0):
    function, name = LAWS[law]
    return function(p_a, p_b, **{name: scale})


def exact_gaussian(a, b):
    return (oracles.normal_quantile(a) - oracles.normal_quantile(b)) / 2


def exact_uniform(a, b):
    return mp.mpf(a) - mp.mpf(b)


def exact_laplace(a, b):
    a, b = mp.mpf(a), mp.mpf(b)
    return max(mp.log(a / b) / 2, -mp.log(1 - a + b))


EXACT = {"gaussian": exact_gaussian, "uniform": exact_uniform, "laplace": exact_laplace}


@pytest.mark.parametrize("law", EXACT)
@given(probabilities(), probabilities(), st.sampled_from([1.0, 0.25, 3.7]))
@example(0.7, np.nextafter(0.7, 0), 1.0)
@example(1 - 2.0**-53, 1 - 2.0**-52, 1.0)
@example(1 - 2.0**-53, 1 - 2.0**-46, 1.0)
@example(0.9999999, 0.9999998999, 1.0)
@example(1e-300, 9.99e-301, 1.0)
@example(1e-12, 1e-12 * (1 - 1e-9), 1.0)
@example(0.50000001, 0.49999999, 1.0)
@example(0.5, 5e-324, 1.0)
def test_two_sided_radius_is_never_above_the_exact_one_and_close(law, p_a, p_b, scale):
    assume(p_a > p_b)
    assume(law == "uniform" or (p_b > 0 and p_a < 1))
    value, exact = radius(law, p_a, p_b, scale), mp.mpf(scale) * EXACT[law](p_a, p_b)
    assert value <= exact
    if p_b >= 1e-300:  # below, a quantile is cut where the tail function itself runs out of digits
        assert exact - value <= max(mp.mpf("1e-9") * exact, mp.mpf("1e-15") * scale)


@pytest.mark.parametrize("law", EXACT)
@given(probabilities(), scales())
@example(0.5 + 2.0**-53, 1.0)
@example(1 - 2.0**-53, 1.0)
def test_one_sided_radius_is_never_above_the_exact_one_and_close(law, p_a, scale):
    assume(0.5 < p_a < 1)
    p_b = 1 - mp.mpf(p_a)
    exact = oracles.normal_quantile(p_a) if law == "gaussian" else EXACT[law](p_a, p_b)
    value, exact = radius(law, p_a, scale=scale), mp.mpf(scale) * exact
    assert value <= exact
    assert exact - value <= mp.mpf("1e-9") * exact


def older_radius(law, p_a, p_b):
    """The suprema by scipy's scalar optimizer, from many starts."""
    from scipy.optimize import minimize_scalar

    def lecuyer(beta):
        room = p_a - np.exp(2 * beta) * p_b
        return -beta / np.sqrt(2 * np.log(1.25 * (1 + np.exp(beta)) / room)) if room > 0 else 0.0

    def li(log_c):
        order = 1 + np.exp(log_c)
        mean = (0.5 * (p_a ** (1 - order) + p_b ** (1 - order))) ** (1 / (1 - order))
        return -np.sqrt(max(0.0, -2 / order * np.log(1 - p_a - p_b + 2 * mean)))

    function, low, high = {
        "lecuyer": (lecuyer, 0.0, min(1.0, np.log(p_a / p_b) / 2)),
        "li": (li, -12.0, 3.0),
    }[law]
    grid = np.linspace(low, high, 20)
    found = [
        minimize_scalar(function, bounds=(a, b), method="bounded", options={"xatol": 1e-12})
        for a, b in pairwise(grid)
    ]
    return max(-result.fun for result in found)


@pytest.mark.parametrize("law", ["lecuyer", "li"])
@pytest.mark.parametrize(
    ("p_a", "p_b"), [(0.9, 0.1), (0.99, 0.01), (0.7, 0.2), (0.55, 0.45), (0.999, 0.0005)]
)
def test_older_radii_match_an_independent_search_and_stay_below_the_tight_one(law, p_a, p_b):
    assert radius(law, p_a, p_b) == pytest.approx(older_radius(law, p_a, p_b), rel=1e-6)
    assert radius(law, p_a, p_b) < radius("gaussian", p_a, p_b)


@pytest.mark.parametrize("law", LAWS)
@given(p_a=probabilities(), p_b=st.none() | probabilities())
def test_a_lost_vote_never_certifies_and_a_won_one_is_finite_but_at_the_ends(law, p_a, p_b):
    value = radius(law, p_a, p_b)
    assert type(value) is float
    other = 1 - p_a if p_b is None else p_b
    assert value >= 0
    if p_a <= other:
        assert value == 0
    unbounded = {
        "gaussian": p_a == 1 or other == 0,
        "laplace": other == 0,
        "li": p_a == 1 and other == 0,
        "uniform": False,
        "lecuyer": False,
    }[law]
    assert np.isinf(value) == (unbounded and p_a > other)


@pytest.mark.parametrize("law", LAWS)
@given(p=st.lists(probabilities(), min_size=3, max_size=3), scale=scales())
def test_monotone_in_both_probabilities_and_proportional_to_the_scale(law, p, scale):
    low, middle, high = sorted(p)
    tolerance = 1 + 1e-9
    assert radius(law, middle, low) <= radius(law, high, low) * tolerance + 1e-12
    assert radius(law, high, middle) <= radius(law, high, low) * tolerance + 1e-12
    assert radius(law, middle) <= radius(law, high) * tolerance + 1e-12
    assert radius(law, high, low, scale) == pytest.approx(scale * radius(law, high, low), rel=1e-12)


@pytest.mark.parametrize("law", LAWS)
@given(
    pairs=st.lists(st.tuples(probabilities(), probabilities(), scales()), min_size=1, max_size=4)
)
def test_arrays_and_scalars_agree(law, pairs):
    p_a, p_b, scale = map(np.array, zip(*pairs, strict=True))
    together = radius(law, p_a, p_b, scale)
    assert together.shape == p_a.shape
    for i in range(len(pairs)):
        np.testing.assert_allclose(together[i], radius(law, p_a[i], p_b[i], scale[i]), rtol=1e-13)


def exact_lecuyer(a, b, grid=200):
    a, b = mp.mpf(a), mp.mpf(b)
    high = min(mp.mpf(1), mp.log(a / b) / 2)

    def at(beta):
        room = a - mp.exp(2 * beta) * b
        return (
            beta / mp.sqrt(2 * mp.log(mp.mpf(5) / 4 * (1 + mp.exp(beta)) / room))
            if room > 0
            else mp.mpf(0)
        )

    return exact_supremum(at, mp.mpf(0), high, grid)


def exact_li(a, b, grid=200):
    a, b = mp.mpf(a), mp.mpf(b)

    def at(log_c):
        c = mp.exp(log_c)
        mean = b * ((1 + (b / a) ** c) / 2) ** (-1 / c)
        return mp.sqrt(-2 / (1 + c) * mp.log(1 - a - b + 2 * mean))

    return exact_supremum(at, mp.mpf(-40), mp.mpf(12), grid)


def exact_supremum(at, low, high, grid):
    """The largest value, for a function with one peak."""
    t = [low + (high - low) * i / grid for i in range(grid + 1)]
    values = [at(x) for x in t]
    i = max(range(len(t)), key=values.__getitem__)
    low, high = t[max(i - 1, 0)], t[min(i + 1, grid)]
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if at(left) < at(right) else (low, right)
    return max(*values, at(low))


CLOSE = [
    (0.3, 0.3 - 1e-9),
    (0.3, 0.3 - 1e-6),
    (0.50000001, 0.49999999),
    (0.5000001, 0.4999999),
    (0.500000001, 0.499999999),
    (0.5 + 1e-10, 0.5 - 1e-10),
    (0.48935318283142115, 0.48935318282275747),
    (0.7, np.nextafter(0.7, 0)),
    (1e-9, 1e-9 - 1e-15),
    (0.9, 0.1),
    (0.999, 1e-300),
    (1e-300, 1e-300 * (1 - 1e-10)),
]


@pytest.mark.parametrize(("law", "exact"), [("li", exact_li), ("lecuyer", exact_lecuyer)])
@pytest.mark.parametrize(("p_a", "p_b"), CLOSE)
def test_older_radii_are_below_their_suprema_in_close_votes_too(law, exact, p_a, p_b):
    value = radius(law, p_a, p_b)
    with mp.workdps(80 if p_a > 1e-20 else 700):  # 1 - p has that many digits
        supremum = exact(p_a, p_b)
        assert value <= supremum
        assert supremum - value <= supremum * mp.mpf("1e-9") * max(
            1, mp.mpf("1e-6") / (mp.mpf(p_a) - mp.mpf(p_b))
        )


@pytest.mark.parametrize("law", ["li", "lecuyer"])
@given(p=probabilities(), distance=st.floats(-17, 0))
def test_older_radii_never_pass_cohens(law, p, distance):
    p_b = p * (1 - 10.0**distance)
    assert radius(law, p, p_b) <= radius("gaussian", p, p_b) * (1 + 1e-9) + 1e-300


@pytest.mark.parametrize("law", EXACT)
@given(st.floats(-320, -1), st.floats(1e-16, 1), st.floats(-323, 300))
@example(-8.2, 0.42, 0.0)
@example(-12.0, 0.5, 0.0)
@example(-323.0, 0.5, 0.0)
def test_radii_of_tiny_probabilities_and_scales_are_below_the_exact_ones(
    law, exponent, share, scale
):
    p_a, scale = 10.0**exponent, max(10.0**scale, 5e-324)
    p_b = p_a * share
    assume(0 < p_b < p_a)
    value = radius(law, p_a, p_b, scale)
    with mp.workdps(700 if exponent < -300 else 360):  # 1 - p has that many digits
        assert value <= mp.mpf(scale) * EXACT[law](p_a, p_b)


def test_the_smallest_numbers_are_stepped_down():
    smallest = 5e-324
    for law in LAWS:
        assert radius(law, 0.8, scale=smallest) in (0, smallest)
        assert (
            radius(law, 0.8, scale=smallest) <= mp.mpf(smallest) * oracles.normal_quantile(0.8)
            or law == "laplace"
        )
    assert bounds.uniform_radius(0.8, half_width=smallest) == 0
    assert bounds.linf_radius(smallest, 2) == bounds.linf_radius(smallest, 3) == 0


def test_broadcasting():
    assert bounds.cohen_radius(np.full((3, 1), 0.9), [0.1, 0.2], sigma=1.0).shape == (3, 2)
    assert bounds.cohen_radius(0.9, sigma=[0.25, 0.5]).shape == (2,)
    assert bounds.li_radius(np.full((3, 1), 0.9), [0.1, 0.2], sigma=[[[1.0]]]).shape == (1, 3, 2)
    assert bounds.uniform_radius([], half_width=1.0).shape == (0,)


@given(st.floats(0, 1e6), st.integers(1, 10**7))
def test_linf_radius_is_the_quotient_rounded_down(r, dim):
    with mp.workdps(40):
        exact = mp.mpf(r) / mp.sqrt(dim)
    value = bounds.linf_radius(r, dim)
    assert value <= exact
    assert value == pytest.approx(float(exact), rel=1e-12)
    assert bounds.linf_radius(np.inf, dim) == np.inf


def test_figures_of_the_field():
    # two bounds certify where the complement abstains, at n = 100,000 votes
    p_a = bounds.clopper_pearson_lower([55_000, 45_000], 100_000, 0.0005)
    p_b = np.minimum(bounds.clopper_pearson_upper(10_000, 100_000, 0.0005), 1 - p_a)
    np.testing.assert_allclose(bounds.cohen_radius(p_a, p_b, sigma=1.0), [0.688, 0.5625], atol=1e-3)
    p = bounds.clopper_pearson_lower([55_000, 45_000], 100_000, 0.001)
    np.testing.assert_allclose(bounds.cohen_radius(p, sigma=1.0), [0.113, 0.0], atol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bounds.cohen_radius(1.5, sigma=1.0), r"p_a must lie in \[0, 1\], got 1.5"),
        (lambda: bounds.cohen_radius(0.9, -0.1, sigma=1.0), r"p_b must lie in \[0, 1\], got -0.1"),
        (lambda: bounds.cohen_radius(0.9, sigma=-1.0), r"sigma must lie in \(0, inf\), got -1.0"),
        (
            lambda: bounds.cohen_radius(0.9, sigma=[1.0, 0.0]),
            r"sigma must lie in \(0, inf\), got 0.0 at index 1",
        ),
        (
            lambda: bounds.cohen_radius([[0.9, np.nan]], sigma=1),
            r"p_a must lie in \[0, 1\], got nan at index \(0, 1\)",
        ),
        (
            lambda: bounds.uniform_radius(0.9, half_width=np.inf),
            r"half_width must lie in \(0, inf\), got inf",
        ),
        (lambda: bounds.laplace_radius(0.9, scale=0), r"scale must lie in \(0, inf\), got 0"),
        (lambda: bounds.li_radius(0.9, sigma=np.nan), r"sigma must lie in \(0, inf\), got nan"),
        (lambda: bounds.linf_radius(-1.0, 3), r"l2_radius must lie in \[0, inf\], got -1.0"),
        (lambda: bounds.linf_radius(1.0, 2.5), "dim must be whole, got 2.5"),
        (lambda: bounds.linf_radius(1.0, 0), "dim must be a count of at least 1.*got 0"),
    ],
)
def test_bad_values_are_named_and_quoted(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("law", LAWS)
def test_bad_types_are_named(law):
    with pytest.raises(TypeError, match="p_a must be a real number"):
        radius(law, "0.9")
    with pytest.raises(TypeError, match=f"{LAWS[law][1]} must be a real number"):
        radius(law, 0.9, scale=None)


def test_only_certainty_on_both_sides_has_no_limit_by_the_renyi_divergence():
    assert bounds.li_radius(1.0, 0.0, sigma=0.5) == np.inf
    assert bounds.li_radius(1.0, 1e-300, sigma=0.5) < np.inf
    assert bounds.li_radius(1 - 2.0**-53, 0.0, sigma=0.5) < np.inf
