"""A prepared model computes the same, and the one it was made from is not touched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from rsfl import _fingerprint
from rsfl.smooth import At, GaussianSmoother, largest_difference, prepared
from rsfl.smooth.preparation import _by_onednn, _OneCall

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Residual(nn.Module):
    """A shortcut that the sum takes as it is, or through a convolution of its own."""

    def __init__(self, inputs, outputs, stride=1, relu=functional.relu):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = relu
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x):
        y = self.norm2(self.second(self.relu(self.norm1(self.first(x)))))
        return self.relu(y + self.shortcut(x))


class Padded(Residual):
    """A shortcut that is cut and padded, perhaps by nothing."""

    def forward(self, x):
        stride, extra = self.first.stride[0], self.first.out_channels - self.first.in_channels
        shortcut = functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, extra))
        return torch.relu(shortcut + self.norm2(self.second(self.norm1(self.first(x)).relu())))


class Choosing(nn.Module):
    """Looks at its input, so that no trace holds for all of them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return self.inner(x) if float(x.detach().sum()) > 0 else -self.inner(-x)


class Twice(nn.Module):
    """One convolution before two normalisations, and one that two others read."""

    def __init__(self):
        super().__init__()
        self.shared, self.read = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        y = self.norms[0](self.shared(x)).relu() + self.norms[1](self.shared(-x))
        z = self.read(y)
        return self.norms[2](z) + functional.relu(z)


def head(features, *layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))


NETWORKS = {
    "plain": lambda: head(4, nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
    "residual": lambda: head(8, nn.Conv2d(3, 4, 3), nn.ReLU(), Residual(4, 4), Residual(4, 8, 2)),
    "padded": lambda: head(8, nn.Conv2d(3, 4, 3), nn.ReLU(), Padded(4, 4), Padded(4, 8, 2)),
    "in place": lambda: head(
        8, nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Residual(4, 8, 1, nn.ReLU(inplace=True))
    ),
    "choosing": lambda: head(4, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Choosing(), nn.Dropout(0.5)),
    "twice": lambda: head(4, nn.Conv2d(3, 4, 3), Twice()),
    "same": lambda: head(4, nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU()),
    "mirrored": lambda: head(
        4, nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.ReLU()
    ),
    "dense": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(300, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)
    ),
    "layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(300, 5)),
}
LEFT = {"choosing": 0, "twice": 3}  # normalisations that nothing may be folded into

X = torch.linspace(-1, 2, 6 * 300).sin().reshape(6, 3, 10, 10)


def network(name):
    """With statistics, and weights, that are not those of a new layer."""
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 10, 10))
        for module in model.modules():
            if isinstance(module, NORMS):
                module.weight.uniform_(-2, 2)
                module.bias.uniform_(-1, 1)
    return model


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_the_same_and_the_model_stays(name, channels_last):
    model = network(name)
    weights, buffers = copy.deepcopy(model.state_dict()), len(list(model.buffers()))
    fast = prepared(model, X[:2], channels_last=channels_last)
    assert largest_difference(model, fast, X) < 1e-5
    assert largest_difference(model, fast, -X[:1]) < 1e-5
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in fast.modules())
    assert len(list(model.buffers())) == buffers
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    mine = {p.data_ptr() for p in model.parameters()}
    assert not mine & {p.data_ptr() for p in fast.parameters()}
    left = sum(isinstance(module, NORMS) for module in fast.modules())
    assert left == LEFT.get(name, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_dtypes(name, dtype):
    model = network(name)
    fast = prepared(model, X[:2], dtype=dtype)
    cast = copy.deepcopy(model).to(dtype)
    assert next(fast.parameters()).dtype == dtype
    few = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]
    size = max(1.0, float(model.eval()(X).detach().abs().amax()))
    assert largest_difference(model, fast, X) < few * size
    assert largest_difference(cast, fast, X) < 2 * few * size


def test_layers_are_joined():
    fast = prepared(network("residual"), X[:2])
    joined = [module for module in fast.modules() if isinstance(module, _OneCall)]
    assert len(joined) == 5  # of the stem, and two of each block
    assert not any(isinstance(module, nn.ReLU) for module in fast.modules())
    fast = prepared(network("padded"), X[:2])
    assert len([module for module in fast.modules() if isinstance(module, _OneCall)]) == 5
    assert fast.code.count("pad(") == 1  # a shortcut that is padded by nothing is not copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
