"""A smoothed model as a module, models behind their normalisation, and inputs in pixels."""

import copy
import math

import pytest
import torch
from torch import nn

from rsfl._laws import to_document
from rsfl.deform import Rotation
from rsfl.noise import Gaussian, Laplace, PixelGaussian, PixelLaplace, PixelUniform, Uniform
from rsfl.smooth import Certificate, DeformationSmoother, GaussianSmoother, Smoother
from rsfl.verify import arithmetic
from rsfl.verify.laws import LAWS

X = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def smoother(model=None, sigma=0.25):
    return GaussianSmoother(model or network(), sigma, num_classes=3)


# -- the module ------------------------------------------------------------------------------------


def test_it_is_the_logarithm_of_the_mean_softmax():
    module = smoother().module(samples=7, seed=3)
    draws = module._draws(X)
    each = [module.model(X + one).softmax(1) for one in draws]
    assert torch.allclose(module(X).exp(), sum(each) / 7, atol=1e-6)
    assert torch.allclose(module(X).exp().sum(1), torch.ones(5))
    expected = smoother().probabilities(X, draws)
    assert torch.allclose(module(X).exp(), expected, atol=1e-6)


def test_fixed_noise_makes_one_function_of_each_input():
    module = smoother().module(samples=5)
    whole = module(X)
    torch.rand(3)
    assert torch.equal(module(X), whole)
    one = torch.cat([module(x[None]) for x in X.flip(0)]).flip(0)
    assert torch.allclose(one, whole, atol=1e-6)
    assert not torch.equal(smoother().module(samples=5, seed=1)(X), whole)


def test_fresh_noise_differs_in_every_call_and_can_be_repeated():
    first, again = (smoother().module(samples=5, noise="fresh") for _ in range(2))
    calls = [first(X) for _ in range(3)]
    assert not torch.equal(calls[0], calls[1])
    torch.rand(3)
    assert all(torch.equal(one, again(X)) for one in calls)
    same = X[:1].expand(2, -1, -1, -1)
    rows = smoother().module(samples=5, noise="fresh")(same)
    assert not torch.equal(rows[0], rows[1])
    state = torch.get_rng_state()
    first(X)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_reach_inputs_and_parameters():
    model = network().double()
    module = GaussianSmoother(model, 0.25, num_classes=3).module(samples=3)
    x = X[:1].double().requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))
    module(x)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_modes_dtypes_and_copies_are_those_of_a_module():
    base = smoother(network(dropout=0.5))
    module = base.module(samples=4)
    assert len(list(module.parameters())) == 4
    assert module.eval() is module
    assert not base.model.training
    quiet = module(X)
    assert torch.equal(module(X), quiet)
    module.train()
    assert base.model.training
    assert not torch.equal(module(X), quiet)
    module.eval()
    assert torch.equal(copy.deepcopy(module)(X), quiet)
    module.to(torch.float64)
    assert base.model[0].weight.dtype == torch.float64
    assert module(X).dtype == torch.float64
    with torch.no_grad():
        assert not module(X).requires_grad


def test_deformations_have_modules_too():
    module = DeformationSmoother(network(), Rotation(0.3), 3).module(samples=6)
    assert torch.allclose(module(X).exp().sum(1), torch.ones(5))
    assert torch.allclose(module(X[2:3]), module(X)[2:3], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"samples": 0}, ValueError, "samples must be a count of at least 1"),
        ({"samples": 3, "noise": "some"}, ValueError, "noise must be one of 'fixed', 'fresh'"),
        ({"samples": 3, "seed": -1}, ValueError, "seed must be a count"),
    ],
)
def test_bad_settings(arguments, error, words):
    with pytest.raises(error, match=words):
        smoother().module(**arguments)


# -- preprocessing and bounds ----------------------------------------------------------------------


def by_hand(model):
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            mean, std = (torch.tensor(one).view(3, 1, 1) for one in (MEAN, STD))
            return self.model((x - mean) / std)

    return Inside()


@pytest.mark.parametrize(
    "preprocessing", [(MEAN, STD), {"mean": MEAN, "std": STD, "axis": -3}, [list(MEAN), list(STD)]]
)
def test_preprocessing_is_a_layer_of_ones_own(preprocessing):
    model, law = network(), Gaussian(0.25)
    ours = Smoother(model, law, 3, preprocessing=preprocessing).certify(X, n=300)
    own = Smoother(by_hand(model), law, 3).certify(X, n=300)
    assert torch.equal(ours.counts, own.counts)
    assert torch.equal(ours.radius, own.radius)
    plain = Smoother(model, law, 3).certify(X, n=300)
    assert not torch.equal(plain.counts, own.counts)


