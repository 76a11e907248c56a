"""What people try first, and the right call that the error names."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rsfl import attacks, conformal, noise, runs
from rsfl.orbit import Rotations
from rsfl.smooth import GaussianSmoother, ParameterSmoother, Parts, Smoother, UniformSmoother

X = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3
DATA = TensorDataset(X, Y)
PGD = attacks.PGD(epsilon=0.1, steps=2)


class Image:
    """As far as an error looks at it, one of PIL."""


Image.__module__ = "PIL.Image"


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def smoother():
    return GaussianSmoother(model(), 0.25, num_classes=3)


def parts():
    return Smoother(Parts(model(), 0), noise.Gaussian(0.25), 3)


def certified(out, *items):
    return runs.certify(smoother(), list(items), out=out, n=100)


WRONG = {
    "a loader": (
        lambda out: smoother().certify(DataLoader(DATA), n=100),
        r"x must be a torch.Tensor, got a DataLoader: runs.certify takes a data set, .* index=",
    ),
    "a data set": (lambda out: smoother().certify(DATA, n=100), "got a TensorDataset: runs.cert"),
    "a batch of a loader": (
        lambda out: smoother().certify(next(iter(DataLoader(DATA, batch_size=3))), n=100),
        r"got a list of 2: of a batch \(x, y\) give x",
    ),
    "a loader in a run": (
        lambda out: runs.certify(smoother(), DataLoader(DATA, batch_size=3), out=out, n=100),
        "one input and its label at a time, got 3 labels; of a DataLoader, give its dataset",
    ),
    "a model in a run": (
        lambda out: runs.certify(model(), DATA, out=out, n=100),
        r"smoother must be a smoother, such as smooth.GaussianSmoother\(model, sigma=0.5",
    ),
    "a model that is attacked": (
        lambda out: attacks.evaluate(model(), PGD, (X, Y)),
        r"such as smooth.GaussianSmoother\(model, sigma=0.5, num_classes=10\), got Sequential",
    ),
    "a smoother that is smoothed": (
        lambda out: GaussianSmoother(smoother(), 0.25, 3),
        r"smoother.module\(samples=100\) is a smoothed classifier as a module",
    ),
    "weights": (
        lambda out: GaussianSmoother(model().state_dict(), 0.25, 3),
        "got a OrderedDict: model.load_state_dict takes weights",
    ),
    "an image of PIL": (
        lambda out: smoother().certify(Image(), n=100),
        r"got a PIL image: torchvision.transforms.functional.to_tensor\(image\)\[None\]",
    ),
    "images of PIL in a data set": (
        lambda out: certified(out, (Image(), 1)),
        "x must be a tensor, got a PIL image: torchvision.transforms.ToTensor",
    ),
    "ids of tokens": (
        lambda out: smoother().certify(torch.randint(0, 5, (2, 12)), n=100),
        r"got torch.int64: .* smooth.At\(model, 'name of a module'\)",
    ),
    "bytes": (
        lambda out: smoother().certify((X * 255).byte(), n=100),
        "got torch.uint8: bytes of pixels are x / 255",
    ),
    "pixels up to 255": (
        lambda out: Smoother(model(), noise.Gaussian(0.2), 3, bounds=(0, 1)).certify(X * 255),
        r"x must lie in the bounds \[0, 1\], got .*: divide bytes by 255",
    ),
    "labels from 1 in a run": (
        lambda out: certified(out, (X[0], 3)),
        r"y must be a class in \[0, 3\), got 3: labels count from 0",
    ),
    "labels from 1 in a table": (
        lambda out: runs.certified_accuracy(smoother().certify(X, n=100), Y + 1, 0.0),
        r"labels must be classes in \[0, 3\), got 3: labels count from 0",
    ),
    "one-hot labels": (
        lambda out: runs.certified_accuracy(smoother().certify(X, n=100), torch.eye(3)[Y], 0.0),
        r"labels must have shape \(6,\), got \(6, 3\): the number of a class for each input",
    ),
    "an array": (
        lambda out: smoother().certify(X.numpy(), n=100),
        r"got a NumPy array: torch.from_numpy\(x\) is a tensor of it",
    ),
    "a list of inputs": (
        lambda out: smoother().certify([X[0], X[1], X[2]], n=100),
        "got a list of 3: .* torch.stack makes a batch of single inputs",
    ),
    "a vector": (
        lambda out: smoother().certify(X[0].flatten(), n=100),
        r"x must be a batch \(B, ...\) of at least one input, got shape \(12,\)",
    ),
    "a mapping": (
        lambda out: smoother().certify({"pixels": X}, n=100),
        r"a mapping of \['pixels'\]: .* smooth.Parts\(model, 'name'\), or smooth.At",
    ),
    "a mapping in a data set": (
        lambda out: certified(out, ({"pixels": X[0]}, 1)),
        r"a mapping of \['pixels'\]: .* smooth.Parts\(model, 'name'\), or smooth.At",
    ),
    "rows of a table": (
        lambda out: certified(out, {"pixels": X[0], "label": 1}),
        r"pairs \(x, y\), got a mapping of .* runs.Mapped\(dataset, function\)",
    ),
    "triples": (
        lambda out: certified(out, (X[0], 1, "meta")),
        r"got 3 entries: give the two that are input and label, by runs.Mapped",
    ),
    "another width": (
        lambda out: GaussianSmoother(model(), 0.25, num_classes=4).certify(X),
        r"model must return logits of shape \(1, 4\) for num_classes=4, got \(1, 3\)",
    ),
    "a single logit": (
        lambda out: GaussianSmoother(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), 1, 2).certify(
            X
        ),
        r"got \(1, 1\): a single logit z of two classes is torch.stack\(\[0 \* z, z\], 1\)",
    ),
    "labels for logits": (
        lambda out: GaussianSmoother(lambda x: model()(x).argmax(1), 1, 3).certify(X),
        "labels alone are counted by a smooth.Voter of your own",
    ),
    "a number for a law": (
        lambda out: Smoother(model(), 0.25, 3),
        r"law must be a noise.Law, such as noise.Gaussian\(0.25\), got 0.25",
    ),
    "a law for sigma": (
        lambda out: GaussianSmoother(model(), noise.Gaussian(0.25), 3),
        r"sigma must be a real number .* got Gaussian\(sigma=0.25\)",
    ),
    "several sigmas": (
        lambda out: GaussianSmoother(model(), torch.tensor([0.25, 0.5]), 3),
        r"sigma must be one number, got an array of shape \(2,\)",
    ),
    "a negative sigma": (lambda out: GaussianSmoother(model(), -0.25, 3), r"must lie in \(0, inf"),
    "a law of parameters": (
        lambda out: Smoother(model(), noise.ParameterGaussian(0.1), 3),
        "law must perturb inputs, got .*: ParameterSmoother is for parameters",
    ),
    "confidence for alpha": (
        lambda out: smoother().certify(X, n=100, alpha=0.999),
        "the probability with which the result may be wrong, so 0.001 is 99.9 % confidence",
    ),
    "few votes": (lambda out: smoother().certify(X, n=5), "n must be at least 10 to certify any"),
    "dropout": (
        lambda out: Smoother(
            lambda x: nn.functional.dropout(model()(x), 0.5), noise.Gaussian(0.2), 3
        ).certify(X, n=100),
        r"model must be one function of a single input: .* Chance \(dropout\)",
    ),
    "parts that are attacked": (
        lambda out: attacks.evaluate(parts(), PGD, (X, Y)),
        r"smoother must be under noise on whole inputs, got noise on 0: smoother.logits\(batch",
    ),
    "parts that are turned": (
        lambda out: parts().certify_orbit(X, Rotations(0.1)),
        "pictures must be the whole input, got noise on 0",
    ),
    "parts under noise on parameters": (
        lambda out: ParameterSmoother(Parts(model(), 0), 0.1, 3),
        "model must take one tensor, got Parts: noise on parameters touches no part of an input",
    ),
    "scores of all classes": (
        lambda out: conformal.calibrate(model()(X), noise.Gaussian(0.2)),
        r"got \(6, 3\): of each calibration input the score of its own label alone",
    ),
    "a sigma for a law of sets": (
        lambda out: conformal.noisy(X, 0.25, purpose="use", seed=0, start=0),
        r"law must be a noise.Law, such as noise.Gaussian\(0.25\), got 0.25",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_right_call_is_named(name, tmp_path):
    call, words = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call(tmp_path / "run")


def test_one_input_without_its_batch_is_told_how_to_be_one():
    """The model's own error stands, with a note on what it was called with."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as found:
        smoother().certify(X[0], n=100)
    notes = getattr(found.value, "__notes__", ["one input alone is given as x[None]"])
    assert "one input alone is given as x[None]" in notes[0]


@pytest.mark.parametrize("kind", [GaussianSmoother, UniformSmoother])
def test_named_smoothers_take_preprocessing_and_bounds(kind):
    named = kind(model(), 0.25, 3, preprocessing=(0.5, 0.2), bounds=(0, 1))
    law = noise.Gaussian(0.25) if kind is GaussianSmoother else noise.Uniform(0.25)
    plain = Smoother(model(), law, 3, preprocessing=(0.5, 0.2), bounds=(0, 1))
    one, other = named.certify(X, n=500), plain.certify(X, n=500)
    assert one.unit == "pixels"
    assert torch.equal(one.radius, other.radius)
    assert np.array_equal(one.counts.numpy(), other.counts.numpy())
