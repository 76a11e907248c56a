import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rsfl import bounds
from rsfl._models import affine_layer
from rsfl.smooth import ABSTAIN, Certificate, ParameterSmoother


def linear(dtype=torch.float64, features=6, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).to(dtype)


def twice():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.ReLU(), layer)


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)


X = torch.rand(7, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Way(ParameterSmoother):
    """A smoother that is told how to evaluate its copies."""

    def __init__(self, way, *arguments, **options):
        super().__init__(*arguments, **options)
        self.way = way

    def _way(self, x):
        return self.way


@pytest.mark.parametrize(
    ("model", "ways"), [(linear(), ("wide", "vmap", "loop")), (mlp(), ("vmap", "loop"))]
)
@pytest.mark.parametrize("part", [None, "weight", "bias"])
def test_every_way_counts_the_same_votes(model, ways, part):
    names = [n for n, _ in model.named_parameters() if part is None or n.endswith(part)]
    found = [Way(way, model, 0.5, 3, parameters=names).votes(X, 300, seed=2) for way in ways]
    for votes in found[1:]:
        assert torch.equal(votes, found[0])
    assert len(found[0].unique(dim=0)) > 1


def test_votes_are_those_of_models_with_reloaded_weights():
    model = mlp()
    smoother = ParameterSmoother(model, 0.5, 3)
    expected = torch.zeros(7, 3, dtype=torch.int64)
    other = copy.deepcopy(model)
    for j in range(50):
        other.load_state_dict(
            {name: value[0] for name, value in smoother.noisy(j, j + 1, seed=4).items()}
        )
        expected += nn.functional.one_hot(other(X).argmax(dim=1), 3)
    assert torch.equal(smoother.votes(X, 50, seed=4), expected)


@pytest.mark.parametrize("model", [linear(), mlp()])
def test_votes_do_not_depend_on_the_batch_the_memory_or_the_neighbours(model):
    whole = ParameterSmoother(model, 0.5, 3).votes(X, 200)
    for options, batch_size in (({"memory": 1}, 1), ({"memory": 5000}, 3), ({}, 100)):
        smoother = ParameterSmoother(model, 0.5, 3, **options)
        assert torch.equal(smoother.votes(X, 200, batch_size=batch_size), whole)
    assert torch.equal(ParameterSmoother(model, 0.5, 3).votes(X[2:3], 200, index=[99]), whole[2:3])


def test_linear_votes_follow_the_exact_probabilities():
    model, sigma = linear(), 0.3
    counts = ParameterSmoother(model, sigma, 3).votes(X, 20_000)
    logits = model(X).detach().numpy()
    norms = np.sqrt((X.flatten(1).numpy() ** 2).sum(axis=1) + 1)
    exact = bounds.linear_votes(logits, norms, sigma=sigma)
    for observed, p in zip(counts.numpy(), exact, strict=True):
        assert stats.chisquare(observed, p * 20_000).pvalue > 1e-4


def test_certificates_of_a_linear_model_stay_within_its_margin_but_for_alpha():
    """For linear models the exact radius is known: the margin radius. Small n, many seeds, one
    input near the edge."""
    model, alpha, runs = linear(classes=2), 0.05, 1500
    x = X[:1]
    logits = model(x).detach().numpy()
    exact = float(
        bounds.margin_radius(logits, np.sqrt((x.numpy() ** 2).sum(keepdims=True)[0, 0] + 1))[0]
    )
    assert exact > 0
    smoother = ParameterSmoother(model, exact / 0.8, 2)
    for confidence, runner_up in (("clopper-pearson", "complement"), ("hoeffding", "bounded")):
        radii = [
            float(
                smoother.certify(
                    x,
                    n0=10,
                    n=60,
                    alpha=alpha,
                    seed=seed,
                    confidence=confidence,
                    runner_up=runner_up,
                ).radius
            )
            for seed in range(runs)
        ]
        false = sum(radius > exact for radius in radii)
        assert stats.binomtest(false, runs, alpha, alternative="greater").pvalue > 1e-4
        assert np.median(radii) > 0.05 * exact


def test_the_certificate_says_what_space_it_is_in():
    certificate = ParameterSmoother(linear(), 0.01, 3).certify(X, seed=3)
    assert isinstance(certificate, Certificate)
    assert (certificate.space, certificate.norm, certificate.unit) == (
        "parameters",
        "l2",
        "parameter units",
    )
    assert certificate.n.tolist() == [1000] * 7
    assert {"shared-models", "independent-draws"} <= {a.id for a in certificate.assumptions}
    assert "same-rest" not in {a.id for a in certificate.assumptions}
    part = ParameterSmoother(linear(), 0.01, 3, parameters=["1.weight"]).certify(X, seed=3)
    assert "same-rest" in {a.id for a in part.assumptions}
    hoeffding = ParameterSmoother(linear(), 0.01, 3).certify(X, seed=3, confidence="hoeffding")
    assert torch.equal(hoeffding.counts, certificate.counts)
    assert bool((hoeffding.radius < certificate.radius).all())


def test_buffers_are_a_rest_that_must_be_the_same():
    """Two models with equal parameters and other running means: at distance 0, yet with other
    labels."""
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)).double()
    model.load_state_dict(
        {**model.state_dict(), "0.weight": torch.tensor([[1.0], [-1.0]]), "0.bias": torch.zeros(2)}
    )
    other = copy.deepcopy(model)
    other[1].running_mean.copy_(torch.tensor([3.0, -3.0]))
    one, two = (
        ParameterSmoother(m, 0.1, 2).certify(torch.ones(1, 1, dtype=torch.float64))
        for m in (model, other)
    )
    assert one.label.tolist() != two.label.tolist()
    assert float(one.radius) > 0
    assert "same-rest" in {a.id for a in one.assumptions}


