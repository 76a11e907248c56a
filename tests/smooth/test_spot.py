"""What is no function of a single input is refused before it votes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from rsfl import assumptions
from rsfl.smooth import Ballot, GaussianSmoother, ParameterSmoother, Votes

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A linear classifier, and what is done about its logits."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.change = nn.Linear(4, 3), nn.BatchNorm1d(3), change

    def forward(self, x):
        return self.change(self, self.layer(x))


def majority(model, logits):
    winner = logits.argmax(dim=1).mode().values
    return functional.one_hot(winner, 3).float().expand(len(logits), 3)


def training(model, logits):
    model.train()
    return functional.dropout(logits, 0.5, model.training)


LIES = {
    "dropout": lambda model, logits: functional.dropout(logits, 0.5, training=True),
    "noise": lambda model, logits: logits + torch.randn_like(logits),
    "a counter": lambda model, logits: logits.roll(int(model.norm.num_batches_tracked.add_(1)), 1),
    "batch mean": lambda model, logits: logits - logits.mean(dim=0),
    "batch statistics": lambda model, logits: (
        (logits - logits.mean(0)) / (1e-3 + logits.std(0, correction=0))
    ),
    "majority": majority,
    "place": lambda model, logits: logits * (1 + torch.arange(len(logits))[:, None]),
    "train()": training,
    "size": lambda model, logits: logits * (-1) ** (len(logits) > 1),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("kind", [GaussianSmoother, ParameterSmoother])
def test_a_model_that_depends_on_chance_or_on_its_batch_is_refused(kind, name):
    model = Model(LIES[name])
    for call in (
        lambda smoother: smoother.certify(X, n=100),
        lambda smoother: smoother.predict(X, n=100),
        lambda smoother: smoother.certify_at(X, 0.01, n_max=100),
        lambda smoother: smoother.ballot(X, n=100),
    ):
        with pytest.raises(ValueError, match=r"model must be one function of a single input: ask"):
            call(kind(model, 0.5, 3))


def test_the_check_can_be_switched_off_and_says_so():
    model = Model(LIES["batch mean"])
    off = GaussianSmoother(model, 0.5, 3, spot_check=False).certify(X, n=100)
    on = GaussianSmoother(Model(lambda _, logits: logits), 0.5, 3).certify(X, n=100)
    basis = [{a.id: a.basis for a in c.assumptions}["one-function"] for c in (off, on)]
    assert basis == ["trusted", "spot-checked"]
    counted = Ballot(on.law, Votes(on.selection_counts), Votes(on.counts))
    assert assumptions.ONE_FUNCTION in counted.certificate().assumptions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_is_no_difference(dtype):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))
    model(torch.rand(2, 3, 12, 12))
    x = torch.rand(2, 3, 12, 12)
    assert len(GaussianSmoother(model.to(dtype), 0.5, 10).ballot(x, n=50)) == 2


def test_nothing_is_left_behind():
    """Neither the caller's random numbers nor the model's mode or statistics."""
    model = Model(lambda model, logits: model.norm(logits)).train()
    before = torch.get_rng_state(), model.norm.running_mean.clone()
    GaussianSmoother(model, 0.5, 3).ballot(X, n=20)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(model.norm.running_mean, before[1])
    assert model.training


def test_invalid_logits_are_alike():
    model = Model(lambda _, logits: logits.log())
    assert GaussianSmoother(model, 0.5, 3).ballot(X, n=20).votes.invalid.any()


class Cached(nn.Module):
    """Its weights are parameters, and it computes with copies of them."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()
        weight = self.second.weight.detach().clone()
        self.how = {
            "tuple": lambda: setattr(self, "kept", (weight,)),
            "closure": lambda: setattr(self, "kept", lambda: weight),
            "plain list": lambda: setattr(self, "kept", [weight]),
        }[how]
        self.how()

    def forward(self, x):
        weight = self.kept() if callable(self.kept) else self.kept[0]
        return self.first(x).relu() @ weight.T + self.second.bias


