"""Run as a script by the tests: the same federated runs in this process and in Flower's simulation
engine.

Twelve nodes: 0 to 3 train a linear model by plain SGD; 4 to 7 train on noise (and keep a mixture),
on deformations, on SmoothAdv and on one-point attacks; 8 and 9 misbehave; 11 draws from the global
state. The last run has all twelve in four groups, and node 10 exits while it trains. (Killed from
outside it would take along the process that all nodes of a simulation share.) Argument: a directory
for checkpoints. Prints one JSON line: both outcomes by run.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported

import torch
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from torch import nn

from rsfl import deform, fed
from rsfl.attacks import OnePoint, SmoothAdvPGD
from rsfl.bounds import FeatureThreat
from rsfl.fed import flower
from rsfl.noise import Gaussian
from rsfl.train import Adversarial, CrossEntropy

DOUBLE = torch.float64
ATTACKS = (SmoothAdvPGD(epsilon=0.5, steps=2, samples=2), OnePoint(epsilon=0.5, steps=2, samples=4))


def global_draws(model, x, y, task):
    """A trainer that knows no generator: what it draws comes from the global state."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))


class Faulty:
    """A client that trains, and sends something else in the round of its turn."""

    def __init__(self, client):
        self.client, self.id, self.size, self.trainer = (
            client,
            client.id,
            client.size,
            client.trainer,
        )

    def fit(self, model, task):
        reply = dict(self.client.fit(model, task))
        bias = reply["1.bias"]
        faults = [
            reply | {"1.bias": bias * float("nan")},
            reply | {"1.bias": bias[:1]},
            reply | {"1.bias": bias + 1e9},
            reply | {"num_examples": torch.tensor(1e9)},
            {"1.weight": reply["1.weight"]},
            reply | {"1.bias": bias.float()},
            None,
            "raise",
        ]
        fault = faults[(task.round + self.id) % len(faults)]
        if fault == "raise":
            raise RuntimeError("out\nof memory")
        return fault


class Exits(Faulty):
    """A client that exits in the second round of the groups, which have seeds of their own."""

    def fit(self, model, task):
        if task.seed > 1000 and task.round == 2:
            sys.exit("killed")
        return self.client.fit(model, task)


def members():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 4, 4, generator=generator, dtype=DOUBLE)
    y = torch.randint(3, (200,), generator=generator)
    parts = fed.partition.dirichlet(y.numpy(), 12, 2.0, min_samples=6, seed=1)
    plain = fed.SGD(lr=0.1, batch_size=5, decay=0.1)
    trainers = [
        *[plain] * 4,
        fed.SGD(batch_size=4, momentum=0.5, mixture=0.5, loss=CrossEntropy(Gaussian(0.25))),
        fed.SGD(batch_size=4, loss=CrossEntropy(deform.Rotation(0.3))),
        *(
            fed.SGD(
                batch_size=4, loss=Adversarial(attack=attack, law=Gaussian(0.25), num_classes=3)
            )
            for attack in ATTACKS
        ),
        *[plain] * 3,
        global_draws,
    ]
    clients = [
        fed.Client(k, x[part], y[part], trainers[k])
        for k, part in enumerate(map(torch.from_numpy, parts))
    ]
    return [*clients[:8], *map(Faulty, clients[8:10]), Exits(clients[10]), clients[11]]


def architecture():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to(DOUBLE)


def initial():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architecture()


@dataclass(frozen=True)
class Experiment:
    clients: range
    rounds: int
    settings: dict
    exclude: tuple = ()


RUNS = {
    "plain": Experiment(
        range(4),
        6,
        {"fraction": 0.75, "clip": 2.0, "noise_std": 0.01, "keep": ("samples",), "seed": 3},
        exclude=(2,),
    ),
    "trainers": Experiment(
        range(4, 8), 4, {"aggregate": fed.GeometricMedian(), "update_clip": 0.5, "server_step": 0.5}
    ),
    "faulty": Experiment(
        range(8, 12),
        8,
        {"reject": "renormalise", "noise_std": lambda t: 0.01 * t, "clip": lambda t: 1 + 0.1 * t},
    ),
}


