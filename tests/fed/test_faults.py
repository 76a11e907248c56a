"""Faulty clients: whatever they do, the round goes on, the model stays finite, and the ledger says
what happened."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rsfl import fed
from rsfl.fed import training

DOUBLE = torch.float64
FAULTS = {
    "fine": "used",
    "raise": "absent: raised RuntimeError: out of memory",
    "exit": "absent: raised SystemExit: 3",
    "trap": "rejected: sent a Trap, not a plain dict of tensors",
    "mute": "absent: raised UnspeakableError",
    "excuse": "absent: sent nothing",
    "nothing": "absent: sent nothing",
    "text": "rejected: sent a str, not a plain dict of tensors",
    "nan": "rejected: sent values that are not finite",
    "inf": "rejected: sent values that are not finite",
    "shape": "rejected: sent 'bias' of shape (1,) instead of (3,)",
    "missing": "rejected: sent the wrong keys: missing ['bias'], unexpected []",
    "extra": "rejected: sent the wrong keys: missing [], unexpected ['num_examples']",
    "dtype": "rejected: sent 'bias' as torch.float32 instead of torch.float64",
    "list": "rejected: sent 'bias' as list instead of torch.float64",
    "huge": "rejected: sent an update of norm",
    "overflow": "rejected: sent an update of norm",
}


class Trap(dict):
    def __contains__(self, name):
        raise RuntimeError("do not look")


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Faulty:
    """A client that does what its schedule says, round by round, once it has trained."""

    def __init__(self, client, schedule):
        self.client, self.schedule = client, schedule
        self.id, self.size, self.trainer = client.id, client.size, client.trainer

    def fit(self, model, task):
        fault = self.schedule[task.round - 1]
        reply = dict(self.client.fit(model, task))
        for p in model.parameters():  # its own copy: whatever it does to it is its own affair
            p.data.fill_(float("nan"))
        bias = reply["bias"].clone()
        if fault == "raise":
            raise RuntimeError("out of memory")
        if fault == "exit":
            raise SystemExit(3)
        if fault == "mute":
            raise UnspeakableError
        changed = {
            "trap": Trap(reply),
            "excuse": training.Failure("was not connected"),
            "nothing": None,
            "text": "weights",
            "nan": reply | {"bias": bias * float("nan")},
            "inf": reply | {"bias": bias / 0},
            "shape": reply | {"bias": bias[:1]},
            "missing": {"weight": reply["weight"]},
            "extra": reply | {"num_examples": torch.tensor(1e9)},
            "dtype": reply | {"bias": bias.float()},
            "list": reply | {"bias": bias.tolist()},
            "huge": reply | {"bias": bias + 1e9},
            "overflow": reply | {"bias": bias + 1e300},
        }
        return changed.get(fault, reply)


def server(schedules, **settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 2, generator=generator, dtype=DOUBLE)
    y = torch.randint(3, (20,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(2, 3).to(DOUBLE)
    members = fed.clients(x, y, fed.partition.equal(20, len(schedules)), fed.SGD(batch_size=None))
    faulty = [
        Faulty(c, s) if set(s) != {"fine"} else c for c, s in zip(members, schedules, strict=True)
    ]
    return fed.Server(model, faulty, **settings)


def finite(model):
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


ROUNDS = 3
schedule = st.lists(st.sampled_from([*FAULTS, "fine"]), min_size=ROUNDS, max_size=ROUNDS)


@settings(max_examples=200)
@given(
    schedules=st.lists(schedule, min_size=1, max_size=5),
    reject=st.sampled_from(["zero", "renormalise"]),
    rule=st.sampled_from(
        [fed.Mean(), fed.GeometricMedian(), fed.CoordinateMedian(), fed.TrimmedMean(1), fed.Krum(1)]
    ),
    fraction=st.sampled_from([0.5, 1.0]),
    exclude=st.sets(st.integers(0, 4), max_size=1),
)
def test_random_schedules_of_faults(schedules, reject, rule, fraction, exclude):
    exclude = {id_ for id_ in exclude if id_ < len(schedules)}
    run = server(schedules, reject=reject, aggregate=rule, fraction=fraction)
    try:
        result, done = run.run(ROUNDS, progress=False, exclude=exclude), ROUNDS
    except fed.RoundError as error:
        result, done = error.result, len(error.result.ledger)
        assert done < ROUNDS
    assert finite(result.model)
    assert len(result.ledger) == done
    for index in range(1, done + 1):
        fates = result.ledger.fates(index)
        assert set(fates) == set(range(len(schedules)))
        for id_, fate in fates.items():
            assert (
                fate == "excluded"
                if id_ in exclude
                else fate == "not sampled" or fate.startswith(FAULTS[schedules[id_][index - 1]])
            )
        assert any(fate == "used" for fate in fates.values())


def test_zero_keeps_the_weight_and_renormalise_does_not():
    schedules = [["fine"] * 2, ["nan"] * 2, ["fine"] * 2, ["raise"] * 2]
    zero, other = (
        server(schedules, reject=policy, keep=("updates",)) for policy in ("zero", "renormalise")
    )
    start = zero.model.weight.detach()
    moves = [run.run(1, progress=False).model.weight.detach() - start for run in (zero, other)]
    torch.testing.assert_close(2 * moves[0], moves[1], rtol=1e-12, atol=0)
    entry = zero.run(1, progress=False).ledger.entries[0]
    assert [one.weight for one in entry.round.participants] == [0.25] * 4
    assert [one.update_norm > 0 for one in entry.round.participants] == [True, False, True, False]
    assert (entry.updates[1] == 0).all()


def test_too_few_is_an_error_that_loses_nothing(tmp_path):
    # The fourth round is never reached: it keeps all three clients of one kind.
    schedules = [
        ["fine", "fine", "fine", "nan"],
        ["fine", "fine", "nan", "nan"],
        ["fine", "nothing", "raise", "nan"],
    ]
    run = server(schedules, min_clients=2, stacked=False)
    with pytest.raises(
        fed.RoundError, match=r"round 3: 1 usable updates of 2 needed.*client 1 sent values"
    ) as caught:
        run.run(3, progress=False, checkpoint=tmp_path)
    kept = caught.value.result
    assert len(kept.ledger) == 2
    two = run.run(2, progress=False)
    assert (kept.model.weight == two.model.weight).all()
    repaired = server([[*s[:2], "fine", "nan"] for s in schedules], min_clients=2, stacked=False)
    resumed = repaired.run(3, progress=False, checkpoint=tmp_path)
    assert (resumed.model.weight == repaired.run(3, progress=False).model.weight).all()


def test_the_absurd_norm_is_a_setting():
    run = server([["fine"], ["fine"]], reject_norm=1e-9)
    with pytest.raises(fed.RoundError, match="sent an update of norm"):
        run.run(1, progress=False)


def test_a_late_client_is_given_up():
    class Slow(Faulty):
        def fit(self, model, task):
            time.sleep(self.schedule[task.round - 1])
            return self.client.fit(model, task)

    quick = server([["fine"] * 2] * 3)
    members = [*quick.clients[:2], Slow(quick.clients[2], [0.0, 5.0])]
    begin = time.perf_counter()
    result = fed.Server(quick.model, members, timeout=0.5).run(2, progress=False)
    assert time.perf_counter() - begin < 4
    assert [result.ledger.fates(index)[2] for index in (1, 2)] == ["used", "absent: was late"]


def test_trouble_in_a_stack_is_found_and_blamed_on_its_client():
    run = server([["fine"]] * 4)
    x, y = run.clients[1].x.clone(), run.clients[1].y.clone()
    x[run.clients[2].where] = float("nan")
    y[run.clients[3].where] = 7
    members = [fed.Client(c.id, x, y, c.trainer, c.indices) for c in run.clients]
    # Of a network it is not known which labels there are; for a linear model see test_lies.
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).to(DOUBLE)
    fates = fed.Server(network, members).run(1, progress=False).ledger.fates(1)
    assert (fates[0], fates[1]) == ("used", "used")
    assert fates[2] == "rejected: sent values that are not finite"
    assert fates[3].startswith("absent: raised ValueError: y must lie in 0 ... 2, got 7")


UNREADABLE = {
    "numbers in a row": lambda x, y: (x[:, 0], y),
    "inputs that are sparse": lambda x, y: (x.to_sparse(), y),
    "complex inputs": lambda x, y: (x.to(torch.complex128), y),
    "complex labels": lambda x, y: (x, y.to(torch.complex128)),
    "nothing behind them": lambda x, y: (x.to("meta"), y.to("meta")),
    "a part of what is sparse": lambda x, y: (x.to_sparse(), y, range(5)),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
def test_samples_that_cannot_be_read_are_the_absence_of_their_client_alone(make):
    x = torch.randn(30, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(dim=1)
    parts = [slice(0, 10), slice(10, 20), slice(20, 30)]
    members = [fed.Client(k, x[part], y[part]) for k, part in enumerate(parts)]
    *data, where = (*make(x, y), None)[:3]
    broken = fed.Client(9, *data, indices=None if where is None else list(where))
    server = fed.Server(nn.Linear(4, 3).double(), [*members, broken])
    fates = server.run(2, progress=False).ledger.fates(1)
    assert fates.pop(9).startswith("absent: raised ")
    assert fates == dict.fromkeys(range(3), "used")


class Whole:
    """A client that sends its whole state dict, as a template of somebody else's does."""

    def __init__(self, client, fixed):
        self.client, self.fixed = client, fixed
        self.id, self.size, self.trainer = client.id, client.size, client.trainer

    def fit(self, model, task):
        return {**model.state_dict(), **self.client.fit(model, task), **self.fixed}


@pytest.mark.parametrize("lie", [{}, {"1.num_batches_tracked": torch.tensor(10**9)}])
def test_what_is_not_exchanged_may_come_back_and_is_not_read(lie):
    """The counter of BatchNorm, and frozen layers."""
    x = torch.randn(30, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(dim=1)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(DOUBLE)
    model[0].requires_grad_(False)
    part = fed.Client(0, x, y)

    def run(client):
        return fed.Server(model, [client]).run(2, progress=False)

    plain, whole = run(part), run(Whole(part, lie))
    assert whole.ledger.fates(1) == {0: "used"}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name])
    stranger = run_error(lambda: run(Whole(part, {"more": x})))
    assert "unexpected ['more']" in stranger


def run_error(call):
    with pytest.raises(fed.RoundError) as found:
        call()
    return str(found.value)
