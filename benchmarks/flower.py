"""Seconds a round for 100 logistic clients: stacked, one by one, and in Flower's simulation engine.

Run ``.venv-flower/bin/python benchmarks/flower.py`` after ``make test-flower`` (about a minute).
"""

import os
from itertools import pairwise
from time import perf_counter

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported

import torch
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from torch import nn

from rsfl import fed
from rsfl.fed import flower

CLIENTS, SAMPLES, FEATURES, ROUNDS = 100, 200, 64, 10
TRAINER = fed.SGD(lr=0.05, batch_size=30, steps=20)


def data(client):
    """A client's own samples, made where it is, so that nobody waits for those of the others."""
    generator = torch.Generator().manual_seed(client)
    return torch.rand(SAMPLES, FEATURES, generator=generator), torch.randint(
        10, (SAMPLES,), generator=generator
    )


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(FEATURES, 10)


def build(context):
    number = int(context.node_config["partition-id"])
    return model(), fed.Client(number, *data(number), TRAINER)


def timed(run):
    """Fewest seconds between the ends of two rounds, as others use the machine too, and the final
    model."""
    ends = []
    result = run(lambda model: ends.append(perf_counter()) or {})
    return min(b - a for a, b in pairwise(ends)), result.model.weight.detach()


def embedded(stacked):
    x, y = (torch.cat(parts) for parts in zip(*map(data, range(CLIENTS)), strict=True))
    members = fed.clients(x, y, list(torch.arange(len(x)).view(CLIENTS, SAMPLES).numpy()), TRAINER)
    server = fed.Server(model(), members, stacked=stacked)
    return timed(lambda evaluate: server.run(ROUNDS, evaluate=evaluate))


def simulated():
    app, found = ServerApp(), []

    @app.main()
    def main(grid, context):
        server = fed.Server(model(), flower.register(grid, CLIENTS, TRAINER))
        found.append(
            timed(lambda evaluate: flower.Strategy(server, ROUNDS, evaluate=evaluate).run(grid))
        )

    cores = os.cpu_count() or 1
    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": cores},
    }
    run_simulation(app, flower.client_app(build), num_supernodes=CLIENTS, backend_config=resources)
    return found[0]


def main():
    torch.set_num_threads(1)  # the tensors are small: a second thread only waits
    stacked, first = embedded(True)
    alone, second = embedded(False)
    network, third = simulated()
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)
    print(f"1 thread, {os.cpu_count()} cores, torch {torch.__version__}")
    print(
        f"{CLIENTS} clients x {SAMPLES} samples of {FEATURES}, 20 batches of 30, linear model, "
        f"{ROUNDS} rounds"
    )
    for name, seconds in {
        "stacked": stacked,
        "one by one": alone,
        "Flower simulation": network,
    }.items():
        print(f"{name:18} {seconds:7.4f} s a round, {seconds / stacked:6.1f} times stacked")


if __name__ == "__main__":
    main()
