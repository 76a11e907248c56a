"""On a GPU: every room works there, its draws do not depend on batches, and what it certifies is
what a CPU would, but for rounding."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rsfl import _samples, attacks, bounds, conformal, fed, noise, orbit, runs, train
from rsfl.deform import Rotation, Translation
from rsfl.smooth import (
    DeformationSmoother,
    GaussianSmoother,
    JointSmoother,
    ParameterSmoother,
    Smoother,
    margins,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LAWS = [
    noise.Gaussian(0.5),
    noise.Uniform(0.5),
    noise.Laplace(0.3),
    noise.RoundedGaussian(0.5),
]


def network(seed: int = 0) -> nn.Sequential:
    """A small network for images of 8 x 8, the same at every call."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3)
    )


def images(n: int = 4) -> torch.Tensor:
    """Images whose values are multiples of 1/255."""
    draws = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=draws).mul(255).round().div(255)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of images that can be told apart under noise, on the GPU."""
    draws = torch.Generator().manual_seed(2)
    y = torch.arange(300) % 3
    x = 0.3 * torch.rand(300, 1, 8, 8, generator=draws)
    for label in range(3):
        x[y == label, :, 2 * label : 2 * label + 3] += 0.6
    return x.cuda(), y.cuda()


@pytest.fixture(scope="module")
def model(data: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    """A network that was trained for noise, on the GPU."""
    net = network().cuda()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    loss = train.CrossEntropy(noise.Gaussian(0.5))
    train.fit(net, train.Batches(*data, size=50), loss, optimizer, epochs=10)
    return net.eval()


# -- votes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_votes_do_not_depend_on_batches_or_neighbours(law: noise.Law, model: nn.Module) -> None:
    x = images().cuda()
    smoother = Smoother(model, law, 3)
    whole = smoother.votes(x, 1050, batch_size=1000)
    assert whole.device == x.device
    assert whole.sum(dim=1).tolist() == [1050] * 4
    assert torch.equal(smoother.votes(x, 1050, batch_size=1000), whole)
    cut = smoother.votes(x[[2]], 1050, batch_size=350, index=[2])
    # other batches are other sums of the same numbers: a tie may fall to the other side
    assert (cut - whole[[2]]).abs().max() <= 2


@pytest.mark.parametrize("law", LAWS)
def test_shares_are_those_of_a_cpu(law: noise.Law, model: nn.Module) -> None:
    x, n = images(), 20_000
    there = Smoother(model, law, 3).votes(x.cuda(), n).cpu().double() / n
    here = Smoother(network_on_cpu(model), law, 3).votes(x, n).double() / n
    error = (there * (1 - there) / n + here * (1 - here) / n).sqrt()
    assert ((there - here).abs() <= 5 * error + 1e-3).all()


def network_on_cpu(model: nn.Module) -> nn.Module:
    """The same network on the CPU."""
    net = network()
    net.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    return net.eval()


def test_normals_have_their_tails() -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    n, ends = 0, np.zeros(4)
    levels = (4.0, 5.0, 5.5, 5.9)
    for _ in range(20):
        z = _samples.normal((100_000_000,), generator=draws, device=torch.device("cuda")).abs_()
        ends += [int((z > level).sum()) for level in levels]
        n += z.numel()
    expected = 2 * stats.norm.sf(levels) * n
    assert (np.abs(ends - expected) <= 5 * np.sqrt(expected) + 1).all(), (ends, expected)


def test_certificates_are_on_the_device_and_come_back_from_a_file(model, tmp_path) -> None:
    x = images().cuda()
    certificate = GaussianSmoother(model, 0.5, 3).certify(x, n=2000)
    assert certificate.radius.device == x.device
    certificate.save(tmp_path / "c.json")
    back = type(certificate).load(tmp_path / "c.json")
    assert torch.equal(back.radius, certificate.radius.cpu())
    assert torch.equal(back.label, certificate.label.cpu())
    assert str(certificate)


def test_sequential_tests(model, data) -> None:
    x, y = data[0][:6], data[1][:6]
    certificate = GaussianSmoother(model, 0.5, 3).certify_at(x, 0.1, n_max=5000)
    assert (certificate.label == y).float().mean() > 0.5
    assert GaussianSmoother(model, 0.5, 3).predict(x, n=200).label.device == x.device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_another_precision(dtype: torch.dtype) -> None:
    x = images().cuda()
    found = GaussianSmoother(network().to("cuda", dtype), 0.5, 3).votes(x, 1000)
    assert found.sum(dim=1).tolist() == [1000] * 4


def test_memory_that_runs_out_halves_the_batch(model) -> None:
    class Greedy(nn.Module):
        """Asks for more memory than there is, for many rows."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.rows = model, []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.rows.append(len(x))
            if len(x) > 1000:
                torch.empty(2**46, device=x.device)
            return self.inner(x)

    greedy = Greedy()
    found = Smoother(greedy, noise.Gaussian(0.5), 3, spot_check=False).votes(images().cuda(), 2000)
    assert found.sum(dim=1).tolist() == [2000] * 4
    assert max(greedy.rows) > 1000
    assert torch.equal(found, GaussianSmoother(model, 0.5, 3).votes(images().cuda(), 2000))