def server(name, clients):
    ids, settings = RUNS[name].clients, RUNS[name].settings
    return fed.Server(
        initial(), [one for one in clients if one.id in ids], stacked=False, **settings
    )


def metrics(model):
    return {"norm": float(model[1].weight.detach().norm())}


def told(result):
    return {
        "weights": [p.tolist() for p in result.model.parameters()],
        "models": {
            id_: [p.tolist() for p in model.parameters()] for id_, model in result.models.items()
        },
        "rounds": [asdict(one) for one in result.ledger.rounds],
        "fates": [result.ledger.fates(t + 1) for t in range(len(result.ledger))],
        "shares": [list(entry.shares.items()) for entry in result.ledger.entries],
        "metrics": [dict(entry.metrics) for entry in result.ledger.entries],
    }


def certified(result):
    x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    certificate = fed.certify(
        result.model,
        x,
        result.ledger,
        FeatureThreat(clients=[1], rounds=[5], norm=1e-3, per_batch=1),
    )
    return {"label": certificate.label.tolist(), "deviation": certificate.deviation}


GROUPS = {"groups": 4, "rounds": 3, "num_classes": 3, "roster": {id_: id_ % 2 for id_ in range(12)}}


def grouped(vote):
    x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    return {
        "members": vote.groups,
        "votes": vote.votes(x).tolist(),
        "weights": [[p.tolist() for p in model.parameters()] for model in vote.models],
        "fates": [
            [ledger.fates(t) for t in range(1, len(ledger) + 1)]
            for _, ledger in sorted(vote.ledgers.items())
        ],
    }


def embedded_groups():
    """The groups in processes of this machine, client 10 with what counts as zero."""
    nothing = fed.Attack(update=lambda own, honest, draws: own * torch.nan, rounds=(2,))
    clients = members()
    clients[10] = clients[10].client
    server = fed.Server(initial(), clients, stacked=False, seed=2)
    clean = fed.train_groups(server, processes=1, **GROUPS)
    return {
        "clean": grouped(clean),
        **grouped(fed.train_groups(server, processes=1, attacks={10: nothing}, **GROUPS)),
    }


def embedded():
    found = {"groups": embedded_groups()}
    for name, one in RUNS.items():
        result = server(name, members()).run(
            one.rounds, progress=False, evaluate=metrics, exclude=one.exclude
        )
        found[name] = told(result)
        if name == "plain":
            found["certified"] = certified(result)
    return found


def carried(grid, checkpoints):
    """The same runs, on the clients that register; the plain one is interrupted in its fourth round
    and resumed."""
    trainers = {one.id: one.trainer for one in members()}
    remotes = [replace(one, trainer=trainers[one.id]) for one in flower.register(grid, 12)]
    found = {}
    for name, experiment in RUNS.items():
        seen = []

        def interrupted(model, seen=seen):
            seen.append(1)
            if len(seen) == 4:
                raise InterruptedError
            return metrics(model)

        rounds, settings = (
            experiment.rounds,
            {"exclude": experiment.exclude, "checkpoint": checkpoints / name},
        )
        if name == "plain":
            try:
                flower.Strategy(
                    server(name, remotes), rounds, evaluate=interrupted, **settings
                ).run(grid)
            except InterruptedError:
                found["resumed after"] = len(seen) - 1
        result = flower.Strategy(server(name, remotes), rounds, evaluate=metrics, **settings).run(
            grid
        )
        found[name] = told(result)
        if name == "plain":
            found["certified"] = certified(result)
    everybody = fed.Server(initial(), remotes, seed=2)
    found["groups"] = grouped(flower.Groups(everybody, **GROUPS).run(grid))
    return found


def build(context):
    return architecture(), members()[int(context.node_config["partition-id"])]


def main():
    torch.set_num_threads(1)
    app, found = ServerApp(), {}

    app.main()(lambda grid, context: found.update(carried(grid, Path(sys.argv[1]))))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(app, flower.client_app(build), num_supernodes=12, backend_config=resources)
    print(json.dumps({"embedded": embedded(), "flower": found}))


if __name__ == "__main__":
    main()
