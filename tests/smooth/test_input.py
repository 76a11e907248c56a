"""Arguments, records and use inside a training loop."""

import json
import sys
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from models import LAWS, MODELS
from torch import nn

from rsfl import assumptions, noise
from rsfl.smooth import (
    ABSTAIN,
    Certificate,
    GaussianSmoother,
    LaplaceSmoother,
    Smoother,
    UniformSmoother,
    floored,
)

MODEL = MODELS["threshold"]
X = torch.tensor([[0.1], [0.5], [0.9]])


def smoother(model=MODEL, num_classes=2):
    return GaussianSmoother(model, 0.5, num_classes)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: smoother().certify(X[:, 0]),
            ValueError,
            r"x must be a batch \(B, \.\.\.\).*got shape \(3,\)",
        ),
        (lambda: smoother().certify([[0.5]]), TypeError, "x must be a torch.Tensor, got a list"),
        (
            lambda: smoother().certify(torch.ones(2, 1, dtype=torch.int64)),
            TypeError,
            "floating point dtype.*int64",
        ),
        (lambda: smoother().certify(X[:0]), ValueError, r"at least one input, got shape \(0, 1\)"),
        (
            lambda: smoother().certify(X * float("nan")),
            ValueError,
            r"x must be finite, got nan at index \(0, 0\)",
        ),
        (lambda: smoother(num_classes=3).certify(X), ValueError, r"num_classes=3, got \(1, 2\)"),
        (
            lambda: smoother(MODELS["staircase"], 3).certify(X),
            ValueError,
            r"num_classes=3, got \(1, 4\)",
        ),
        (
            lambda: smoother(nn.Linear(1, 2, device="meta")).certify(X),
            ValueError,
            "model's device meta, got cpu",
        ),
        (
            lambda: smoother(Pair()).certify(X),
            TypeError,
            "a tensor of logits, or an object with logits, got tuple",
        ),
        (
            lambda: smoother().certify_at(X, -0.1),
            ValueError,
            r"radius must lie in \[0, inf\), got -0.1",
        ),
        (
            lambda: smoother().certify_at(X, 50.0),
            ValueError,
            r"radius must be one that Gaussian.* got 50.0",
        ),
        (lambda: smoother().certify(X, alpha=0), ValueError, r"alpha must lie in \(0, 1\), got 0"),
        (
            lambda: smoother().certify(X, n=9),
            ValueError,
            "n must be at least 10 to certify anything at alpha=0.001, got 9",
        ),
        (
            lambda: smoother().certify(X, n=10, runner_up="bounded"),
            ValueError,
            "n must be at least 11 to certify",
        ),
        (
            lambda: smoother().predict(X, n=10),
            ValueError,
            "n must be at least 11 to predict anything at alpha=0.001, got 10",
        ),
        (
            lambda: smoother().certify_at(X, 0.0, n_max=11),
            ValueError,
            "n_max must be at least 12 to certify radius=0.0",
        ),
        (
            lambda: smoother().certify(X, n0=0),
            ValueError,
            "n0 must be a count of at least 1.*got 0",
        ),
        (lambda: smoother().certify(X, n=100.5), ValueError, "n must be whole, got 100.5"),
        (
            lambda: smoother().certify(X, batch_size=0),
            ValueError,
            "batch_size must be a count of at least 1.*got 0",
        ),
        (
            lambda: smoother().certify(X, seed=-1),
            ValueError,
            "seed must be a count of at least 0.*got -1",
        ),
        (
            lambda: smoother().certify(X, seed=2**64),
            ValueError,
            "seed must be a count of.*got 18446744073709551616",
        ),
        (
            lambda: smoother().certify(X, index=[1, 2]),
            ValueError,
            r"index must hold 3 whole numbers.*got \[1, 2\]",
        ),
        (
            lambda: smoother().certify(X, index=[1, 2, -3]),
            ValueError,
            "index must be a count of.*got -3 at index 2",
        ),
        (
            lambda: smoother().certify(X, index=[2**63, 1, 2]),
            ValueError,
            r"index must be .*got 9\.?223372036854",
        ),
        (
            lambda: smoother().certify(X, index=[2**64, 1, 2]),
            ValueError,
            "index must be .*18446744073709551616 at",
        ),
        (
            lambda: smoother().certify(X, index=[True, False, True]),
            TypeError,
            "index must be a whole number or an",
        ),
        (
            lambda: smoother().certify(X[:, :0]),
            ValueError,
            r"at least one input, got shape \(3, 0\)",
        ),
        (
            lambda: smoother().certify(X.to_sparse()),
            TypeError,
            "x must be a dense tensor, got one of layout torch.sp",
        ),
        (
            lambda: smoother().certify(X, runner_up="max"),
            ValueError,
            "runner_up must be one of 'complement', 'bounded', got 'max'",
        ),
        (
            lambda: Smoother(MODEL, 0.5, 2),
            TypeError,
            "law must be a noise.Law, such as .*, got 0.5",
        ),
        (
            lambda: Smoother(MODEL, noise.ParameterGaussian(0.5), 2),
            ValueError,
            r"law must perturb inputs, got ParameterGaussian\(sigma=0.5",
        ),
        (
            lambda: Smoother(0.5, noise.Gaussian(1), 2),
            TypeError,
            "model must be a torch.nn.Module",
        ),
        (
            lambda: GaussianSmoother(MODEL, -1.0, 2),
            ValueError,
            r"sigma must lie in \(0, inf\), got -1.0",
        ),
        (
            lambda: smoother().probabilities(X, torch.zeros(4, 2, 1)),
            ValueError,
            r"noise must have shape \('m', 3, 1\), got",
        ),
        (lambda: smoother().noise(X, 0), ValueError, "m must be a count of at least 1.*got 0"),
        (
            lambda: Smoother(MODEL, noise.RoundedGaussian(0.5), 2).certify(X),
            ValueError,
            r"x must lie on the grid k / 255",
        ),
    ],
)
def test_bad_arguments_are_named_and_quoted(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_an_impossible_n_is_refused_before_the_model_is_called():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError

    for call in (
        lambda s: s.certify(X, n=5),
        lambda s: s.predict(X, n=5),
        lambda s: s.certify_at(X, 1.0, n_max=20),
    ):
        with pytest.raises(ValueError, match="must be at least"):
            call(smoother(Never()))


def test_named_smoothers_fix_the_law():
    assert GaussianSmoother(MODEL, 0.5, 2).law == noise.Gaussian(0.5)
    assert UniformSmoother(MODEL, 0.5, 2).law == noise.Uniform(0.5)
    assert LaplaceSmoother(MODEL, 0.5, 2).law == noise.Laplace(0.5)
    assert repr(smoother()) == "GaussianSmoother(Staircase, Gaussian(sigma=0.5), num_classes=2)"


def certificate(**changes):
    return smoother().certify(X, **({"n": 1000, "seed": 4, "index": [10, 20, 30]} | changes))


def test_a_certificate_says_everything():
    c = certificate()
    assert c.label.tolist() == [0, ABSTAIN, 1]
    assert c.abstained.tolist() == [False, True, False]
    assert (c.label.dtype, c.radius.dtype, c.counts.dtype, c.n.dtype) == (
        torch.int64,
        torch.float64,
        torch.int64,
        torch.int64,
    )
    assert (c.norm, c.space, c.unit, c.alpha, c.seed) == ("l2", "input", "input units", 0.001, 4)
    assert c.law == noise.Gaussian(0.5)
    assert c.n.tolist() == [1000] * 3
    assert c.n0.tolist() == [100] * 3
    assert c.index.tolist() == [10, 20, 30]
    assert {"fresh-votes", "fixed-number", "one-function", "raw-input", "ideal-noise"} <= {
        a.id for a in c.assumptions
    }
    assert float(c.radius[1]) == 0
    with pytest.raises(AttributeError):
        c.alpha = 0.5


def test_indexing_concatenation_and_conversion():
    c = certificate()
    assert c[1].index.tolist() == [20]
    assert c[-1].index.tolist() == [30]
    assert c[1:].label.tolist() == [ABSTAIN, 1]
    assert c[~c.abstained].label.tolist() == [0, 1]
    assert c[[2, 0]].index.tolist() == [30, 10]
    for one in (np.int64(1), torch.tensor(1), np.array(1)):
        assert c[one].index.tolist() == [20]
    assert c[torch.tensor([1])].index.tolist() == [20]
    with pytest.raises(IndexError, match="index 3 is out of range"):
        c[3]
    assert len(list(c)) == 3  # iteration ends
    again = Certificate.cat([c[:1], c[1:]])
    assert torch.equal(again.counts, c.counts)
    with pytest.raises(ValueError, match="parts must agree in alpha"):
        Certificate.cat([c, certificate(alpha=0.01)])
    with pytest.raises(ValueError, match="parts must not be empty"):
        Certificate.cat([])
    data = c.cpu().to_dict()
    assert isinstance(data["radius"], np.ndarray)
    assert data["abstained"].tolist() == [False, True, False]
    assert json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in data.items()})


