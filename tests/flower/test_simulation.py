"""The same runs in `Server.run` and on Flower's simulation engine: same model, same ledger, to the
bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra rsfl[flower]: make test-flower")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    home = tmp_path_factory.mktemp("simulated")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    script = Path(__file__).with_name("simulated.py")
    done = subprocess.run(
        [sys.executable, str(script), str(home / "checkpoints")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["plain", "trainers", "faulty"])
def test_flower_does_what_the_server_does(outcomes, name):
    embedded, flower = outcomes["embedded"][name], outcomes["flower"][name]
    if name == "faulty":
        # Clients 8 to 10 are of classes of their own. In this process that is seen; over a network
        # the server knows how it told them to train.
        for one, other in zip(embedded["rounds"], flower["rounds"], strict=True):
            for here, there in zip(one["participants"], other["participants"], strict=True):
                if here["client"] in (8, 9, 10):
                    assert (here.pop("loss"), here.pop("optimizer")) == ("custom", "custom")
                    assert there.pop("loss") == "softmax cross-entropy"
                    assert there.pop("optimizer") == "sgd"
    for what in ("rounds", "fates", "shares", "metrics", "weights", "models"):
        assert flower[what] == embedded[what], what


def test_a_node_that_exits_hurts_its_own_group_only(outcomes):
    here, there = outcomes["embedded"]["groups"], outcomes["flower"]["groups"]
    assert there["members"] == here["members"]
    own = next(at for at, members in enumerate(there["members"]) if 10 in members)
    for at, fates in enumerate(there["fates"]):
        for index, one in enumerate(fates):
            exits = (at, index) == (own, 1)
            assert (one.get("10") == "absent: raised SystemExit: killed") == exits
            # 8 and 9 send something else in each round.
            others = {fate for id_, fate in one.items() if id_ not in ("8", "9", "10")}
            assert others == {"used"}
    assert there["weights"] == here["weights"]
    assert there["votes"] == here["votes"]
    clean = here["clean"]["weights"]
    assert [one == other for one, other in zip(clean, there["weights"], strict=True)] == [
        at != own for at in range(4)
    ]


def test_the_mixture_client_keeps_its_model(outcomes):
    assert list(outcomes["flower"]["trainers"]["models"]) == ["4"]
    assert (
        outcomes["flower"]["trainers"]["models"]["4"] != outcomes["flower"]["trainers"]["weights"]
    )


def test_a_resumed_run_goes_on_counting(outcomes):
    assert outcomes["flower"]["resumed after"] == 3
    rounds = outcomes["flower"]["plain"]["rounds"]
    assert [one["index"] for one in rounds] == [1, 2, 3, 4, 5, 6]
    assert [one["noise_std"] for one in rounds] == [0.01] * 5 + [0.0]


def test_the_ledger_certifies(outcomes):
    found = outcomes["flower"]["certified"]
    assert found == outcomes["embedded"]["certified"]
    assert 0 < found["deviation"] < 1
    assert any(label >= 0 for label in found["label"])


def test_faulty_clients_are_screened(outcomes):
    fates = outcomes["flower"]["faulty"]["fates"]
    assert {fate.split(":")[0] for one in fates for fate in (one["8"], one["9"])} == {
        "rejected",
        "absent",
    }
    assert {fate for one in fates for fate in (one["10"], one["11"])} == {"used"}
    seen = {one["8"] for one in fates}
    assert {
        "rejected: sent values that are not finite",
        "absent: raised RuntimeError: out of memory",
    } < seen
    assert "rejected: sent '1.bias' of shape (1,) instead of (3,)" in seen
    assert any(fate.startswith("rejected: sent an update of norm") for fate in seen)