def test_one_call_is_three(dtype, last):
    torch.manual_seed(0)
    for kernel, stride, padding, inputs in ((3, 1, 1, 4), (3, 2, 0, 1), (1, 2, 0, 5), (5, 1, 2, 3)):
        layer = nn.Conv2d(inputs, 6, kernel, stride, padding).requires_grad_(False).to(dtype)
        x = torch.randn(7, inputs, 9, 8, dtype=dtype)
        if last:
            layer = layer.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        other = torch.randn_like(layer(x))
        plain = layer(x).float()
        few = 1e-5 if dtype == torch.float32 else 0.05
        alone, both = _OneCall(layer)(x), _OneCall(layer)(x, other)
        assert torch.allclose(alone.float(), plain.relu(), atol=few)
        assert torch.allclose(both.float(), (plain + other.float()).relu(), atol=few)
        wide = torch.randn(7, 6, 1, 1, dtype=dtype)  # which the sum stretches
        assert not _by_onednn(layer, x, wide)
        assert torch.allclose(
            _OneCall(layer)(x, wide).float(), (plain + wide.float()).relu(), atol=few
        )


def test_gradients_pass():
    model = network("residual").eval()
    fast = prepared(model, X[:2])
    found = []
    for one in (model, fast):
        x = X.clone().requires_grad_()
        one(x).square().sum().backward()
        found.append(x.grad)
    assert torch.allclose(*found, atol=1e-4)


def test_hooks_are_heard():
    model = network("residual")
    heard = []
    model[2].norm1.register_forward_hook(lambda *_: heard.append("norm"))
    model[3].register_forward_pre_hook(lambda *_: heard.append("block"))
    fast = prepared(model, X[:2])
    heard.clear()
    fast(X)
    assert sorted(heard) == ["block", "norm"]
    assert largest_difference(model, fast, X) < 1e-5


def test_what_is_computed_with_weights_that_are_held_elsewhere_is_refused():
    """A copy of the model would go on with the weights of the first one: trained, they change what
    was certified."""
    net = network("plain")

    class Calling(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function, self.head = function, nn.Linear(5, 5)

        def forward(self, x):
            return self.head(self.function(x))

    by_function, weight = GaussianSmoother(lambda x: net(x), 0.5, 5).model, net[-1].weight
    product = Calling(lambda x: functional.linear(x[:, 0, 0, :4], weight))
    for model in (Calling(lambda x: net(x)), Calling(net.forward), by_function, product):
        with pytest.raises(ValueError, match=r"model must hold all that it computes with"):
            prepared(model, X[:2])
    view = Calling(lambda x: x[:, 0, 0, :4] @ weight.T)  # which a trace keeps as a constant
    held = [prepared(one, X[:2]) for one in (Calling(net), view)]
    before = [one(X[:2]) for one in held]
    with torch.no_grad():
        weight.add_(1.0)
    assert all(torch.equal(one(X[:2]), was) for one, was in zip(held, before, strict=True))


def test_a_layer_that_was_joined_has_another_name():
    """Noise at the convolution is not noise behind its normalisation and ReLU."""
    model = network("residual")
    fast = prepared(model, X[:2])
    names = {name for name, _ in fast.named_modules()}
    joined = {name for name, one in fast.named_modules() if isinstance(one, _OneCall)}
    assert joined
    assert not joined & {name for name, _ in model.named_modules()}
    kept = {name for name, one in model.named_modules() if not list(one.children())} & names
    assert all(type(fast.get_submodule(one)) is type(model.get_submodule(one)) for one in kept)
    (first, *_) = (name for name, one in model.named_modules() if isinstance(one, nn.Conv2d))
    with pytest.raises(ValueError, match="place must be the name of one of the model's modules"):
        At(fast, first)


def test_chance_is_refused():
    class Chance(nn.Module):
        def forward(self, x):
            return x * torch.rand(len(x), 1)

    model = nn.Sequential(*network("plain"), Chance())
    with pytest.raises(ValueError, match="one that can be prepared"):
        prepared(model, X)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got 3"):
        prepared(3, X)
    with pytest.raises(
        TypeError, match="x must be a tensor, got dict: of a model of several inputs"
    ):
        prepared(model, {"pixels": X})


def test_it_is_one_model_for_a_run_that_is_resumed():
    model = network("residual")
    one, two = (_fingerprint.model_fingerprint(prepared(model, X[:2])) for _ in range(2))
    assert one == two
    model[0].weight.data[0] += 1
    assert one.differs(_fingerprint.model_fingerprint(prepared(model, X[:2]))) == ["weights"]


def test_it_votes():
    model = network("residual").eval()
    fast = prepared(model, X[:2])
    votes = [GaussianSmoother(one, 0.5, 5).votes(X, 300) for one in (model, fast)]
    assert int((votes[0] - votes[1]).abs().sum()) <= 4