def test_a_low_precision_model_is_rounded_after_the_noise():
    model = linear(torch.bfloat16)
    smoother = ParameterSmoother(model, 0.5, 3)
    exact = ParameterSmoother(copy.deepcopy(model).float(), 0.5, 3).noisy(0, 5, seed=1)
    assert all(
        torch.equal(value, exact[name].bfloat16())
        for name, value in smoother.noisy(0, 5, seed=1).items()
    )
    assert torch.equal(
        smoother.votes(X, 50), smoother.votes(X.bfloat16(), 50)
    )  # X fits itself to the model


class Centred(nn.Linear):
    """Moves its input before it looks at it, in place or not."""

    def __init__(self, in_place):
        super().__init__(6, 3)
        self.in_place = in_place

    def forward(self, x):
        return super().forward((x.sub_(0.5) if self.in_place else x - 0.5).flatten(1))


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_a_model_may_write_into_its_input(way):
    """Each copy finds the input as it was, and so does the caller."""
    x, weights = X.clone(), linear()[1].state_dict()
    found = []
    for in_place in (False, True):
        model = Centred(in_place).double()
        model.load_state_dict(weights)
        found.append(Way(way, model, 0.5, 3).votes(x, 300, batch_size=3))
        assert torch.equal(x, X)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(
            layer, "forward", lambda x: -nn.functional.linear(x, layer.weight, layer.bias)
        ),
        lambda layer: layer.register_forward_hook(lambda module, inputs, logits: -logits),
        lambda layer: layer.register_forward_pre_hook(lambda module, inputs: (-inputs[0],)),
        lambda layer: layer.register_full_backward_hook(lambda module, inputs, outputs: None),
        lambda layer: layer.register_full_backward_pre_hook(lambda module, outputs: None),
        lambda layer: layer.weight.register_hook(lambda gradient: None),
    ],
    ids=[
        "forward",
        "forward hook",
        "forward pre-hook",
        "backward hook",
        "backward pre-hook",
        "gradient hook",
    ],
)
def test_a_layer_that_does_something_else_than_its_class_is_not_taken_for_affine(change):
    model = linear()
    assert affine_layer(model) is not None
    change(model[1])
    assert affine_layer(model) is None
    assert torch.equal(ParameterSmoother(model, 1e-9, 3).certify(X).label, model(X).argmax(dim=1))