def test_one_number_is_for_all_channels_and_other_axes_are_named():
    features = nn.Linear(4, 3)
    x = torch.rand(2, 4)
    for preprocessing in ((0.5, 2.0), {"mean": [0.5] * 4, "std": [2.0] * 4, "axis": -1}):
        ours = Smoother(features, Gaussian(0.25), 3, preprocessing=preprocessing)
        assert torch.allclose(ours.model(x), features((x - 0.5) / 2))


@pytest.mark.parametrize("batch", [1, 3])
def test_channels_that_inputs_do_not_have_are_refused(batch):
    """Three means broadcast over the inputs of a batch of three, one for each."""
    smoother = Smoother(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
        Gaussian(0.25),
        3,
        preprocessing=(MEAN, STD),
        spot_check=False,
    )
    with pytest.raises(ValueError, match=r"mean of preprocessing must hold a number for each entr"):
        smoother.votes(torch.rand(batch, 4, 4), 3, batch_size=3)
    one = Smoother(nn.Linear(4, 3), Gaussian(0.25), 3, preprocessing=([0.5], [2.0]))
    assert len(one.votes(torch.rand(2, 4), 3)) == 2  # one number is for all


@pytest.mark.parametrize(
    ("law", "pixels"),
    [
        (Gaussian(0.25), PixelGaussian(0.25, 0, 1)),
        (Uniform(0.5), PixelUniform(0.5, 0, 1)),
        (Laplace(0.2), PixelLaplace(0.2, 0, 1)),
    ],
)
def test_with_bounds_radii_are_in_pixels_and_nothing_else_changes(law, pixels, tmp_path):
    model = network()
    bounded = Smoother(model, law, 3, bounds=(0, 1))
    certificate, plain = bounded.certify(X, n=300), Smoother(model, law, 3).certify(X, n=300)
    assert bounded.law == pixels
    assert torch.equal(certificate.radius, plain.radius)
    assert (certificate.unit, certificate.norm) == ("pixels", law.norm)
    assert "pixels" in repr(certificate)
    certificate.save(tmp_path / "certificate.json")
    again = Certificate.load(tmp_path / "certificate.json")
    assert again.law == pixels
    assert torch.equal(again.radius, certificate.radius)


@pytest.mark.parametrize(
    ("x", "bounds", "words"),
    [
        (X * 255, (0, 1), r"in the bounds \[0, 1\], got .* at index \(0, 0, 0, 0\): divide bytes"),
        ((X - 0.5) / 0.25, (0, 1), r"give pixels as they are, .* preprocessing=\(mean, std\)"),
        (X - 2, (-1, 1), r"in the bounds \[-1, 1\]"),
    ],
)
def test_inputs_outside_the_bounds_are_refused_with_a_hint(x, bounds, words):
    bounded = Smoother(network(), Gaussian(0.25), 3, bounds=bounds)
    for ask in (bounded.certify, bounded.predict, lambda x: bounded.votes(x, 10)):
        with pytest.raises(ValueError, match=words):
            ask(x)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"preprocessing": 0.5}, TypeError, r"preprocessing must be \(mean, std\) or dict"),
        ({"preprocessing": (0.5, 0.0)}, ValueError, "std of preprocessing must be a positive"),
        ({"preprocessing": (math.nan, 1.0)}, ValueError, "mean of preprocessing must be a finite"),
        ({"preprocessing": {"mu": 1}}, TypeError, r"must have mean, std and axis, got \['mu'\]"),
        ({"preprocessing": {"mean": 0, "flip_axis": -3}}, TypeError, "must not flip an axis"),
        ({"preprocessing": {"mean": 0, "axis": 1}}, ValueError, "axis must count from the last"),
        ({"bounds": 1.0}, TypeError, r"bounds must be \(low, high\), such as \(0, 1\), got 1.0"),
        ({"bounds": (1, 0)}, ValueError, r"bounds must be \(low, high\) with low < high"),
    ],
)
def test_bad_preprocessing_and_bounds(options, error, words):
    with pytest.raises(error, match=words):
        Smoother(network(), Gaussian(0.25), 3, **options)


def test_bounds_are_for_noise_on_inputs():
    with pytest.raises(TypeError, match="bounds are for Gaussian, Uniform and Laplace noise"):
        Smoother(network(), Rotation(0.3), 3, bounds=(0, 1))


def test_the_second_derivation_knows_them():
    for law in (PixelGaussian(0.25), PixelUniform(0.5), PixelLaplace(0.2)):
        document = to_document(law)
        measure, parameters, _ = LAWS[document["name"]]
        assert measure == {"norm": law.norm, "space": law.space, "unit": law.unit}
        assert parameters == set(document) - {"name"}
        assert arithmetic.radius(document, 0.9).proves_at_least(law.radius(0.9))
        assert not arithmetic.radius(document, 0.9).proves_at_least(law.radius(0.9) * (1 + 1e-9))
