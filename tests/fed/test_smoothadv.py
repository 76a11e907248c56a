"""Federated SmoothAdv: the losses of central training, unchanged, in the clients."""

import pytest
import torch
from torch import nn

from rsfl import fed, smooth, train
from rsfl.attacks import PGD, OnePoint, SmoothAdvPGD
from rsfl.deform import Rotation
from rsfl.noise import Gaussian

SIGMA = 0.25
LOSSES = {
    "stochastic estimator": train.Adversarial(
        attack=SmoothAdvPGD(epsilon=0.25, steps=2, samples=2, step_size=0.1),
        law=Gaussian(SIGMA),
        num_classes=3,
    ),
    "one-point estimator": train.Adversarial(
        attack=OnePoint(epsilon=0.25, steps=2, samples=2, step_size=0.1),
        law=Gaussian(SIGMA),
        num_classes=3,
    ),
    "adversarial only": train.Adversarial(
        attack=PGD(epsilon=0.25, steps=2), law=Gaussian(SIGMA), num_classes=3
    ),
    "rotated": train.CrossEntropy(Rotation(0.3)),
}


def problem(loss, seed=0):
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(240) % 3
    x = torch.zeros(240, 1, 4, 4)
    x[torch.arange(240), 0, y] = 0.8  # a bright row
    x = (x + 0.1 * torch.rand(x.shape, generator=generator)).clamp(0, 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    trainer = fed.SGD(lr=0.3, batch_size=20, loss=loss)
    server = fed.Server(
        model, fed.clients(x, y, fed.partition.equal(len(x), 4, seed=1), trainer), seed=seed
    )
    return server, x, y


@pytest.mark.parametrize("name", LOSSES)
def test_clients_train_with_every_loss_and_repeat_bit_for_bit(name):
    server, x, y = problem(LOSSES[name])
    result = server.run(8, progress=False)
    again = server.run(8, progress=False)
    for one, other in zip(result.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    if name != "rotated":
        certificate = smooth.GaussianSmoother(result.model, SIGMA, 3).certify(x[:30], n=500)
        assert float((certificate.label == y[:30]).double().mean()) > 0.8
        assert float(certificate.radius.mean()) > 0.1
    assert {one.outcome for entry in result.ledger.entries for one in entry.round.participants} == {
        "used"
    }
    assert (
        result.ledger.rounds[0].participants[0].loss == "custom"
    )  # which the poisoning certificates refuse


def test_one_client_with_all_the_data_is_central_smoothadv_training():
    loss = LOSSES["stochastic estimator"]
    server, x, y = problem(loss)
    trainer = fed.SGD(lr=0.3, batch_size=len(x), loss=loss)
    alone = fed.Server(server.model, [fed.Client(0, x, y, trainer)])
    result = alone.run(1, progress=False)
    shift = [
        (a - b).detach()
        for a, b in zip(result.model.parameters(), server.model.parameters(), strict=True)
    ]
    assert sum(float(s.norm()) for s in shift) > 0.01
    # the same step by hand, with the client's own key
    task = fed.Task(1, 0, 0)
    batch = trainer.batches(len(x), task)[0]
    value = loss(server.model, x[batch], y[batch], task.generator("loss"))
    gradients = torch.autograd.grad(value, list(server.model.parameters()))
    for moved, gradient in zip(shift, gradients, strict=True):
        torch.testing.assert_close(moved, -0.3 * gradient, rtol=1e-3, atol=1e-5)