@pytest.mark.parametrize("deformation", [Rotation(0.5), Translation(0.2)])
def test_deformations(deformation, model) -> None:
    x = images().cuda()
    certificate = DeformationSmoother(model, deformation, 3).certify(x, n0=50, n=500)
    assert certificate.radius.device == x.device
    there = DeformationSmoother(model, deformation, 3).votes(x, 5000).cpu().double() / 5000
    here = DeformationSmoother(network_on_cpu(model), deformation, 3).votes(images(), 5000)
    assert (there - here / 5000).abs().max() <= 0.05


def test_parameters(model) -> None:
    x = images().cuda()
    for net in (model, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).cuda()):
        certificate = ParameterSmoother(net, 0.02, 3).certify(x, n0=20, n=200)
        assert certificate.radius.device == x.device
        assert certificate.counts.sum(dim=1).tolist() == [200] * 4


def test_margins_of_a_linear_model() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    net, x = net.double(), images().double()
    here = margins(net, x).radius
    there = margins(net.cuda(), x.cuda()).radius
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-7)


# -- orbits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        orbit.Rotations(math.radians(20)),
        orbit.Scalings(0.2),
        orbit.Translations(0.1, 0.1),
        orbit.RotationScalings(0.1, 0.1),
        orbit.Exposures(0.1, 0.1),
    ],
)
def test_geometry_is_that_of_a_cpu(family: orbit.Orbit) -> None:
    x = images(1)
    here = orbit.Mesh.of(family, x)
    there = orbit.Mesh.of(family, x.cuda(), [len(axis) - 1 for axis in here.axes])
    torch.testing.assert_close(
        there.distances(x.cuda()).cpu(), here.distances(x), rtol=1e-9, atol=1e-6
    )


def test_orbits_are_certified_and_runs_go_on(model, data, tmp_path) -> None:
    x, y = data[0][:4].cpu(), data[1][:4].cpu()
    smoother = GaussianSmoother(model, 0.5, 3)
    run = runs.OrbitRun(orbit.Rotations(math.radians(3)))
    few, _ = runs.certify_orbits(smoother, (x, y), run, out=tmp_path, limit=2)
    all_, labels = runs.certify_orbits(smoother, (x, y), run, out=tmp_path)
    assert torch.equal(all_.label[:2], few.label)
    assert (all_.label.numpy() == labels).any()
    assert bool(all_.ballot.confirmed(x).all())


# -- training and attacks --------------------------------------------------------------------------


def test_training_goes_on_where_it_was(data, tmp_path) -> None:
    def run(epochs: int) -> tuple[nn.Module, tuple[train.Epoch, ...]]:
        net = network().cuda()
        history = train.fit(
            net,
            train.Batches(*data, size=100),
            train.CrossEntropy(noise.Gaussian(0.5)),
            torch.optim.SGD(net.parameters(), 0.1),
            epochs=epochs,
            checkpoint=tmp_path / "c.pt",
        )
        return net, history

    run(1)
    net, history = run(2)
    assert len(history) == 2
    assert next(net.parameters()).is_cuda