@dataclass(frozen=True)
class Endless(noise.Law):
    """Moves nothing, and so reaches everywhere."""

    norm = "l2"

    def sample(self, shape, *, generator=None, device=None):
        return torch.empty(shape).normal_(generator=generator) / 2

    def radius(self, p_a, p_b=None, *, dim=1):
        return np.where(np.asarray(p_a) > 0.9, np.inf, 0.0)


@pytest.mark.parametrize("name", LAWS)
def test_a_saved_certificate_is_the_same_promise(tmp_path, name):
    c = Smoother(MODEL, LAWS[name], 2).certify(
        torch.tensor([[0.2], [0.4], [1.0]]), n=500, index=[3, 2**40, 5]
    )
    at = Smoother(MODEL, LAWS[name], 2).certify_at(torch.tensor([[0.2], [0.4], [1.0]]), 0.1)
    endless = Smoother(MODEL, Endless(), 2).certify(torch.tensor([[-2.0], [0.5]]), n=500)
    assert endless.radius.tolist() == [np.inf, 0.0]
    bounded = Smoother(MODEL, LAWS[name], 2).certify(
        torch.tensor([[0.2]]), n=500, alpha=0.05, runner_up="bounded", confidence="hoeffding"
    )
    predicted = Smoother(MODEL, LAWS[name], 2).predict(torch.tensor([[0.2], [0.4]]))
    for one in (c, at, endless, bounded, predicted, c[:0], c[1]):
        one.save(tmp_path / "certificate.json")
        again = Certificate.load(tmp_path / "certificate.json")
        assert (again.law, again.assumptions, again.alpha, again.seed) == (
            one.law,
            one.assumptions,
            one.alpha,
            one.seed,
        )
        for field in fields(Certificate):
            kept, value = getattr(again, field.name), getattr(one, field.name)
            assert type(kept) is type(value)
            if isinstance(value, torch.Tensor):
                assert kept.dtype == value.dtype
                assert torch.equal(kept, value)
        assert repr(again) == repr(one)
        json.loads(
            (tmp_path / "certificate.json").read_text(), parse_constant=pytest.fail
        )  # JSON as others read it


