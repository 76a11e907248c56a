"""Many clients: what a run takes in memory, and what its ledger takes on disk and in time."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rsfl import fed


def server(clients, trainer=None, model=None, **settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5 * clients, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (5 * clients,), generator=generator)
    parts = [np.arange(5 * i, 5 * i + 5) for i in range(clients)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model or nn.Linear(4, 3).double()
    return fed.Server(model, fed.clients(x, y, parts, trainer), **settings)


def test_a_ledger_of_100_rounds_of_1000_clients_is_small_and_quick(tmp_path):
    few = server(1000, fed.SGD(batch_size=2, decay=0.1)).run(2).ledger
    entries = [
        replace(few.entries[i % 2], round=replace(few.rounds[i % 2], index=i + 1))
        for i in range(100)
    ]
    ledger = replace(few, entries=tuple(entries))
    begin = time.process_time()
    ledger.save(tmp_path / "ledger.json")
    saved = time.process_time()
    loaded = fed.Ledger.load(tmp_path / "ledger.json")
    read = time.process_time()
    assert loaded == ledger
    assert (tmp_path / "ledger.json").stat().st_size < 10 * 2**20
    assert saved - begin < 1
    assert read - saved < 1


@pytest.mark.parametrize("rule", [fed.Mean(), fed.GeometricMedian(), fed.Krum(1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_waits_in_a_file_is_what_was_sent(rule, dtype, monkeypatch):
    """The same bits, whether the vectors wait in memory or in a file."""
    runs = []
    for memory in (1 << 28, 0):
        monkeypatch.setattr(fed.rows, "_MEMORY", memory)
        run = server(6, aggregate=rule, update_clip=0.1, keep=["updates"])
        model = nn.Linear(4, 3)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.1)
        data = [replace(one, x=one.x.to(dtype)) for one in run.clients]
        attack = {1: fed.Attack(update=lambda own, honest, generator: own * torch.inf)}
        runs.append(replace(run, model=model.to(dtype), clients=data).run(2, attacks=attack))
    one, two = runs
    assert torch.equal(one.model.weight, two.model.weight)
    assert one.ledger == two.ledger
    assert torch.equal(one.ledger.entries[1].updates, two.ledger.entries[1].updates)


PEAK = """
import resource
import sys
import numpy as np
import torch
from torch import nn
from rsfl import fed

torch.set_num_threads(1)
clients, per, network = map(int, sys.argv[1:])
x, y = torch.rand(clients * per, 784), torch.randint(10, (clients * per,))
parts = [np.arange(per * i, per * (i + 1)) for i in range(clients)]
wide = nn.Sequential(nn.Linear(784, 1300), nn.ReLU(), nn.Linear(1300, 10))
model = wide if network else nn.Linear(784, 10)
fed.Server(model, fed.clients(x, y, parts, fed.SGD(batch_size=None))).run(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clients", "network"), [(10_000, 0), (400, 1)], ids=["logistic", "a million parameters"]
)
def test_a_round_of_many_clients_stays_below_a_gibibyte(clients, network):
    """10,000 logistic clients, and 400 clients of a network of 1,033,510 parameters."""
    told = subprocess.run(
        [sys.executable, "-c", PEAK, str(clients), "5", str(network)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(told.stdout) < 1.0
