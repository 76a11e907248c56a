import re

import pytest
import torch
from torch import nn

from rsfl import noise, orbit, runs, smooth
from rsfl.attacks import SmoothAdvPGD
from rsfl.train import Adversarial, Consistency, CrossEntropy, OrbitNoise

FAMILY = orbit.RotationScalings(0.5, 0.2)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_picture_of_the_family_then_noise():
    law = OrbitNoise(FAMILY, noise.Gaussian(0.1))
    x = torch.rand(6, 2, 5, 4, generator=draws(1))
    assert law.noise_shape(x.shape[1:]) == (2 + 40,)
    sample = law.sample((6, 42), generator=draws())
    params, pixels = sample[:, :2], sample[:, 2:]
    torch.testing.assert_close(
        law.perturb(x, sample), FAMILY(x, params) + pixels.view(6, 2, 5, 4), rtol=0, atol=0
    )
    for column, (low, high) in zip(params.T, FAMILY.box, strict=True):
        assert ((column >= low) & (column <= high)).all()
    many = law.sample((3, 2000, 42), generator=draws())
    assert many.shape == (3, 2000, 42)
    assert float(many[..., 2:].std()) == pytest.approx(0.1, rel=0.01)
    assert float(many[..., 0].std()) == pytest.approx(1 / 12**0.5, rel=0.05)  # of a uniform law


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(OrbitNoise(FAMILY, noise.Gaussian(0.2))),
        CrossEntropy(
            OrbitNoise(orbit.Translations(0.1, 0.1), OrbitNoise(FAMILY, noise.Gaussian(1)))
        ),
        Consistency(law=OrbitNoise(FAMILY, noise.Gaussian(0.2)), weight=5.0),
    ],
)
def test_losses_take_it(loss):
    x, y = torch.rand(8, 1, 6, 6), torch.arange(8) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    first = loss(model, x, y, draws(3))
    again, other = (loss(model, x, y, draws(seed)) for seed in (3, 4))
    assert first.item() == again.item() != other.item()
    first.backward()
    assert model[1].weight.grad.abs().sum() > 0


def test_a_picture_of_one_family_then_of_another():
    shifts, inner = orbit.Translations(0.3, 0.2), OrbitNoise(FAMILY, noise.Gaussian(0.1))
    law = OrbitNoise(shifts, inner)
    x = torch.rand(6, 2, 5, 4, generator=draws(1))
    assert law.noise_shape(x.shape[1:]) == (2 + 2 + 40,)
    sample = law.sample((6, 44), generator=draws())
    shifted = shifts(x, sample[:, :2])
    assert torch.equal(law.perturb(x, sample), inner.perturb(shifted, sample[:, 2:]))
    assert law.sample((3, 5, 44), generator=draws()).shape == (3, 5, 44)
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 3))
    with pytest.raises(ValueError, match=r"law must be the noise alone, Gaussian\(sigma=0.1\)"):
        smooth.Smoother(model, law, 3).certify(x, n=100)


def test_an_attack_begins_at_the_picture_that_was_moved():
    shifts = orbit.Translations(0.3, 0.3)
    law = OrbitNoise(shifts, OrbitNoise(FAMILY, noise.Gaussian(0.1)))
    assert law.pixels == noise.Gaussian(0.1)
    x, y = torch.rand(6, 1, 5, 4, generator=draws(1)), torch.arange(6) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    attack = SmoothAdvPGD(epsilon=0.5, steps=2, samples=2)
    ours = draws(2)
    loss = Adversarial(attack=attack, law=law, num_classes=3)(model, x, y, ours)
    theirs = draws(2)
    moved = law.moved(x, theirs)
    again = draws(2)
    shifted = shifts(x, shifts.sample(6, generator=again))
    assert torch.equal(moved, FAMILY(shifted, FAMILY.sample(6, generator=again)))
    plain = Adversarial(attack=attack, law=noise.Gaussian(0.1), num_classes=3)
    assert loss.item() == plain(model, moved, y, theirs).item()
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_it_certifies_nothing(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    smoother = smooth.Smoother(model, OrbitNoise(FAMILY, noise.Gaussian(0.2)), 3)
    x = torch.rand(1, 1, 6, 6)
    with pytest.raises(ValueError, match="law must be the noise alone"):
        smoother.certify(x, n=100)
    with pytest.raises(ValueError, match="law must be one of l2 on inputs"):
        smoother.certify_orbit(x, FAMILY)
    with pytest.raises(TypeError, match="law must be one that certificates are read from, got Orb"):
        runs.certify(smoother, [(x[0], 0)], out=tmp_path, n=100)
    shifts = orbit.Translations(0.1, 0.2)
    law = OrbitNoise(shifts, OrbitNoise(FAMILY, noise.Gaussian(0.2)))
    with pytest.raises(
        ValueError, match=re.escape(f"over one family such as {shifts} or {FAMILY}")
    ):
        law.radius(0.9)


def test_pictures_that_interpolation_rounds_out_of_the_box_are_attacked():
    turns = orbit.RotationScalings(1.0, 0.5)
    law = OrbitNoise(orbit.Translations(0.4, 0.4), OrbitNoise(turns, noise.Gaussian(0.1)))
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(500, 1, 8, 8, generator=generator) > 0.3).double()
    state = generator.get_state()
    assert 0 < (law.moved(x, generator) - 1).amax() < 1e-15
    loss = Adversarial(attack=SmoothAdvPGD(epsilon=0.5, steps=1, samples=1), law=law, num_classes=3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    generator.set_state(state)
    y = torch.zeros(500, dtype=torch.int64)
    assert loss(model, x, y, generator).isfinite()
    with pytest.raises(ValueError, match="x must lie in the box"):
        loss(model, 1.001 * x, y, generator)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="family must be an orbit"):
        OrbitNoise(0.5, noise.Gaussian(1))
    with pytest.raises(TypeError, match="law must be one of the pixels"):
        OrbitNoise(FAMILY, noise.ParameterGaussian(1))