@pytest.mark.parametrize("how", ["tuple", "closure", "plain list"])
def test_weights_that_noise_does_not_reach_are_named(how):
    model, x = Cached(how), X.double()
    with pytest.raises(ValueError, match=r"logits answer to, got \['second.weight'\], to which"):
        ParameterSmoother(model, 0.1, 3).certify(x, n=50)
    rest = ["first.weight", "first.bias", "second.bias"]
    certificate = ParameterSmoother(model, 0.1, 3, parameters=rest).certify(x, n=50)
    assert "same-rest" in {a.id for a in certificate.assumptions}
    off = ParameterSmoother(model, 0.1, 3, spot_check=False)
    with pytest.raises(ValueError, match="to which they do not"):  # never switched off
        off.predict(x, n=50)


class Hidden(nn.Module):
    """All of its weights are where no parameter is looked for, but one."""

    def __init__(self, held):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(()))
        layer = nn.Linear(4, 3)
        self.held = {
            "list": [layer],
            "mapping": {"layer": layer},
            "closure": lambda x: layer(x),
            "bound method": layer.forward,
        }[held]

    def forward(self, x):
        held = next(iter(self.held.values())) if isinstance(self.held, dict) else self.held
        return self.scale * (held[0] if isinstance(held, list) else held)(x)


@pytest.mark.parametrize("held", ["list", "mapping", "closure", "bound method"])
def test_weights_outside_of_the_parameters_are_a_rest_that_must_be_the_same(held):
    certificate = ParameterSmoother(Hidden(held), 0.1, 3).certify(X, n=50)
    assert "same-rest" in {a.id for a in certificate.assumptions}


def test_plain_settings_are_no_rest():
    model = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten())
    model.options = {"names": ["a", "b"], "sizes": (1, 2.0)}
    assert not ParameterSmoother(model, 0.1, 8).law.partial


class Words(nn.Module):
    """A classifier of word numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.embedding(x).mean(dim=1))


def test_inputs_that_no_noise_touches_need_not_be_floats():
    words = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    model = Words()
    smoother = ParameterSmoother(model, 1e-3, 3)
    assert torch.equal(smoother.certify(words, n=50).label, model(words).argmax(dim=1))
    with pytest.raises(TypeError, match=r"x must have a floating point dtype, got torch\.int64"):
        GaussianSmoother(model, 1e-3, 3).certify(words)


class Root(nn.Module):
    """Weights that are kept, and logits that are NaN wherever an input is negative."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.kept = [self.layer.weight.detach().clone(), self.layer.bias.detach().clone()]

    def forward(self, x):
        return functional.linear(x.sqrt(), *self.kept)


def test_logits_that_are_no_numbers_do_not_pass_for_an_answer():
    """NaN equals nothing, itself included: two answers that are alike looked like two."""
    with pytest.raises(ValueError, match=r"got \['layer.weight', 'layer.bias'\], to which they do"):
        ParameterSmoother(Root(), 0.1, 3).certify(X, n=50)


@pytest.mark.parametrize("masked", [-1e4, -1e9])
def test_a_masked_class_excuses_no_chance_in_the_others(masked):
    """Differences were measured by the largest logit of all, which a mask makes as large as one
    likes."""

    def chance(_, logits):
        logits = logits + torch.tensor([1.0, -1.0, 0.0]) * torch.randn(1) / 10
        return logits.masked_fill(torch.tensor([False, False, True]), masked)

    with pytest.raises(ValueError, match="one function of a single input"):
        GaussianSmoother(Model(chance), 0.5, 3).certify(X, n=100)
    steady = Model(lambda _, logits: logits.masked_fill(torch.tensor([False, False, True]), masked))
    assert len(GaussianSmoother(steady, 0.5, 3).ballot(X, n=50)) == 3


class Switching(nn.Module):
    """It leaves evaluation mode when it was asked a hundred times, by whoever."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop, self.asked = nn.Linear(4, 3), nn.Dropout(0.9), 0

    def forward(self, x):
        self.asked += 1
        if self.asked == 100:
            self.train()
        return self.drop(self.layer(x))


@pytest.mark.parametrize("kind", [GaussianSmoother, ParameterSmoother])
def test_a_model_that_leaves_evaluation_mode_while_it_votes_is_refused(kind):
    """The spot check comes before; a training loop in another thread may come after."""
    smoother = kind(Switching().eval(), 0.5, 3)
    with pytest.raises(ValueError, match="must stay in evaluation mode while it votes"):
        smoother.certify(X, n=2000, batch_size=10)
    assert not smoother.model.training
