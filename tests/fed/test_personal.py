"""Models of one client each, and how clients compare."""

import numpy as np
import pytest
import torch
from torch import nn

from rsfl import fed


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator)
    return x, (x[:, 0] > 0).long(), fed.partition.equal(80, 4)


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(4, 2)


def equal(a, b):
    return all((p == q).all() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_personalisation_starts_from_the_last_global_model():
    x, y, parts = problem()
    members = fed.clients(x, y, parts, fed.SGD(lr=0.1, batch_size=None))
    last = fed.Server(model(), members).run(3, progress=False).model
    assert all(equal(own, last) for own in fed.personalise(last, members, rounds=0).values())
    tuned = fed.personalise(last, members)
    own_x, own_y = members[2].samples()
    step = torch.autograd.grad(
        nn.functional.cross_entropy(last(own_x), own_y), list(last.parameters())
    )
    for p, q, g in zip(tuned[2].parameters(), last.parameters(), step, strict=True):
        torch.testing.assert_close(p, q - 0.1 * g, rtol=1e-6, atol=1e-7)
    assert not tuned[2].training


def test_rounds_go_on_where_the_federated_phase_ended():
    x, y, parts = problem()
    seen = []
    members = fed.clients(x, y, parts, lambda m, x, y, task: seen.append(task.round))
    fed.personalise(model(), members[:1], rounds=2, after=5)
    assert seen == [6, 7]
    trained = fed.clients(x, y, parts, fed.SGD(batch_size=5))
    whole = fed.personalise(model(), trained, rounds=3)
    halves = fed.personalise(model(), trained, rounds=1)
    later = {
        id_: fed.personalise(own, [trained[id_]], rounds=2, after=1)[id_]
        for id_, own in halves.items()
    }
    for id_, own in whole.items():
        for p, q in zip(own.parameters(), later[id_].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_another_trainer_and_the_name_of_a_failing_client():
    x, y, parts = problem()
    members = fed.clients(x, y, parts, fed.SGD(lr=10.0))
    frozen = fed.personalise(model(), members, trainer=lambda m, x, y, task: None)
    assert all(equal(own, model()) for own in frozen.values())

    def failing(m, x, y, task):
        if task.client == 2:
            raise ValueError("no data today")

    with pytest.raises(RuntimeError, match="client 2 raised ValueError: no data today in round 1"):
        fed.personalise(model(), members, trainer=failing)

    def diverging(m, x, y, task):
        next(m.parameters()).data.fill_(float("nan"))

    with pytest.raises(
        RuntimeError, match="client 0 trained a model that is not finite in round 1"
    ):
        fed.personalise(model(), members, trainer=diverging)


def test_metrics_per_client():
    x, y, parts = problem()
    samples = {k: (x[part], y[part]) for k, part in enumerate(parts)}
    found = fed.per_client(model(), samples)
    each = [fed.accuracy(model(), *samples[k]) for k in range(4)]
    assert [float(found.values[k]) for k in range(4)] == each
    assert (float(found.min), float(found.max)) == (min(each), max(each))
    assert float(found.mean) == pytest.approx(sum(each) / 4)
    assert f"mean {found.mean:.3f}" in str(found)
    curves = fed.per_client(
        dict.fromkeys(range(4), model()), samples, lambda m, x, y: [len(x), float(y.sum())]
    )
    assert curves.mean.shape == (2,)
    assert curves.max[1] == max(float(y[part].sum()) for part in parts)
    assert isinstance(curves.min, np.ndarray)
    with pytest.raises(ValueError, match=r"models.*\[1, 2, 3\]"):
        fed.per_client({0: model()}, samples)


def test_accuracy_is_measured_in_evaluation_mode():
    network = nn.Sequential(nn.Dropout(1.0), nn.Linear(4, 3)).train()
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(3))
    assert fed.accuracy(network, x, network[1](x).argmax(dim=1)) == 1
    assert network.training


def test_models_of_ones_own_are_as_their_clients_made_them():
    """Neither the server's clip nor a lie about the update changes what a client keeps."""
    x, y, parts = problem()
    members = fed.clients(x, y, parts, fed.SGD(lr=0.1, batch_size=None, mixture=0.5))
    attack = {2: fed.Attack(update=lambda own, honest, generator: -5 * own)}
    free = fed.Server(model(), members).run(1).models
    short = fed.Server(model(), members, update_clip=1e-3).run(1, attacks=attack).models
    assert all(equal(free[id_], short[id_]) for id_ in range(4))
