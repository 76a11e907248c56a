"""Functions as models, and models that return objects with logits."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rsfl.noise import Gaussian
from rsfl.smooth import ParameterSmoother, Smoother

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 2))


NETWORK = network(dropout=0.5).train()


def through_a_name(x):
    return through_another_name(x) * 2


def through_another_name(x):
    return NETWORK(x)


class Client:
    """A model somewhere else, as an object that is called."""

    def __init__(self, network):
        self.network, self.calls = network, 0

    def __call__(self, x):
        return self.network(x)

    def ask(self, x):
        return self.network(x)


def closed(model):
    return lambda x: model(x)


def defaulted(model):
    def ask(x, model=model):
        return model(x)

    return ask


HOLDERS = {
    "a closure": closed,
    "a default": defaulted,
    "an argument": lambda model: partial(lambda model, x: model(x), model),
    "an object": Client,
    "a method": lambda model: Client(model).ask,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_function_votes_as_the_modules_that_it_holds(name):
    model = network(dropout=0.5).train()
    wanted = Smoother(model, Gaussian(0.4), 2).certify(X, n=1000)
    smoother = Smoother(HOLDERS[name](model), Gaussian(0.4), 2)
    found = smoother.certify(X, n=1000)
    assert torch.equal(found.counts, wanted.counts)
    assert model.training
    assert model[1] in list(smoother.model.modules())
    before = smoother.fingerprint(X[:1])
    with torch.no_grad():
        model[0].weight.add_(0.1)
    assert "weights" in smoother.fingerprint(X[:1]).differs(before)


def test_modules_under_names_of_the_file_are_found():
    smoother = Smoother(through_a_name, Gaussian(0.4), 2)
    wanted = Smoother(NETWORK, Gaussian(0.4), 2).certify(X, n=1000)
    assert torch.equal(smoother.certify(X, n=1000).counts, wanted.counts)
    assert NETWORK.training


def test_a_function_without_modules_gets_inputs_as_they_are():
    weights = np.array([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])

    def elsewhere(x):
        assert x.dtype == torch.float64
        return torch.from_numpy(x.numpy() @ weights)

    certificate = Smoother(elsewhere, Gaussian(0.1), 2).certify(X.double(), n=1000)
    assert certificate.label.tolist() == [0] * 4
    assert "Called(\n  test_a_function" in repr(Smoother(elsewhere, Gaussian(0.1), 2).model)


class Told(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return SimpleNamespace(loss=None, logits=self.model(x))


def test_logits_are_found_in_what_a_model_returns():
    model = network()
    told = Smoother(Told(model), Gaussian(0.4), 2)
    wanted = Smoother(model, Gaussian(0.4), 2)
    assert torch.equal(told.certify(X, n=1000).counts, wanted.certify(X, n=1000).counts)
    assert torch.equal(told.module(5)(X), wanted.module(5)(X))
    assert told.fingerprint(X[:1]).answers == wanted.fingerprint(X[:1]).answers
    for names in (["model.3.weight"], None):
        plain = None if names is None else ["3.weight"]
        copies = ParameterSmoother(Told(model), 0.1, 2, parameters=names)
        other = ParameterSmoother(model, 0.1, 2, parameters=plain)
        assert torch.equal(copies.votes(X, 200), other.votes(X, 200))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear, "model must be a model, got the class Linear: call it first"),
        (0.5, "model must be a torch.nn.Module or a function from batches to logits, got 0.5"),
        (Smoother(nn.Linear(3, 2), Gaussian(1), 2), r"got Smoother\(Linear"),
    ],
)
def test_what_cannot_be_called_is_named(model, words):
    with pytest.raises(TypeError, match=words):
        Smoother(model, Gaussian(0.4), 2)


def test_what_returns_no_logits_is_named():
    with pytest.raises(TypeError, match="a tensor of logits, or an object with logits, got str"):
        Smoother(lambda x: "cat", Gaussian(0.4), 2).certify(X, n=1000)
