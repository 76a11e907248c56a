"""Simulated attackers do what they say, in the rounds that they say."""

import pytest
import torch
from torch import nn

from rsfl import fed
from rsfl.fed import poison

DOUBLE = torch.float64


def images(n=400, seed=0):
    """Two classes told apart by the brighter half of an 8 x 8 image."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    x = 0.3 * torch.rand(n, 1, 8, 8, generator=generator, dtype=DOUBLE)
    x[y == 0, :, 4:] += 0.15
    x[y == 1, :, :4] += 0.15
    return x, y


def server(clients=10, trainer=None, **settings):
    x, y = images()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).to(DOUBLE)
    trainer = trainer or fed.SGD(lr=0.5, batch_size=10, epochs=2)
    return fed.Server(
        model, fed.clients(x, y, fed.partition.equal(400, clients), trainer), **settings
    )


def test_a_backdoor_succeeds_on_an_undefended_server():
    x, y = images(seed=1)
    pattern = poison.pixel_patch((1, 8, 8), 3.0, corner=(5, 5))
    attack = {k: fed.Attack(data=poison.Backdoor(pattern, 1, per_batch=5)) for k in (0, 1, 2)}
    attack |= {
        3: fed.Attack(rounds=[12], data=poison.Backdoor(pattern, 1, 5), update=poison.Scale(10.0))
    }
    clean, backdoored = (server().run(12, progress=False, attacks=a).model for a in ({}, attack))
    victims = x[y == 0] + pattern
    target = torch.ones(len(victims), dtype=torch.int64)
    assert fed.accuracy(clean, x, y) > 0.95
    assert fed.accuracy(backdoored, x, y) > 0.9
    assert fed.accuracy(clean, victims, target) < 0.2
    assert fed.accuracy(backdoored, victims, target) > 0.9


def test_model_replacement_replaces_the_model():
    trainer = fed.SGD(lr=0.5, batch_size=None, epochs=5)
    run = server(trainer=trainer, keep=("updates",))
    attack = {
        4: fed.Attack(rounds=[2], data=poison.LabelFlip({0: 1, 1: 0}), update=poison.Scale(10.0))
    }
    result = run.run(2, progress=False, attacks=attack)
    before = run.run(1, progress=False).model
    x, y = run.clients[4].samples()
    alone = fed.personalise(before, [fed.Client(4, x, 1 - y, trainer)], after=1)[4]
    update, mean = result.ledger.entries[1].updates[4], result.ledger.entries[1].updates.mean(dim=0)
    replaced = torch.cat([p.detach().reshape(-1) for p in result.model.parameters()])
    wanted = torch.cat([p.detach().reshape(-1) for p in alone.parameters()])
    # Ten times an update of weight a tenth: the model is the attacker's plus what the others
    # average to.
    torch.testing.assert_close(replaced, wanted + mean - update / 10, rtol=1e-12, atol=1e-12)


def test_patterns_have_the_norm_and_place_that_they_say():
    patch = poison.pixel_patch((3, 8, 9), 0.5, size=3, corner=(5, 6))
    assert float(patch.norm()) == pytest.approx(0.5, rel=1e-14)
    assert int((patch != 0).sum()) == 27
    assert (patch[:, 5:, 6:] > 0).all()
    pieces = poison.distribute(patch, 4)
    assert (torch.stack(pieces).sum(dim=0) == patch).all()
    assert ((torch.stack(pieces) != 0).sum(dim=0) <= 1).all()
    assert sorted(int((piece != 0).sum()) for piece in pieces) == [6, 7, 7, 7]
    assert poison.feature_increments(3, {2: 0.1}).tolist() == [0.0, 0.0, 0.1]


@pytest.mark.parametrize(("per_batch", "poisoned"), [(2, 2), (None, 5), (9, 5), (0, 0)])
def test_a_backdoor_poisons_so_many_of_a_batch_and_mutates_nothing(per_batch, poisoned):
    x, y = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)
    bad_x, bad_y = poison.Backdoor(torch.ones(3, dtype=DOUBLE), 2, per_batch)(x, y)
    assert bad_x.dtype == x.dtype
    assert bad_x.sum(dim=1).tolist() == [3.0] * poisoned + [0.0] * (5 - poisoned)
    assert bad_y.tolist() == [2] * poisoned + [0] * (5 - poisoned)
    assert x.sum() == y.sum() == 0
    assert (poison.Backdoor(torch.ones(3), None)(x, y)[1] == y).all()


def test_labels_flip_at_once():
    x, y = torch.zeros(4, 1), torch.tensor([0, 1, 2, 0])
    assert poison.LabelFlip({0: 1, 1: 0})(x, y)[1].tolist() == [1, 0, 2, 1]
    assert y.tolist() == [0, 1, 2, 0]


def test_byzantine_updates():
    run = server(clients=5, keep=("updates",))
    clean = run.run(1, progress=False).ledger.entries[0].updates

    def sent(attack, *ids):
        return (
            run.run(1, progress=False, attacks=dict.fromkeys(ids, attack)).ledger.entries[0].updates
        )

    torch.testing.assert_close(
        sent(fed.Attack(update=poison.SignFlip(3.0)), 2)[2], -3 * clean[2], rtol=1e-12, atol=1e-15
    )
    both = sent(fed.Attack(update=poison.InnerProduct(2.0)), 1, 3)
    torch.testing.assert_close(both[1], -2 * clean[[0, 2, 4]].mean(dim=0), rtol=1e-12, atol=1e-15)
    assert (both[1] == both[3]).all()
    noise = sent(fed.Attack(update=poison.Noise(0.1)), 0, 1)
    assert 0.08 < float(noise[:2].std()) < 0.12
    assert (noise[0] != noise[1]).all()
    assert (noise[2:] == clean[2:]).all()


def test_an_attack_that_is_not_finite_is_thrown_away():
    run = server(clients=5)
    attacks = {1: fed.Attack(update=lambda own, honest, generator: own / 0)}
    assert (
        run.run(1, progress=False, attacks=attacks).ledger.fates(1)[1]
        == "rejected: sent values that are not finite"
    )


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: poison.pixel_patch((8, 8), 1.0, corner=(7, 0)), "shape"),
        (lambda: poison.pixel_patch((8, 8), -1.0), "norm"),
        (lambda: poison.feature_increments(3, {3: 1.0}), "increments"),
        (lambda: poison.distribute(torch.ones(2), 3), "attackers"),
        (lambda: poison.Backdoor(torch.ones(2), -1), "target"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
