"""Trade-off curves: against sixty digits, never above, convex, and the worst that can happen."""

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsfl import bounds, deform
from rsfl.noise import Gaussian, Laplace, ParameterGaussian, RoundedGaussian, Uniform

LAWS = [
    Gaussian(0.5),
    Uniform(0.7),
    Laplace(0.3),
    RoundedGaussian(0.25),
    ParameterGaussian(0.1),
    deform.Rotation(0.4),
    deform.Translation(0.2),
]
GRID = np.concatenate([10.0 ** -np.arange(300, 2, -7.0), np.linspace(0.001, 0.999, 200)])
GRID = np.concatenate([[0.0], GRID, 1 - 2.0 ** -np.arange(10.0, 54.0)[:, None].ravel(), [1.0]])


def exact(law, p, r):
    mp.mp.dps = 60
    p, r = mp.mpf(p), mp.mpf(r)
    if isinstance(law, Gaussian):
        z = mp.findroot(lambda z: mp.ncdf(z) - p, mp.mpf(float(_start(p))))
        return mp.ncdf(z - r / mp.mpf(law.sigma))
    if isinstance(law, Uniform):
        return max(p - r / (2 * mp.mpf(law.half_width)), mp.mpf(0))
    factor = mp.exp(r / mp.mpf(law.scale))
    return max(p / factor, 1 - (1 - p) * factor, mp.mpf(0))


def _start(p):
    from scipy import special

    return special.ndtri(float(p))


@pytest.mark.parametrize("law", LAWS[:3], ids=str)
@given(p=st.floats(1e-12, 1 - 1e-12), r=st.floats(0, 3))
def test_they_are_never_above_the_exact_curve_and_close_to_it(law, p, r):
    found, curve = law.tradeoff(p, r), exact(law, p, r)
    assert mp.mpf(found) <= curve
    assert found >= float(curve) * (1 - 1e-11) - 1e-14


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("r", [0.0, 1e-9, 0.05, 0.3, 1.0, 20.0])
def test_they_are_convex_and_rise_and_fall(law, r):
    grid = np.sort(GRID)
    values = law.tradeoff(grid, r, dim=1)
    slack = 1e-13
    assert (np.diff(values) >= -slack).all()
    assert (values <= grid).all()
    assert (values >= law.tradeoff(grid, r + 0.1, dim=1) - slack).all()
    even = law.tradeoff(np.linspace(0, 1, 401), r, dim=1)
    assert (np.diff(even, 2) >= -slack).all()


@pytest.mark.parametrize("law", LAWS[:3], ids=str)
def test_at_the_certified_radius_the_vote_is_lost_and_not_before(law):
    p = np.linspace(0.51, 0.999, 50)
    radius = law.radius(p)
    assert (law.tradeoff(p, radius * (1 - 1e-9)) >= 0.5).all()
    assert (law.tradeoff(p, radius * (1 + 1e-9) + 1e-12) <= 0.5).all()


@pytest.mark.parametrize("law", LAWS[:3], ids=str)
@pytest.mark.parametrize("far", [False, True])
def test_no_rounding_lifts_them_above_the_exact_curve(law, far):
    """Thousands of points where only the last digits decide: next to one half, with shifts of all
    sizes, and far out."""
    rng, many = np.random.default_rng(5), 1500
    r = 10.0 ** rng.uniform(-9, 0.3, many)
    p = rng.uniform(0.02, 0.98, many)
    if far:
        p = np.concatenate(
            [10.0 ** -rng.uniform(1, 250, many // 2), 1 - 2.0 ** -rng.uniform(3, 50, many // 2)]
        )
        r = 10.0 ** rng.uniform(-3, 1.5, many)
    found = law.tradeoff(p, r)
    assert ((found >= 0) & (found <= p)).all()
    for a, b, value in zip(p.tolist(), r.tolist(), found.tolist(), strict=True):
        assert mp.mpf(value) <= exact(law, a, b), (a, b, value)


def test_shifts_that_vanish_in_floats_leave_a_number():
    for law in (Gaussian(10.0), Uniform(10.0), Laplace(10.0)):
        for p in (0.5, 1e-300, 0.3, 1.0):
            assert p - 1e-13 <= law.tradeoff(p, 5e-324) <= p


def test_edges():
    for law in LAWS[:3]:
        assert law.tradeoff(0.7, 0.0) == 0.7
        assert law.tradeoff(0.7, 1.0) <= exact(law, 0.7, 1.0)
        assert law.tradeoff(0.0, 0.1) == 0
        assert law.tradeoff(0.7, np.inf) == 0
        assert law.tradeoff(np.array([0.2, 0.9]), 0.1).shape == (2,)
        with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
            law.tradeoff(1.5, 0.1)
        with pytest.raises(ValueError, match="radius must lie in"):
            law.tradeoff(0.5, -0.1)
    assert bounds.gaussian_tradeoff(1.0, 5.0, sigma=1.0) == 1
    assert bounds.uniform_tradeoff(0.3, 0.0, half_width=1.0) == 0.3
    assert RoundedGaussian(0.25).tradeoff(0.9, 0.1, dim=1) < Gaussian(0.25).tradeoff(0.9, 0.1)


@pytest.mark.parametrize(
    ("curve", "name"),
    [
        (bounds.gaussian_tradeoff, "sigma"),
        (bounds.uniform_tradeoff, "half_width"),
        (bounds.laplace_tradeoff, "scale"),
    ],
)
@pytest.mark.parametrize("end", [0.0, np.inf])
def test_scales_are_positive_and_finite(curve, name, end):
    with pytest.raises(ValueError, match=rf"{name} must lie in \(0, inf\), got {end}"):
        curve(0.7, 0.1, **{name: end})


@pytest.mark.parametrize("law", LAWS[:3], ids=str)
def test_no_event_falls_below_the_curve_and_half_spaces_reach_it(law):
    """In one dimension the event {noisy point <= t}, the point moved away from it by r."""
    draws = law.sample((200_000,), generator=torch.Generator().manual_seed(0)).double()
    for t, r in ((0.1, 0.2), (0.4, 0.3), (-0.2, 0.1), (0.6, 0.5)):
        p, moved = (float((draws + shift <= t).double().mean()) for shift in (0.0, r))
        error = 4 * np.sqrt(0.25 / len(draws))
        curve = law.tradeoff(p, r)
        assert moved >= curve - 2 * error
        if not isinstance(law, Laplace):  # whose curve is that of all dimensions at once
            assert moved <= curve + 2 * error
