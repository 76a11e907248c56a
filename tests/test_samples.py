"""Float32 variates whose tails are right: masses beyond thresholds, from the body to what 53 bits
reach."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from rsfl import _draws, _samples, noise

CLOSED = {"uniform": stats.uniform(-1, 2), "normal": stats.norm(), "laplace": stats.laplace()}


def drawn(name, many, *key):
    return getattr(_samples, name)((many,), generator=_draws.generator(1, name, *key))


@pytest.mark.parametrize("name", CLOSED)
def test_thresholds_are_passed_as_often_as_they_should(name):
    """In the body and in the tail: thirty million draws, each count within five deviations."""
    law, many, blocks = CLOSED[name], 3_000_000, 10
    thresholds = law.isf([0.4, 0.1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6, 3e-7])
    above, below = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for block in range(blocks):
        x = np.sort(drawn(name, many, block).numpy())
        above += many - np.searchsorted(x, thresholds, side="right")
        below += np.searchsorted(x, -thresholds)
    expected = many * blocks * law.sf(thresholds)
    assert np.all(np.abs(above - expected) < 5 * np.sqrt(expected))
    assert np.all(np.abs(below - expected) < 5 * np.sqrt(expected))
    assert np.all(above[:-1] > 0)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("many", [0, 1, 7, 15, 16, 33, 100_001])
def test_any_shape_can_be_drawn(name, many):
    one, two = drawn(name, many), drawn(name, many)
    assert one.shape == (many,)
    assert one.dtype == torch.float32
    assert torch.equal(one, two)
    assert bool(one.isfinite().all())
    assert getattr(_samples, name)((3, many, 2)).shape == (3, many, 2)


def test_normals_beyond_the_last_that_pytorch_draws(monkeypatch):
    """PyTorch's own end at sqrt(2 log 2^24) = 5.768; these go to 8.97, by 53 bits of the tail."""
    for fraction in (1.0, 0.5, 1e-4, 1e-9, 2.0**-53):
        monkeypatch.setattr(_samples, "_fractions", lambda n, g, f=fraction: np.full(n, f))
        size = drawn("normal", 100_000).abs()
        far = size[size >= 3.5]
        assert len(far) > 20
        assert far.unique().numel() == 1
        exact = -special.ndtri(fraction * special.ndtr(-3.5))
        assert far[0].item() == pytest.approx(exact, rel=2**-23)
    assert far[0] > 8.96


def test_laplace_draws_go_beyond_their_bits(monkeypatch):
    monkeypatch.setattr(_samples, "_fractions", lambda n, g: np.full(n, 2.0**-53))
    size = drawn("laplace", 3_000_000).abs()
    assert size.max().item() == pytest.approx(12 + 53 * np.log(2), rel=2**-23)
    assert size[size < 48].max() < 12


@pytest.mark.parametrize(("name", "far", "tail"), [("normal", 0.0, 0.5), ("laplace", 0.0, None)])
def test_the_law_beyond_a_bound_is_right(monkeypatch, name, far, tail):
    """With the bound at 0 every draw is a draw of the tail."""
    if name == "normal":
        monkeypatch.setattr(_samples, "_FAR", far)
        monkeypatch.setattr(_samples, "_FAR_TAIL", tail)
    else:
        monkeypatch.setattr(_samples, "_FAR_EXPONENTIAL", far)
    x = drawn(name, 1_000_000).double().numpy()
    assert stats.kstest(x, CLOSED[name].cdf).pvalue > 1e-3
    assert stats.binomtest(int((x > 0).sum()), len(x)).pvalue > 1e-3


def test_what_a_threshold_still_misses():
    """The numbers of the documentation: Box and Muller's rule on the 2^24 radii that there are."""
    radius = np.sqrt(-2 * np.log(np.arange(1, 2**24 + 1) * 2.0**-24))
    for t in (0.01, 1.0, 2.0, 3.0, 3.5):
        further = radius[radius > t]
        mass = 2 / np.pi * np.arccos(t / further).sum() * 2.0**-24
        exact = 2 * special.ndtr(-t)
        assert -(2.0**-25) < mass - exact < 0
        assert abs(mass / exact - 1) < 4e-5  # largest at the bound, beyond which it stays the same
    # Deviations of a count of coordinates that are far out, of an ImageNet picture.
    missed = (exact - mass) * 150_528
    assert missed / np.sqrt(exact * 150_528) < 3.5e-4


def test_pytorch_draws_as_those_numbers_suppose():
    """Its uniforms have 24 bits: normals beyond 5.768 do not come by themselves."""
    assert torch.empty(1000).uniform_().mul(2**24).frac().abs().max() == 0
    z = torch.empty(20_000_000).normal_(generator=torch.Generator().manual_seed(0))
    assert z.abs().max() < 5.769


@pytest.mark.slow
def test_a_classifier_that_asks_whether_any_coordinate_is_further_out():
    """Of 150,528 coordinates, beyond 5.77 deviations: once in 830 pictures."""
    pictures = 16_600
    law = noise.Gaussian(1.0)
    seen = sum(
        int(
            (law.sample((100, 150_528), generator=_draws.generator(0, i)).abs() > 5.768)
            .any(1)
            .sum()
        )
        for i in range(pictures // 100)
    )
    expected = pictures * -np.expm1(150_528 * np.log1p(-2 * special.ndtr(-5.768)))
    assert stats.poisson(expected).cdf(seen) > 1e-3
    assert stats.poisson(expected).sf(seen - 1) > 1e-3
