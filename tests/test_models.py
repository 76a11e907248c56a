"""What a model is asked: modes that threads share, and affine layers that are what they seem."""

import threading

import pytest
import torch
from torch import nn

from rsfl._models import affine_layer, evaluating
from rsfl.smooth import GaussianSmoother


def test_the_last_to_leave_restores_the_modes():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model.train()
    model[1].eval()
    one, other = evaluating(model), evaluating(model[0])
    # Left in this order, as by two threads, the blocks would leave one thread without gradients.
    with torch.enable_grad():
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert [module.training for module in model.modules()] == [True, False, False]
        other.__exit__(None, None, None)
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == [True, True, False]
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize("training", [(False, False), (False, True), (True, True)])
def test_every_part_is_evaluated_whichever_were_so_before(training):
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model.training = model[0].training = training[0]
    model[1].training = training[1]
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


class Passes(nn.Module):
    """Passes its mode on to a part that torch does not know of."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def train(self, mode=True):
        for part in self.parts:
            part.train(mode)
        return super().train(mode)


class Lists(nn.Module):
    """Has a part that it lists as a child."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def children(self):
        return iter(self.parts)


def _by_its_own_train():
    model = nn.Identity()
    model.parts = []
    model.train = lambda mode=True: [part.train(mode) for part in model.parts]
    return model


@pytest.mark.parametrize("kind", [Passes, Lists, _by_its_own_train])
def test_parts_that_only_the_model_knows_are_evaluated_too(kind):
    model = nn.Sequential(kind()).eval()
    model[0].parts.append(nn.Dropout())
    with evaluating(model):
        assert not model[0].parts[0].training


class Watched(nn.Module):
    """A network with batch statistics that notes the mode in which it was called."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training or self.norm.training)
        return self.layer(self.norm(x))


def test_threads_share_a_model_and_its_mode():
    model = Watched().train()
    mean = model.norm.running_mean.clone()
    x = torch.rand(2, 4)
    smoother = GaussianSmoother(model, 0.25, 3)
    expected = smoother.votes(x, 300)
    found = []

    def work(pieces):
        for _ in range(pieces):
            found.append(smoother.votes(x, 300, batch_size=100))

    threads = [threading.Thread(target=work, args=(pieces,)) for pieces in (1, 3, 6, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(model.modes)
    assert torch.equal(model.norm.running_mean, mean)
    assert model.training
    assert all(torch.equal(votes, expected) for votes in found)


def layer():
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 2))


class Negated(torch.Tensor):
    """A parameter that computes something else."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = super().__torch_function__(function, types, args, kwargs or {})
        return -out if function is nn.functional.linear else out


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model[1])


def subclassed(model):
    model[1].weight = nn.Parameter(torch.rand(2, 3).as_subclass(Negated))


def attribute(model):
    model[1].weight_cache = model[1].weight.detach().clone()


def shadowed(model):
    vars(model[1])["weight"] = torch.zeros(2, 3)


def buffered(model):
    model[1].register_buffer("mask", torch.ones(2, 3))


@pytest.mark.parametrize("change", [parametrized, subclassed, attribute, shadowed, buffered])
def test_a_field_that_was_touched_is_not_affine(change):
    model = layer()
    assert affine_layer(model) is not None
    change(model)
    assert affine_layer(model) is None


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
)
def test_hooks_of_all_modules_are_seen(register):
    model = layer()
    handle = register(lambda *_: None)
    try:
        assert affine_layer(model) is None
    finally:
        handle.remove()
    assert affine_layer(model) is not None


@pytest.mark.parametrize("kind", [nn.Linear, nn.Flatten, nn.Sequential])
def test_a_class_that_was_patched_is_not_affine(monkeypatch, kind):
    model = layer()
    monkeypatch.setattr(kind, "forward", lambda self, x: x)
    assert affine_layer(model) is None


@pytest.mark.parametrize(("owner", "name"), [(nn.functional, "linear"), (nn.Module, "__call__")])
def test_a_call_that_was_patched_is_not_affine(monkeypatch, owner, name):
    model = layer()
    monkeypatch.setattr(owner, name, lambda *_: None)
    assert affine_layer(model) is None
