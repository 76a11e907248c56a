"""The strategy by itself, on a grid without a network: hostile answers, seats, silence, and the
words for each."""

import json
import math
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

flwr = pytest.importorskip("flwr", reason="needs the extra rsfl[flower]: make test-flower")

from flwr.app import (  # noqa: E402
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from rsfl import fed  # noqa: E402
from rsfl.fed import flower  # noqa: E402

DOUBLE = torch.float64
X = torch.rand(40, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
Y = torch.randint(3, (40,), generator=torch.Generator().manual_seed(1))
CLIENTS = fed.clients(X, Y, fed.partition.equal(40, 4), fed.SGD(batch_size=5))


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Messages cannot be made outside a run unless Flower is told which run it is."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def architecture():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(4, 3).to(DOUBLE)


class Grid:
    """Nodes in this process: node -> ClientApp, or a function of (message, answer) that tampers
    with its answer."""

    def __init__(self, clients, tamper=None):
        self.apps = {
            100 + one.id: flower.client_app(lambda _, one=one: (architecture(), one))
            for one in clients
        }
        self.tamper = tamper or {}
        self.gone = set()
        self.asked = []

    def get_node_ids(self):
        return [node for node in self.apps if node not in self.gone]

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for number, message in enumerate(messages):
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"{len(self.asked)}-{number}"
            self.asked.append((node, message.metadata.message_type))
            context = Context(
                run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}
            )
            reply = self.apps[node](message, context)
            if node in self.tamper and message.metadata.message_type == "train":
                reply = self.tamper[node](message, reply)
            replies += [] if reply is None else [reply]
        return replies[::-1]  # in whatever order they come


def server(clients=CLIENTS, **settings):
    return fed.Server(architecture(), clients, stacked=False, **settings)


def content(records):
    return lambda message, reply: Message(RecordDict(records), reply_to=message)


def arrays(**changed):
    good = ArrayRecord(torch_state_dict=dict(architecture().state_dict()))
    good.update(changed)
    return content({"arrays": good})


def array(data, stype="numpy.ndarray"):
    return Array(dtype="float64", shape=(3,), stype=stype, data=data)


def saved(values, **options):
    buffer = BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def zipped():
    buffer = BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def bomb():
    """The header of an array that fills any memory, and nothing behind it."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (3 * 10**12,)}
    )
    return buffer.getvalue()


HOSTILE = {
    "nan": (arrays(bias=Array(np.full(3, np.nan))), "rejected: sent values that are not finite"),
    "huge": (arrays(bias=Array(np.full(3, 1e12))), "rejected: sent an update of norm"),
    "shape": (
        arrays(bias=Array(np.zeros(1))),
        "rejected: sent 'bias' of shape (1,) instead of (3,)",
    ),
    "broadcast": (
        arrays(bias=Array(np.zeros((3, 3)))),
        "rejected: sent 'bias' of shape (3, 3) instead of (3,)",
    ),
    "type": (
        arrays(bias=Array(np.zeros(3, np.int64))),
        "rejected: sent 'bias' as torch.int64 instead of torch.float64",
    ),
    "extra": (
        arrays(more=Array(np.zeros(3))),
        "rejected: sent the wrong keys: missing [], unexpected ['more']",
    ),
    "many": (
        arrays(**{f"k{i}": Array(np.zeros(1)) for i in range(2000)}),
        "rejected: sent the wrong keys: missing [], unexpected ['k0'",
    ),
    "empty": (
        content({"arrays": ArrayRecord()}),
        "rejected: sent the wrong keys: missing ['weight', 'bias']",
    ),
    "garbage": (
        arrays(bias=array(b"not an array")),
        "rejected: sent 'bias' as Array instead of torch.float64",
    ),
    "cut": (
        arrays(bias=array(saved(np.zeros(3))[:-8])),
        "rejected: sent 'bias' as Array instead of torch.float64",
    ),
    "pickle": (
        arrays(bias=array(saved(np.array([print], dtype=object), allow_pickle=True))),
        "rejected: sent 'bias' as Array instead of torch.float64",
    ),
    "archive": (
        arrays(bias=array(zipped())),
        "rejected: sent 'bias' as Array instead of torch.float64",
    ),
    "bomb": (arrays(bias=array(bomb())), "rejected: sent 'bias' as Array instead of torch.float64"),
    "foreign": (
        arrays(bias=array(b"", stype="jax")),
        "rejected: sent 'bias' as Array instead of torch.float64",
    ),
    "text": (
        arrays(bias=Array(np.array(["a"] * 3))),
        "rejected: sent 'bias' as Array instead of torch.float64",
    ),
    "metrics": (
        content({"metrics": MetricRecord({"num-examples": 10**9})}),
        "absent: sent nothing",
    ),
    "wrong record": (content({"arrays": ConfigRecord({"weight": 1.0})}), "absent: sent nothing"),
    "excuse": (
        content({"failure": ConfigRecord({"raised": "x\n" * 10**5})}),
        "absent: raised x x x",
    ),
    "no excuse": (content({"failure": ConfigRecord()}), "absent: raised None"),
    "error": (
        lambda message, _: Message(Error(2, "crash\nat line 1"), reply_to=message),
        "absent: failed: crash at line 1",
    ),
    "silence": (lambda *_: None, "absent: was late"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_screened_and_named(name):
    tamper, fate = HOSTILE[name]
    others = [one for one in CLIENTS if one.id != 2]
    grid = Grid(CLIENTS, {102: tamper})
    result = flower.Strategy(server(), 2).run(grid)
    for index in (1, 2):
        fates = result.ledger.fates(index)
        assert fates[2].startswith(fate)
        assert len(fates[2]) < 400
        assert [fates[one.id] for one in others] == ["used"] * 3
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())
    assert "num-examples" not in json.dumps([entry.metrics for entry in result.ledger.entries])


def test_an_honest_grid_gives_the_run_of_the_server():
    settings = {"fraction": 0.5, "clip": 1.0, "noise_std": 0.1, "keep": ("updates", "samples")}
    embedded = server(**settings).run(4, progress=False)
    carried = flower.Strategy(server(**settings), 4).run(Grid(CLIENTS))
    assert carried.ledger == embedded.ledger
    assert all(
        bool((a == b).all())
        for a, b in zip(carried.model.parameters(), embedded.model.parameters(), strict=True)
    )


# -- groups --------------------------------------------------------------------------------------

MANY = fed.clients(X, Y, fed.partition.equal(40, 12), fed.SGD(batch_size=3, lr=lambda t: 0.1 / t))
ROSTER = {id_: id_ % 2 for id_ in range(12)}


def carried_groups(grid, rounds=3, checkpoint=None, **settings):
    run = flower.Groups(
        server(MANY, **settings), 4, rounds, num_classes=3, roster=ROSTER, checkpoint=checkpoint
    )
    return run.run(grid)


def groups_here(attacks=None, rounds=3, **settings):
    return fed.train_groups(
        server(MANY, **settings), 4, rounds, num_classes=3, roster=ROSTER, attacks=attacks
    )


def alike(one, other):
    """For each group whether two votes have the same model, bit for bit."""
    return [
        a is not None
        and b is not None
        and all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for a, b in zip(one.models, other.models, strict=True)
    ]


def test_groups_over_a_grid_are_those_of_one_process():
    settings = {"fraction": 0.7, "clip": 1.0, "noise_std": 0.1, "keep": ("updates",), "seed": 5}
    here, there = groups_here(**settings), carried_groups(Grid(MANY), **settings)
    assert here.groups == there.groups
    assert alike(here, there) == [True] * 4
    assert dict(here.ledgers) == dict(there.ledgers)
    assert torch.equal(here.votes(X), there.votes(X))
    ids = [one.id for one in there.certify(X[:2]).assumptions]
    assert "apart-nodes" in ids
    assert "apart-nodes" not in [one.id for one in here.certify(X[:2]).assumptions]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_node_reaches_its_own_group_only(name):
    tamper, fate = HOSTILE[name]
    clean = carried_groups(Grid(MANY), rounds=2)
    vote = carried_groups(Grid(MANY, {105: tamper}), rounds=2)
    own = next(at for at, members in enumerate(vote.groups) if 5 in members)
    assert alike(clean, vote) == [at != own for at in range(4)]
    assert vote.ledgers[own].fates(1)[5].startswith(fate)
    nothing = fed.Attack(update=lambda own, honest, draws: own * torch.nan)  # counts as zero too
    assert alike(vote, groups_here({5: nothing}, rounds=2)) == [True] * 4


def test_a_node_that_leaves_is_absent_in_its_own_group():
    class Leaving(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            if [kind for _, kind in self.asked].count("train") >= 12:
                self.gone.add(107)
            return super().send_and_receive(messages, timeout=timeout)

        def get_node_ids(self):
            rounds = [kind for _, kind in self.asked].count("train")
            return [node for node in super().get_node_ids() if node != 107 or rounds < 12]

    vote = carried_groups(Leaving(MANY))
    nothing = fed.Attack(update=lambda own, honest, draws: own * torch.nan, rounds=(2, 3))
    here = groups_here({7: nothing})
    assert alike(vote, here) == [True] * 4
    assert torch.equal(vote.votes(X), here.votes(X))
    own = next(at for at, members in enumerate(vote.groups) if 7 in members)
    for at, ledger in vote.ledgers.items():
        fates = [ledger.fates(t) for t in (1, 2, 3)]
        others = {fate for one in fates for id_, fate in one.items() if id_ != 7}
        assert others == {"used"}
        if at == own:
            assert [one[7] for one in fates] == ["used"] + ["absent: was not connected"] * 2


def test_nobody_answers_for_another_node():
    """Node 103 answers everything that was sent to anybody, before and after they do."""

    class Forged(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            honest = super().send_and_receive(messages, timeout=timeout)
            forged = []
            for message in messages:
                if message.metadata.message_type == "train":
                    answer = arrays(bias=Array(np.full(3, 7.0)))(message, None)
                    answer.metadata.__dict__["_src_node_id"] = 103
                    forged.append(answer)
            return forged + honest + forged

    clean, vote = carried_groups(Grid(MANY)), carried_groups(Forged(MANY))
    own = next(at for at, members in enumerate(vote.groups) if 3 in members)
    assert alike(clean, vote) == [at != own for at in range(4)]
    plain = flower.Strategy(server(), 2).run(Forged(CLIENTS))
    assert all(plain.ledger.fates(t)[k] == "used" for t in (1, 2) for k in (0, 1, 2))
    honest = flower.Strategy(server(), 2).run(Grid(CLIENTS))
    hashes = [[one.model_hash for one in result.ledger.rounds] for result in (plain, honest)]
    assert hashes[0] != hashes[1]  # its own answer is its own to choose


def test_nobody_says_that_another_node_failed():
    """Node 103 answers for others that they failed, and they are late."""

    class Slandered(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            honest = super().send_and_receive(messages, timeout=timeout)
            if all(one.metadata.message_type != "train" for one in messages):
                return honest
            forged = [Message(Error(code=0, reason="slander"), reply_to=one) for one in messages]
            for answer in forged:
                answer.metadata.__dict__["_src_node_id"] = 103
            return forged + [one for one in honest if one.metadata.src_node_id != 107]

    vote = carried_groups(Slandered(MANY), rounds=1)
    at = next(at for at, members in enumerate(vote.groups) if 7 in members)
    assert vote.ledgers[at].fates(1)[7] == "absent: was late"


def test_a_node_that_claims_another_client_reaches_two_groups_and_the_certificate_says_so(caplog):
    """So a count of clients rests on their word, or on the numbers of their nodes."""
    group = {id_: at for at, members in enumerate(groups_here().groups) for id_ in members}
    other = next(id_ for id_ in range(6, 12) if group[id_] != group[5])

    def lying():
        grid = Grid(MANY)
        liar = replace(MANY[5], id=other, y=(MANY[5].y + 1) % 3)
        grid.apps[105] = flower.client_app(lambda _: (architecture(), liar))
        return grid

    clean, vote = carried_groups(Grid(MANY), rounds=1), carried_groups(lying(), rounds=1)
    reached = {at for at, same in enumerate(alike(clean, vote)) if not same}
    assert reached == {group[5], group[other]}
    assert vote.ledgers[group[5]].fates(1)[5] == "absent: was not connected"
    assert f"node {100 + other} says that it is client {other}, as node 105 did" in caplog.text
    assert "claimed-clients" in [one.id for one in vote.certify(X[:2]).assumptions]
    nodes = {one.id: 100 + one.id for one in MANY}
    with pytest.raises(ValueError, match="nodes must be different, one for each client"):
        flower.Groups(server(MANY), 4, 1, num_classes=3, nodes=nodes | {5: 107})
    with pytest.raises(TypeError, match="nodes must be a whole number"):
        flower.Groups(server(MANY), 4, 1, num_classes=3, nodes={"5": 105})
    named = flower.Groups(server(MANY), 4, 1, num_classes=3, roster=ROSTER, nodes=nodes)
    vote = named.run(lying())
    assert {at for at, same in enumerate(alike(clean, vote)) if not same} == {group[5]}
    assert "claimed-clients" not in [one.id for one in vote.certify(X[:2]).assumptions]


def test_a_group_that_cannot_go_on_ends_by_itself():
    clean = carried_groups(Grid(MANY))
    lost = clean.groups[1]
    grid = Grid(MANY, {100 + id_: lambda *_: None for id_ in lost})
    vote = carried_groups(grid)
    assert list(vote.failed) == [1]
    assert "0 usable updates of 1 needed" in vote.failed[1]
    assert alike(clean, vote) == [True, False, True, True]
    assert vote.certify(X).silent.tolist() == [1] * 40
    grid = Grid(MANY, {100 + id_: lambda *_: None for at in (0, 1) for id_ in clean.groups[at]})
    with pytest.raises(RuntimeError, match=r"must have a model, got 2 of 4: group 0 RoundError"):
        carried_groups(grid)


def test_groups_go_on_from_their_checkpoints(tmp_path):
    class Cut(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            if [kind for _, kind in self.asked].count("train") >= 24:
                raise InterruptedError
            return super().send_and_receive(messages, timeout=timeout)

    with pytest.raises(InterruptedError):
        carried_groups(Cut(MANY), checkpoint=tmp_path)
    grid = Grid(MANY)
    vote = carried_groups(grid, checkpoint=tmp_path)
    assert [kind for _, kind in grid.asked].count("train") == 12
    assert alike(vote, carried_groups(Grid(MANY))) == [True] * 4
    assert {len(ledger) for ledger in vote.ledgers.values()} == {3}


def test_a_rule_of_ones_own_is_refused_for_groups():
    def mean(models, weights):
        return fed.Mean()(models, weights)

    with pytest.raises(TypeError, match=r"a rule of rsfl's, got 'custom mean': it could keep"):
        flower.Groups(server(MANY, aggregate=mean), 4, 3, num_classes=3)
    with pytest.raises(ValueError, match="num_classes"):
        flower.Groups(server(MANY), 4, 3, num_classes=1)
    with pytest.raises(ValueError, match="groups"):
        flower.Groups(server(MANY), 13, 3, num_classes=3)


# -- one run -------------------------------------------------------------------------------------


def test_a_client_app_of_somebody_elses_takes_part_unchanged():
    app = ClientApp()

    def losses(model, node):
        part = slice(10 * (node - 100), 10 * (node - 99))
        return nn.functional.cross_entropy(model(X[part]), Y[part])

    @app.train()
    def train(msg, context):  # as Flower's own template has it: nothing in it knows of rsfl
        model = architecture()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"])
        losses(model, context.node_id).backward()
        optimizer.step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": 10}),
        }
        return Message(content=RecordDict(content), reply_to=msg)

    grid = Grid([])
    grid.apps = {100 + client: app for client in range(4)}
    clients = [fed.Remote(client, 10, fed.SGD(lr=0.2, batch_size=10)) for client in range(4)]
    nodes = dict(enumerate(flower.connected(grid, 4)))
    result = flower.Strategy(server(clients), 3, nodes=nodes).run(grid)

    model = architecture()
    for _ in range(3):  # one step of each client, averaged: a step on all of their samples
        model.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.2 * p.grad
    for ours, by_hand in zip(result.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, by_hand, rtol=0, atol=1e-12)
    assert {one.outcome for r in result.ledger.rounds for one in r.participants} == {"used"}


def test_registration_tells_what_the_ledger_needs():
    trainer = fed.SGD(lr=0.3)
    found = flower.register(Grid(CLIENTS), 4, trainer)
    assert found == [fed.Remote(one.id, one.size, trainer, one.input_norm) for one in CLIENTS]
    assert not math.isinf(found[0].input_norm)
    with pytest.raises(RuntimeError, match="another machine"):
        found[0].fit(architecture(), None)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"id": -1, "size": 3, "input_norm": 1.0},
        {"id": 2, "size": 0, "input_norm": 1.0},
        {"id": 2, "size": 2_000_000, "input_norm": 1.0},
        {"id": 2, "size": 3, "input_norm": math.nan},
        {"id": [2, 2], "size": 3, "input_norm": 1.0},
        {"id": "2", "size": 3, "input_norm": 1.0},
        {"id": 0, "size": 3, "input_norm": 1.0},
    ],
    ids=repr,
)
def test_a_registration_that_makes_no_sense_is_left_out(said):
    grid = Grid(CLIENTS)
    app = grid.apps[102]
    grid.apps[102] = lambda message, context: (
        Message(RecordDict({"client": ConfigRecord(said)}), reply_to=message)
        if message.metadata.message_type == "query"
        else app(message, context)
    )
    assert [(one.id, one.size) for one in flower.register(grid, 3)] == [(0, 10), (1, 10), (3, 10)]
    with pytest.raises(TimeoutError, match="only 3 of 4 clients registered within 0 s"):
        flower.register(grid, 4, timeout=0)


def test_nodes_are_waited_for(monkeypatch):
    grid, waited = Grid(CLIENTS), []
    grid.gone = {100, 102, 103}
    monkeypatch.setattr(flower.time, "sleep", lambda s: (waited.append(s), grid.gone.pop()))
    assert flower.connected(grid, 4) == [100, 101, 102, 103]
    assert waited == [1.0, 1.0, 1.0]
    grid.gone = {101}
    assert flower.connected(grid, 3) == [100, 102, 103]
    with pytest.raises(TimeoutError, match="only 3 of 4 nodes connected within 0 s"):
        flower.connected(grid, 4, timeout=0)


def test_a_node_that_leaves_is_absent_until_it_comes_back_under_another_number():
    grid, seen = Grid(CLIENTS), []

    def metrics(model):
        seen.append(model)
        if len(seen) == 1:
            grid.gone.add(101)
        if len(seen) == 2:
            grid.apps[999] = grid.apps[101]
        return {}

    fates = flower.Strategy(server(), 3, evaluate=metrics).run(grid).ledger
    assert [fates.fates(t)[1] for t in (1, 2, 3)] == ["used", "absent: was not connected", "used"]
    assert [node for node, kind in grid.asked if kind == "query"] == [100, 101, 102, 103, 999]


def test_a_seat_that_is_taken_is_not_given_away():
    grid = Grid(CLIENTS, {999: arrays(bias=Array(np.full(3, np.nan)))})
    grid.apps[999] = grid.apps[101]
    ledger = flower.Strategy(server(), 2).run(grid).ledger
    assert ledger.fates(2)[1] == "used"
    # And where the numbers are known, a stranger gets no seat that is free either.
    grid.gone.add(101)
    named = (
        flower.Strategy(server(), 1, nodes={one.id: 100 + one.id for one in CLIENTS})
        .run(grid)
        .ledger
    )
    assert named.fates(1)[1] == "absent: was not connected"


def test_rounds_are_counted_on_from_a_checkpoint(tmp_path):
    settings = {"clip": lambda t: 0.1 * t, "seed": 1}
    # The same in this process: a schedule that is asked for rounds which were added later is not
    # one that was fixed before the first, and the ledger says so.
    server(**settings).run(2, checkpoint=tmp_path / "here")
    whole = server(**settings).run(5, checkpoint=tmp_path / "here")
    assert [one.round.clip_fixed for one in whole.ledger.entries] == [True] * 2 + [False] * 3
    first, second = Grid(CLIENTS), Grid(CLIENTS)
    there = tmp_path / "there"
    flower.Strategy(server(**settings), 2, checkpoint=there).run(first)
    result = flower.Strategy(server(**settings), 5, checkpoint=there).run(second)
    assert result.ledger == whole.ledger
    assert [kind for _, kind in second.asked].count("train") == 4 * 3
    assert (
        flower.Strategy(server(**settings), 5, checkpoint=there).run(SimpleNamespace()).ledger
        == whole.ledger
    )


def test_too_few_is_an_error_that_carries_the_run():
    grid = Grid(CLIENTS, {100 + k: lambda *_: None for k in range(4)})
    with pytest.raises(fed.RoundError, match="round 1: 0 usable updates of 1 needed"):
        flower.Strategy(server(), 2).run(grid)


def test_a_client_that_builds_another_model_says_so():
    grid = Grid(CLIENTS)
    grid.apps[101] = flower.client_app(lambda _: (nn.Linear(5, 3).to(DOUBLE), CLIENTS[1]))
    with pytest.raises(ValueError, match="not the one built here: it sent 'weight' of shape"):
        flower.Strategy(server(), 1).run(grid)


def test_the_run_starts_by_itself_alone():
    strategy = flower.Strategy(server(), 2)
    other = ArrayRecord(torch_state_dict=dict(nn.Linear(4, 3).to(DOUBLE).state_dict()))
    with pytest.raises(ValueError, match="arrays must be the model of the run"):
        strategy.start(Grid(CLIENTS), other, num_rounds=1)


def test_bad_settings_are_named():
    model = nn.Linear(4, 3).to(torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16"):
        flower.Strategy(fed.Server(model, CLIENTS), 2)
    with pytest.raises(ValueError, match="rounds"):
        flower.Strategy(server(), 0)
    with pytest.raises(ValueError, match="reply_timeout"):
        flower.Strategy(server(), 1, reply_timeout=0.0)
    with pytest.raises(ValueError, match=r"exclude.*99"):
        flower.Strategy(server(), 1, exclude={99})
    with pytest.raises(ValueError, match="threads"):
        flower.client_app(lambda _: None, threads=0)
    with pytest.raises(ValueError, match="clients"):
        flower.register(Grid([]), 0)
    with pytest.raises(ValueError, match="nodes"):
        flower.connected(Grid([]), 0)
    with pytest.raises(ValueError, match="size"):
        fed.Remote(0, 0)
