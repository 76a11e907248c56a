"""The example app on both engines of Flower, by the documented commands; no process is left behind.

The deployment, two minutes long, runs with ``.venv-flower/bin/python -m pytest -m slow
tests/flower``.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rsfl import fed

pytest.importorskip("flwr", reason="needs the extra rsfl[flower]: make test-flower")

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower-crfl"


class Engine:
    """Flower's command line in a home of its own; what it starts in the background is stopped with
    it."""

    def __init__(self, home: Path):
        self.home, self.log, self.started = home, home / "log.txt", []
        self.app = shutil.copytree(EXAMPLE, home / "app")
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in the background, in a process group of its own."""
        with open(self.log, "ab") as log:
            one = subprocess.Popen(
                command,
                cwd=self.app,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(one)
        return one

    def stop(self) -> None:
        """Stop all that was started, and the SuperLink that ``flwr run`` leaves behind."""
        for one in self.started:
            kill(one)
        ours = f"FLWR_HOME={self.home}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if ours in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:  # gone already, or somebody else's
                continue


def kill(one: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it started, without a chance to say goodbye."""
    if one.poll() is None:
        os.killpg(one.pid, signal.SIGKILL)
    one.wait()


def free_ports(many: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(many)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def listening(port: int) -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def engine(tmp_path):
    one = Engine(tmp_path)
    yield one
    one.stop()


def test_the_example_runs_in_simulation(engine):
    out = engine.home / "out"
    run = engine.start(
        *(
            "flwr",
            "run",
            ".",
            "--federation-config",
            "num-supernodes=10 client-resources-num-cpus=1",
        ),
        *("--run-config", f"rounds=3 out='{out}'", "--stream"),
    )
    run.wait(timeout=500)
    assert "certified whichever client is removed" in engine.log.read_text()
    ledger = fed.Ledger.load(out / "ledger.json")
    assert [ledger.fates(index) for index in (1, 2, 3)] == [dict.fromkeys(range(10), "used")] * 3


def deployed(engine, many):
    """A SuperLink and so many nodes, connected to it."""
    link, *ports = free_ports(many + 1)
    (engine.home / "config.toml").write_text(
        f'[superlink.local]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    engine.start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link))
    end = time.monotonic() + 120
    while not listening(link):
        assert time.monotonic() < end, engine.log.read_text()
        time.sleep(0.5)
    nodes = [
        engine.start(
            *(
                "flower-supernode",
                "--insecure",
                "--superlink",
                f"127.0.0.1:{link}",
                "--port",
                str(port),
            ),
            *("--node-config", f"partition-id={k} num-partitions={many}"),
        )
        for k, port in enumerate(ports)
    ]
    return nodes


@pytest.mark.slow
def test_a_node_is_killed_and_the_run_goes_on(engine):
    rounds = 6
    nodes = deployed(engine, 2)
    saved = engine.home / "rounds"
    config = (
        f"clients=2 rounds={rounds} timeout=30.0 checkpoint='{saved}' out='{engine.home / 'out'}'"
    )
    run = engine.start("flwr", "run", ".", "local", "--run-config", config, "--stream")
    wait(lambda: (saved / "ledger-00000002.rsfl").exists(), run, engine)
    kill(nodes[1])
    found = engine.home / "out" / "ledger.json"
    wait(found.exists, run, engine)
    ledger = fed.Ledger.load(found)
    fates = [ledger.fates(index + 1) for index in range(rounds)]
    assert [one[0] for one in fates] == ["used"] * rounds
    assert [one[1] for one in fates[:2]] == ["used"] * 2
    assert all(one[1].startswith("absent: ") for one in fates[3:])


def wait(condition, run, engine, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, engine.log.read_text()
        assert run.poll() in (None, 0), engine.log.read_text()
        time.sleep(0.2)
    time.sleep(0.2)  # a file is there before all of it is


def in_one_process(vote_of, ledgers, rounds):
    """The example's groups in this process, where an update counts as zero in every round in which
    the ledgers say that a client was not there."""
    nothing = lambda own, honest, draws: own * float("nan")  # noqa: E731
    gone = {}
    for ledger in ledgers:
        for index in range(1, rounds + 1):
            for id_, fate in ledger.fates(index).items():
                if fate != "used":
                    gone.setdefault(id_, []).append(index)
    attacks = {id_: fed.Attack(update=nothing, rounds=when) for id_, when in gone.items()}
    return gone, vote_of(attacks)


@pytest.mark.slow
def test_a_node_that_is_killed_hurts_its_own_group_only(engine, monkeypatch):
    """Twelve nodes in four groups: the votes are those of one process in which that client sends
    nothing from then on."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from flower_crfl import task

    rounds, out, saved = 3, engine.home / "out", engine.home / "rounds"
    nodes = deployed(engine, 12)
    config = f"clients=12 groups=4 rounds={rounds} timeout=240.0 checkpoint='{saved}' out='{out}'"
    run = engine.start("flwr", "run", ".", "local", "--run-config", config, "--stream")
    wait(lambda: len(list(saved.glob("group-*/ledger-00000001.rsfl"))) == 4, run, engine, 600)
    kill(nodes[5])
    wait((out / "models.pt").exists, run, engine, 900)

    ledgers = [fed.Ledger.load(path) for path in sorted(out.glob("ledger-*.json"))]
    settings = {"lr": 0.2, "batch-size": 16, "decay": 0.1}
    contexts = [
        SimpleNamespace(run_config=settings, node_config={"partition-id": k, "num-partitions": 12})
        for k in range(12)
    ]
    server = fed.Server(task.model(0), [task.client(one) for one in contexts], stacked=False)
    x, _ = task.held_out()
    gone, vote = in_one_process(
        lambda attacks: fed.train_groups(
            server, 4, rounds, num_classes=10, roster=dict.fromkeys(range(12), 0), attacks=attacks
        ),
        ledgers,
        rounds,
    )
    assert list(gone) == [5]
    assert gone[5][-1] == rounds
    found = fed.GroupCertificate.load(out / "certificate.json")
    assert torch.equal(found.votes, vote.votes(x))
    models = torch.load(out / "models.pt", weights_only=True)
    for at, model in enumerate(vote.models):
        assert all(torch.equal(p, models[at][name]) for name, p in model.state_dict().items())
