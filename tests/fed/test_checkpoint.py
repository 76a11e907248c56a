"""Checkpoints: an interrupted run ends with the same bits, and a damaged file is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rsfl import _fingerprint, fed
from rsfl.fed import checkpoint
from rsfl.train import CheckpointError


def server(**settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 4, generator=generator)
    y = torch.randint(3, (40,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settings.pop("model", None) or nn.Linear(4, 3)
    trainer = settings.pop("trainer", fed.SGD(batch_size=5))
    parts = fed.partition.equal(40, 4, seed=settings.pop("partition", 0))
    return fed.Server(model, fed.clients(x, y, parts, trainer), **settings)


def weights(result):
    return [p.tolist() for p in result.model.parameters()]


def kill_and_resume(tmp_path, kills, seed):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(tmp_path), str(kills), str(seed)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=500
    )
    found = json.loads(done.stdout)
    assert found["digests"] == [found["whole"]] * kills
    assert sum(0 < left < found["rounds"] for left in found["left"]) > kills / 2, (
        "the kills came too early or too late"
    )


def test_kill_nine_at_twenty_random_points(tmp_path):
    kill_and_resume(tmp_path, 20, 1)


@pytest.mark.slow
def test_kill_nine_at_two_hundred_random_points(tmp_path):
    kill_and_resume(tmp_path, 200, 2)


class StopError(Exception):
    pass


def interrupted(run, rounds, after, path, **options):
    """The run, stopped by its own evaluation in the round after ``after``."""
    seen = []

    def evaluate(model):
        seen.append(0)
        if len(seen) > after:
            raise StopError
        return {}

    with pytest.raises(StopError):
        run.run(rounds, checkpoint=path, progress=False, evaluate=evaluate, **options)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_the_noise_is_not_skipped_by_a_resume(tmp_path, after):
    run = server(noise_std=0.5, clip=1.0)
    interrupted(run, 5, after, tmp_path)
    resumed, whole = run.run(5, checkpoint=tmp_path, progress=False), run.run(5, progress=False)
    assert weights(resumed) == weights(whole)
    assert resumed.ledger == whole.ledger
    state = checkpoint.read(tmp_path / "state-00000004.rsfl")
    assert (
        0
        < float((state["broadcast"] - state["clipped"]).norm())
        == pytest.approx(whole.ledger.rounds[3].noise_norm, rel=1e-6)
    )


DAMAGE = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "one bit": lambda raw: raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
    "longer": lambda raw: raw + b"0",
    "pickle": lambda raw: pickle.dumps({"round": 3}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_previous_one_used(tmp_path, damage):
    run = server(noise_std=0.1)
    interrupted(run, 6, 3, tmp_path)
    last = tmp_path / "state-00000003.rsfl"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.warns(
        UserWarning, match=r"state-00000003.rsfl is truncated, corrupted.*resuming after round 2"
    ):
        resumed = run.run(6, checkpoint=tmp_path, progress=False)
    assert weights(resumed) == weights(run.run(6, progress=False))


def test_a_damaged_ledger_is_refused_with_its_state(tmp_path):
    run = server()
    interrupted(run, 6, 3, tmp_path)
    (tmp_path / "ledger-00000003.rsfl").unlink()
    with pytest.warns(UserWarning, match=r"ledger-00000003.rsfl cannot be read"):
        run.run(6, checkpoint=tmp_path, progress=False)


def test_nothing_is_started_over_in_silence(tmp_path):
    run = server()
    interrupted(run, 6, 3, tmp_path)
    for path in tmp_path.glob("state-*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state-00000003.*state-00000002"):
        run.run(6, checkpoint=tmp_path, progress=False)


def test_no_code_is_run_by_loading(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    path = tmp_path / "state-00000001.rsfl"
    checkpoint.write(path, {"run": Evil()})  # with a checksum that matches
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.read(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"clip": 2.0},
        {"aggregate": fed.GeometricMedian()},
        {"trainer": fed.SGD(batch_size=6)},
        {"trainer": fed.SGD(batch_size=5, decay={"weight": 0.1})},
        {"model": nn.Sequential(nn.Linear(4, 3))},
        {"sizes": dict.fromkeys(range(4), 1)},
        {"partition": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, other):
    server().run(2, checkpoint=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        server(**other).run(3, checkpoint=tmp_path, progress=False)


def test_excluded_clients_and_attacks_make_another_run(tmp_path):
    run = server()
    run.run(2, checkpoint=tmp_path, progress=False)
    for options in ({"exclude": {1}}, {"attacks": {1: fed.Attack(update=fed.poison.Scale(2.0))}}):
        with pytest.raises(CheckpointError, match="belongs to another run"):
            run.run(3, checkpoint=tmp_path, progress=False, **options)


def test_a_run_is_told_by_its_data_and_by_what_is_not_trained(tmp_path):
    run = server()
    run.run(2, checkpoint=tmp_path, progress=False)
    x = run.clients[0].x.clone()
    x[0] += 1
    other = fed.Server(
        run.model, [fed.Client(c.id, x, c.y, c.trainer, c.indices) for c in run.clients]
    )
    with pytest.raises(CheckpointError, match=r"another run: samples differ"):
        other.run(2, checkpoint=tmp_path, progress=False)
    frozen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    frozen[0].requires_grad_(False)
    fed.Server(frozen, run.clients).run(1, checkpoint=tmp_path / "frozen", progress=False)
    with torch.no_grad():
        frozen[0].weight += 1
    with pytest.raises(CheckpointError, match=r"another run: model differ"):
        fed.Server(frozen, run.clients).run(2, checkpoint=tmp_path / "frozen", progress=False)


def test_a_finished_run_is_read_back_and_can_go_on_where_its_end_was_not_special(tmp_path):
    run = server()
    two = run.run(2, checkpoint=tmp_path, progress=False)
    assert weights(run.run(2, checkpoint=tmp_path, progress=False)) == weights(two)
    assert weights(run.run(4, checkpoint=tmp_path, progress=False)) == weights(
        run.run(4, progress=False)
    )
    with pytest.raises(ValueError, match="rounds must be at least the 4"):
        run.run(3, checkpoint=tmp_path, progress=False)
    noisy = server(noise_std=0.1)
    noisy.run(2, checkpoint=tmp_path / "noisy", progress=False)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        noisy.run(4, checkpoint=tmp_path / "noisy", progress=False)


def test_metrics_and_updates_come_back(tmp_path):
    run = server(keep=("updates",))

    def metrics(model):
        return {"norm": model.weight.detach().norm()}  # a tensor, as such functions like to return

    first = run.run(2, checkpoint=tmp_path, progress=False, evaluate=metrics)
    again = run.run(2, checkpoint=tmp_path, progress=False, evaluate=metrics)
    assert again.metrics == first.metrics
    assert (again.ledger.entries[1].updates == first.ledger.entries[1].updates).all()


def test_a_bfloat16_run_goes_on_from_its_checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 4, generator=generator).bfloat16(), torch.arange(20) % 3
    run = fed.Server(nn.Linear(4, 3).bfloat16(), [fed.Client(0, x, y)])
    whole = run.run(2, progress=False)
    run.run(1, checkpoint=tmp_path, progress=False)
    assert weights(run.run(2, checkpoint=tmp_path, progress=False)) == weights(whole)


def test_a_run_is_the_same_in_whatever_order_its_sets_are_given(tmp_path):
    def attacked(rounds, keep):
        attack = fed.Attack(rounds, update=fed.poison.Scale(2.0))
        return server(keep=keep).run(2, attacks={1: attack}, checkpoint=tmp_path, progress=False)

    first = attacked([1, 2], ["samples", "updates"])
    assert weights(attacked((2, 1), ["updates", "samples"])) == weights(first)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        attacked([1], ["samples", "updates"])


def test_each_reads_its_own_samples_of_a_shared_data_set_once(tmp_path, monkeypatch):
    read = []
    described = _fingerprint._tensor
    monkeypatch.setattr(
        _fingerprint, "_tensor", lambda one: read.append(one.numel()) or described(one)
    )
    x, y = torch.rand(400, 100), torch.randint(3, (400,))
    members = fed.clients(x, y, fed.partition.equal(400, 40, seed=0))
    run = fed.Server(nn.Linear(100, 3), members)
    fed.train_groups(run, 8, 1, num_classes=3, checkpoint=tmp_path)
    models = 8 * 20 * (303 + 2)  # a few hashes of weights a group and round
    assert sum(read) < x.numel() + 2 * y.numel() + models


def test_another_ones_samples_are_no_part_of_a_group(tmp_path):
    x, y = torch.rand(40, 4), torch.randint(3, (40,))

    def trained():
        members = fed.clients(x, y, [range(10 * k, 10 * k + 10) for k in range(4)])
        run = fed.Server(nn.Linear(4, 3), members[:2])
        return run.run(1, checkpoint=tmp_path, progress=False)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained()
        x[25] += 1  # of the third, who does not take part
        torch.manual_seed(0)
        trained()
        x[15] += 1
        torch.manual_seed(0)
        with pytest.raises(CheckpointError, match=r"belongs to another run: samples differs$"):
            trained()