def test_a_loaded_certificate_promises_no_more(tmp_path):
    path, c = tmp_path / "certificate.json", certificate()
    c.save(path)
    text = path.read_text()
    kept = json.loads(text)
    kept["content"]["radius"][0] = "9.0"
    for content, words in (
        (json.dumps(kept), "the checksum does not fit"),
        (text.replace('"sigma": 0.5', '"sigma": 5.0'), "the checksum does not fit"),
        (
            text.replace('"format": 2', '"format": 3'),
            "it is a certificate of format 3, not a certificate of 2",
        ),
        (text[: len(text) // 2], "certificate.json cannot be read as a certificate"),
        ("[]", "certificate.json cannot be read as a certificate"),
        ("{}", "certificate.json cannot be read as a certificate"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            Certificate.load(path)
    replace(c, assumptions=()).save(
        path
    )  # what the law rests on is named whether or not the file says so
    assert set(Certificate.load(path).assumptions) == set(c.assumptions)
    with pytest.raises(FileNotFoundError):
        Certificate.load(tmp_path / "nothing")


def test_a_law_that_is_not_known_or_measures_otherwise_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "certificate.json"

    @dataclass(frozen=True)
    class Mine(noise.Gaussian):
        pass

    replace(certificate(), law=Mine(0.5)).save(path)
    assert type(Certificate.load(path).law) is Mine
    monkeypatch.setattr(Mine, "norm", "linf")
    with pytest.raises(
        ValueError, match=r"measured {'norm': 'l2', .* and measures {'norm': 'linf'"
    ):
        Certificate.load(path)
    Mine.__qualname__ = "Other"
    with pytest.raises(
        ValueError, match=r"law '.*Mine' is not one of .*; import the module that defines it"
    ):
        Certificate.load(path)
    with pytest.raises(TypeError, match=r"law must be a noise.Law and a dataclass, got <object"):
        replace(certificate(), law=object()).save(path)

    @dataclass(frozen=True, repr=False)
    class More(Certificate):
        threat: str = "a threat"

    with pytest.raises(TypeError, match=r"only a smooth.Certificate can be saved, got a More"):
        More(**vars(certificate())).save(path)


def test_a_certificate_prints_its_promise_and_floors():
    c = certificate()
    text = repr(c)
    assert "3 inputs, 1 abstained: l2 radius in input units" in text
    assert "alpha = 0.001 for each" in text
    assert "abstain" in text
    assert "fresh-votes (configured)" in text
    for i, line in enumerate(text.splitlines()[2:5]):
        _, _, radius, low, high, _ = line.split()
        assert float(radius) <= float(c.radius[i]) < float(radius) + 1e-4
        assert float(low) <= float(c.p_lower[i])
        assert float(high) >= float(c.p_upper[i])
    assert c._repr_html_().count("<tr>") == 4
    assert "... and" not in text
    assert "... and 5 more" in repr(Certificate.cat([c] * 5))


@pytest.mark.parametrize("value", [0.0, 0.1, 0.29, 1.95526, 123.456789, 1e-9, 0.99995, 0.7, 4.35])
def test_floored_text_is_never_above(value):
    assert value - 1e-4 < float(floored(value)) <= value


@pytest.mark.parametrize("value", [2.0**53, 3.3e25, 1.7e305])
def test_floored_text_of_a_whole_number_is_that_number(value):
    assert float(floored(value)) == value
    assert float(floored(-value)) == -value


def test_probabilities_are_the_mean_softmax_and_differentiable():
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    s = GaussianSmoother(model, 0.5, 4)
    x = torch.rand(2, 3, requires_grad=True)
    drawn = s.noise(x, 5, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (5, 2, 3)
    p = s.probabilities(x, drawn)
    expected = torch.stack([model(x + d).softmax(dim=1) for d in drawn]).mean(dim=0)
    torch.testing.assert_close(p, expected)
    again = s.probabilities(x, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again, p)
    p[:, 0].log().sum().backward()
    assert x.grad.abs().sum() > 0
    assert model.weight.grad.abs().sum() > 0
    assert model.training


def test_whole_numbers_of_any_type_are_taken_and_kept_as_ours():
    for index in (
        np.array([1, 2, 3], dtype=np.uint8),
        torch.tensor([1, 2, 3], dtype=torch.int32),
        range(1, 4),
    ):
        c = certificate(index=index, seed=np.int64(4), n=np.int32(100))
        assert torch.equal(c.counts, certificate(index=[1, 2, 3], n=100).counts)
        assert c.index.dtype == torch.int64
        assert type(c.seed) is int


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take notes from Python 3.11 on")
def test_one_input_alone_is_told_how_to_become_a_batch():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    network(torch.rand(2, 1, 6, 6))
    assert len(GaussianSmoother(network, 0.5, 2).certify(torch.rand(1, 6, 6)[None], n=100)) == 1
    with pytest.raises(RuntimeError) as raised:
        GaussianSmoother(network, 0.5, 2).certify(torch.rand(1, 6, 6), n=100)
    assert raised.value.__notes__ == [
        "The model was called with 1 inputs of shape (6, 6); one input alone is given as x[None]."
    ]


def test_probabilities_of_a_low_precision_model_are_summed_in_float32():
    s = GaussianSmoother(nn.Linear(3, 4, dtype=torch.bfloat16), 0.5, 4)
    assert s.probabilities(torch.rand(2, 3, dtype=torch.bfloat16), 5).dtype == torch.float32


@pytest.mark.parametrize("name", LAWS)
def test_votes_are_those_of_the_estimation(name):
    model, law = MODELS["staircase"], LAWS[name]
    s, x = Smoother(model, law, 4), X.mul(255).round().div(255)
    assert torch.equal(s.votes(x, 300, seed=5), s.certify(x, n=300, seed=5).counts)


def test_a_certificate_can_be_taken_inside_a_gradient_computation():
    x = X.clone().requires_grad_()
    assert not smoother().certify(x, n=100).radius.requires_grad


def test_the_register_has_unique_ids_and_every_law_is_in_it():
    ids = [a.id for a in assumptions.register()]
    assert len(ids) == len(set(ids)) >= 10
    for law in LAWS.values():
        assert {a.id for a in law.assumptions} <= set(ids)