def test_prediction_and_sequential_decision_work_as_for_inputs():
    smoother = ParameterSmoother(linear(), 0.01, 3)
    labels = linear()(X).argmax(dim=1)
    assert torch.equal(smoother.predict(X, n=100).label, labels)
    at = smoother.certify_at(X, 0.01, n_max=1000)
    assert torch.equal(at.label[~at.abstained], labels[~at.abstained])
    assert not bool(at.abstained.all())


def test_the_model_is_never_changed():
    model = mlp()
    model[1].train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    ParameterSmoother(model, 0.5, 3).certify(X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_a_leading_class_abstains():
    model = linear()
    for p in model.parameters():
        p.data.zero_()
    certificate = ParameterSmoother(model, 0.5, 3).certify(X)
    assert set(certificate.label.tolist()) == {ABSTAIN}


class LargestProduct(nn.Module):
    """Remembers the largest logits it gave."""

    largest = 0

    def forward(self, x):
        out = nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 3).double() * self.weight
        LargestProduct.largest = max(LargestProduct.largest, len(x))
        return out

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))


def test_inputs_come_in_batches():
    ParameterSmoother(LargestProduct(), 0.1, 3).votes(
        torch.rand(50, 2, dtype=torch.float64), 5, batch_size=8
    )
    assert LargestProduct.largest == 8


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: ParameterSmoother(linear(), 0.0, 3),
            ValueError,
            r"sigma must lie in \(0, inf\), got 0.0",
        ),
        (
            lambda: ParameterSmoother(linear(), 0.1, 3, parameters=["head"]),
            ValueError,
            r"parameters must be some of \[",
        ),
        (
            lambda: ParameterSmoother(linear(), 0.1, 3, parameters=[]),
            ValueError,
            r"parameters must be some of .*got \[\]",
        ),
        (
            lambda: ParameterSmoother(linear(), 0.1, 3, memory=0),
            ValueError,
            "memory must be a count of at least 1.*got 0",
        ),
        (
            lambda: ParameterSmoother(nn.Flatten(), 0.1, 3),
            ValueError,
            r"parameters must be some of \[\]",
        ),
        (
            lambda: ParameterSmoother(torch.relu, 0.1, 3),
            TypeError,
            "model must be a torch.nn.Module",
        ),
        (
            lambda: ParameterSmoother(twice(), 0.1, 5),
            ValueError,
            "model must not use the same module twice, got '0' and '2' sharing one",
        ),
        (
            lambda: ParameterSmoother(linear(), 0.1, 4).votes(X, 20),
            ValueError,
            r"num_classes=4, got \((140|7), 3\)",
        ),
        (
            lambda: ParameterSmoother(mlp(), 0.1, 4).votes(X, 20),
            ValueError,
            r"num_classes=4, got \(7, 3\)",
        ),
        (
            lambda: ParameterSmoother(linear(), 0.1, 3).certify(X, n=9),
            ValueError,
            "n must be at least 10 to certify",
        ),
        (
            lambda: ParameterSmoother(linear(), 0.1, 3).certify(X, n=13, confidence="hoeffding"),
            ValueError,
            "n must be at least 14 to certify",
        ),
        (
            lambda: ParameterSmoother(linear(), 0.1, 3).certify(X, confidence="bayes"),
            ValueError,
            "confidence must be one of",
        ),
    ],
)
def test_bad_arguments_are_named_and_quoted(call, error, words):
    with pytest.raises(error, match=words):
        call()
