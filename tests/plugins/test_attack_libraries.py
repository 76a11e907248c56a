"""Attacks of other libraries on a smoothed module, unchanged; no certificate breaks under them."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rsfl.noise import Gaussian
from rsfl.smooth import ABSTAIN, Smoother
from rsfl.train import Batches, CrossEntropy, fit

SIGMA, EPSILON, SAMPLES = 0.25, 0.5, 32


def blobs(n, seed):
    """Images (n, 1, 6, 6) of four classes: one quarter is brighter than the rest."""
    y = torch.arange(n) % 4
    x = 0.4 + 0.1 * torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    rows, columns = y // 2 * 3, y % 2 * 3
    for i in range(n):
        x[i, 0, rows[i] : rows[i] + 3, columns[i] : columns[i] + 3] += 0.3
    return x.clamp(0, 1), y


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = blobs(400, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    fit(model, Batches(x, y, 50), CrossEntropy(Gaussian(SIGMA)), optimizer, epochs=8)
    return Smoother(model, Gaussian(SIGMA), 4, bounds=(0, 1))


@pytest.fixture(scope="module")
def inputs(target):
    x, y = blobs(24, seed=1)
    right = target.predict(x, n=200).label == y
    assert right.sum() >= 16
    return x[right], y[right]


def judged(target, x, y, adversarial, budget=EPSILON):
    """What is left of the right predictions, if every point is within its budget and no certificate
    is refuted."""
    assert adversarial.shape == x.shape
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    distance = (adversarial.double() - x.double()).flatten(1).norm(dim=1)
    assert (distance <= budget * (1 + 1e-4)).all()
    certificate = target.certify(x, n=2000)
    label = target.predict(adversarial.detach().float(), n=500).label
    other = (label != ABSTAIN) & (label != certificate.label) & (certificate.label != ABSTAIN)
    assert not (other & (distance < certificate.radius)).any()
    return float((label == y).double().mean())


@pytest.mark.parametrize("name", ["L2PGD", "L2DeepFoolAttack", "DDNAttack"])
@pytest.mark.parametrize("noise", ["fixed", "fresh"])
def test_foolbox(target, inputs, name, noise):
    fb = pytest.importorskip("foolbox", reason="needs the extra rsfl[plugins]: make test-plugins")
    x, y = inputs
    module = target.module(SAMPLES, noise=noise).eval()
    model = fb.PyTorchModel(module, bounds=(0, 1), device="cpu")
    attack = getattr(fb.attacks, name)()
    _, clipped, success = attack(model, x, y, epsilons=EPSILON)
    left = judged(target, x, y, clipped)
    assert left < 1
    assert float(success.double().mean()) > 0
    if noise == "fixed":  # one function: what fools it in the attack fools it afterwards
        assert torch.equal(module(clipped).argmax(1) != y, success)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PGDL2", {"eps": EPSILON, "alpha": 0.1, "steps": 10}),
        ("APGD", {"norm": "L2", "eps": EPSILON, "steps": 10}),
        ("Square", {"norm": "L2", "eps": EPSILON, "n_queries": 300}),
        ("AutoAttack", {"norm": "L2", "eps": EPSILON, "n_classes": 4, "version": "rand"}),
    ],
)
def test_torchattacks(target, inputs, name, options):
    ta = pytest.importorskip(
        "torchattacks", reason="needs the extra rsfl[plugins]: make test-plugins"
    )
    x, y = inputs
    module = target.module(SAMPLES).eval()
    adversarial = getattr(ta, name)(module, **options)(x, y)
    assert judged(target, x, y, adversarial) < 1
    assert not module.training
    assert (module(adversarial).argmax(1) != y).any()


def test_adv_lib(target, inputs, monkeypatch):
    # adv-lib imports torchvision, which fits one torch alone, for a distance that is not measured
    # here, and visdom for plots that are not drawn.
    for name in ("torchvision", "visdom"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(models=None))
    ddn = pytest.importorskip(
        "adv_lib.attacks", reason="needs adv-lib in the environment of make test-plugins"
    ).ddn
    x, y = inputs
    module = target.module(SAMPLES).eval()
    adversarial = ddn(module, x, y, steps=40)
    distance = (adversarial - x).flatten(1).norm(dim=1)
    assert (module(adversarial).argmax(1) != y).all()
    judged(target, x, y, adversarial, budget=float(distance.max()))
    exact = target.certify(x, n=2000)
    assert np.median(distance) > float(exact.radius.median())


def test_preprocessing_means_what_it_means_in_foolbox(target, inputs):
    fb = pytest.importorskip("foolbox", reason="needs the extra rsfl[plugins]: make test-plugins")
    x, _ = inputs
    preprocessing = {"mean": [0.4], "std": [0.3], "axis": -3}
    network = target.model
    theirs = fb.PyTorchModel(network, bounds=(0, 1), preprocessing=preprocessing, device="cpu")
    mine = Smoother(network, Gaussian(SIGMA), 4, preprocessing=preprocessing, bounds=(0, 1))
    assert torch.allclose(theirs(x), mine.model(x), atol=1e-6)