LOSSES = [
    train.Stability(law=noise.Gaussian(0.5), weight=2.0),
    train.Consistency(law=noise.Gaussian(0.5), weight=5.0),
    train.MACER(law=noise.Gaussian(0.5), weight=6.0),
    train.SmoothMix(law=noise.Gaussian(0.5), num_classes=3, steps=2, samples=2),
    train.Adversarial(
        attack=attacks.SmoothAdvPGD(epsilon=0.3, steps=2, samples=2),
        law=noise.Gaussian(0.5),
        num_classes=3,
    ),
    train.Consistency(
        law=train.OrbitNoise(orbit.Rotations(0.2), noise.Gaussian(0.5)), weight=5.0, entropy=0.0
    ),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_losses(loss: train.Loss, data) -> None:
    net = network().cuda()
    value = loss(net, data[0][:20], data[1][:20], torch.Generator("cuda").manual_seed(0))
    value.backward()
    assert value.is_cuda
    assert math.isfinite(value.item())


@pytest.mark.parametrize(
    "attack",
    [
        attacks.SmoothAdvPGD(epsilon=0.3, steps=2, samples=4),
        attacks.SmoothAdvDDN(epsilon=0.3, steps=2, samples=4),
        attacks.OnePoint(epsilon=0.3, steps=2, samples=4),
        attacks.PGD(epsilon=0.3, steps=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks(attack: attacks.Attack, model, data) -> None:
    smoother = GaussianSmoother(model, 0.5, 3)
    found = attacks.evaluate(smoother, attack, [(data[0][:10], data[1][:10])], n=200)
    assert len(found.attacked) == 10
    point = attack(smoother, data[0][:10], data[1][:10]).point
    moved = (point - data[0][:10]).flatten(1).norm(dim=1)
    assert (moved <= 0.3 * (1 + 1e-5)).all()


def test_smoothed_module_and_conformal_sets(model, data) -> None:
    x = data[0][:8].clone().requires_grad_()
    smoother = GaussianSmoother(model, 0.5, 3)
    smoother.module(samples=8)(x).sum().backward()
    assert x.grad is not None
    law = noise.Gaussian(0.5)
    noisy = conformal.noisy(data[0], law, purpose="calibration", seed=0, start=0)
    with torch.no_grad():
        scores = 1 - model(noisy).softmax(dim=1)[torch.arange(len(noisy)), data[1]]
    assert conformal.calibrate(scores, law, coverage=0.8, radius=0.1).n == len(scores)


def test_runs_go_on_and_are_read(model, data, tmp_path) -> None:
    x, y = data[0][:20].cpu(), data[1][:20].cpu()
    smoother = GaussianSmoother(model, 0.5, 3)
    for rank in range(2):
        runs.certify(smoother, (x, y), out=tmp_path, n=500, rank=rank, world_size=2)
    certificate, labels = runs.certify(smoother, (x, y), out=tmp_path, n=500)
    assert len(labels) == 20
    assert (certificate.label.cpu().numpy() == labels).mean() > 0.5


# -- federated -------------------------------------------------------------------------------------


def clients(x: torch.Tensor, y: torch.Tensor, n: int = 6, **how: object) -> list[fed.Client]:
    """So many clients with equal parts of the data."""
    trainer = fed.SGD(lr=0.1, batch_size=25, **how)
    return [fed.Client(i, x[i::n], y[i::n], trainer=trainer) for i in range(n)]


def test_federated_training_and_its_certificates(data) -> None:
    x, y = data
    flat = x.flatten(1)
    torch.manual_seed(0)
    server = fed.Server(nn.Linear(64, 3).cuda(), clients(flat, y), clip=5.0)
    result = server.run(3)
    there = next(result.model.parameters())
    assert there.is_cuda
    torch.manual_seed(0)
    here = fed.Server(nn.Linear(64, 3), clients(flat.cpu(), y.cpu()), clip=5.0).run(3)
    torch.testing.assert_close(there.cpu(), next(here.model.parameters()), rtol=1e-3, atol=1e-3)


def test_groups_and_joint_certificates(data) -> None:
    x, y = data
    torch.manual_seed(0)
    server = fed.Server(network().cuda(), clients(x, y, 15))
    vote = fed.train_groups(server, groups=5, rounds=3, num_classes=3)
    certificate = vote.certify(x[:10])
    assert (certificate.label.cpu() == y[:10].cpu()).float().mean() > 0.5
    joint = JointSmoother(fed.GroupJudge(vote, most=2), noise.Gaussian(0.2)).certify(x[:10], n=300)
    assert joint.at(0).radius.shape == (10,)


def test_a_ledger_certifies_on_the_device(data) -> None:
    x, y = data[0].flatten(1).double(), data[1]
    torch.manual_seed(0)
    model = nn.Linear(64, 3, dtype=torch.float64).cuda()
    server = fed.Server(model, clients(x, y, decay=0.01), clip=5.0, noise_std=0.001)
    run = server.run(3)
    threat = bounds.RemovalThreat(at_most=1)
    there = fed.certify(run.model, x[:20], run.ledger, threat)
    assert there.label.is_cuda
    here = fed.certify(run.model.cpu(), x[:20].cpu(), run.ledger, threat)
    assert torch.equal(there.label.cpu(), here.label)
    judge = fed.LinearJudge(run.model.cuda(), run.ledger, [threat])
    joint = JointSmoother(judge, noise.Gaussian(0.1)).certify(x[:5], n=300)
    assert joint.at(1).radius.shape == (5,)
