"""A catalogue of lies: subclasses, patches, hooks, states, schedules, replies, edited ledgers.

Each is told in a run and in the run that it is compared with: whatever is certified must be the
same in both. What becomes of it is written beside it: ``refused`` (nothing is certified),
``custom`` (the ledger does not call it by our name, and so nothing is certified either, or its
client counts with what the clip lets it do) or ``harmless`` (certified, and true).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from rsfl import bounds, fed
from rsfl._checkpoint import CheckpointError, read, write
from rsfl.bounds import (
    ClientThreat,
    ConditionError,
    FeatureThreat,
    RemovalThreat,
    SampleThreat,
)
from rsfl.bounds.condition import TRUSTED
from rsfl.noise import Gaussian
from rsfl.train import CrossEntropy

DOUBLE = torch.float64
TEST = torch.randn(300, 4, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
ROUNDS = 3


def blobs():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (96,), generator=generator)
    x = torch.eye(4, dtype=DOUBLE)[y] + 0.2 * torch.randn(96, 4, generator=generator, dtype=DOUBLE)
    return 0.6 * x, y


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(4, 3).double()


def server(trainer=None, model=None, loss=None, make=None, **settings):
    x, y = blobs()
    trainer = trainer or fed.SGD(
        lr=0.5, batch_size=4, decay=0.1, loss=CrossEntropy() if loss is None else loss
    )
    members = fed.clients(x, y, fed.partition.equal(96, 12), trainer)
    members = members if make is None else [make(one) for one in members]
    return fed.Server(model or linear(), members, **settings)


def one_sample(x, y):
    x, y = x.clone(), y.clone()
    x[0], y[0] = -x[0], (y[0] + 1) % 3
    return x, y


SAMPLE = SampleThreat(clients=[0], per_batch=1, input_norm=2.0)
REFUSALS = (ConditionError, ValueError, TypeError, fed.RoundError)


def held(result, threat, other):
    """How many predictions are certified; all of them must be those of the other run."""
    certificate = fed.certify(result.model, TEST, result.ledger, threat)
    made = ~certificate.abstained
    same = certificate.label[made] == other.model(TEST).argmax(1)[made]
    assert bool(same.all()), f"{int((~same).sum())} of {int(made.sum())} predictions are wrong"
    return int(made.sum())


def told(run, poison=one_sample, threats=(SAMPLE,), **options):
    """What became of a lie in a run: poisoned against clean, and with client 0 against without."""
    attack = {0: fed.Attack(data=poison)}
    names, certified, refused = [], 0, 0
    try:
        clean = run().run(ROUNDS, **options)
        pairs = [(run().run(ROUNDS, attacks=attack, **options), one, clean) for one in threats]
        pairs.append((clean, RemovalThreat(clients=[0]), run().run(ROUNDS, exclude=[0], **options)))
    except REFUSALS:
        return "refused"
    for result, threat, other in pairs:
        for record in result.ledger.rounds:
            names += [record.model, record.aggregator]
            names += [word for one in record.participants for word in (one.loss, one.optimizer)]
        try:
            certified += held(result, threat, other)
        except REFUSALS:
            refused += 1
    if any(name not in ("linear", "mean", "softmax cross-entropy", "sgd") for name in names):
        return "custom"
    return "refused" if refused == len(pairs) else "harmless" if certified else "empty"


def test_the_truth_is_certified():
    assert told(server) == "harmless"


# Losses.


class Loud(CrossEntropy):
    def losses(self, outputs, y):
        return 30 * super().losses(outputs, y)


class Equal:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0

    def __call__(self, model, x, y, generator):
        return 30 * functional.cross_entropy(model(x), y)


def patched(value, **fields):
    for name, replacement in fields.items():
        object.__setattr__(value, name, replacement)
    return value


def steep(outputs, y):
    return 30 * functional.cross_entropy(outputs, y, reduction="none")


LOSSES = {
    "a subclass": Loud,
    "an __eq__ of its own": Equal,
    "a patched method": lambda: patched(CrossEntropy(), losses=steep),
    "a law put in later": lambda: patched(CrossEntropy(), law=Gaussian(5.0)),
    "a function": lambda: lambda m, x, y, g: 30 * functional.cross_entropy(m(x), y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    assert told(lambda: server(loss=LOSSES[name]())) == "custom"


# Trainers.


class Double(fed.SGD):
    def descend(self, values, gradients, *rest):
        super().descend(values, [30 * gradient for gradient in gradients], *rest)


class Rising:
    """A step size that grows whenever it is asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, index):
        self.asked += 1
        return 0.02 * self.asked


def counting():
    asked = []

    def rate(index):
        asked.append(index)
        return min(0.01 * len(asked) ** 2, 2.0)

    return rate


class Moody(dict):
    """A decay that answers differently each time."""

    def get(self, name, default=None):
        self.asked = getattr(self, "asked", 0) + 1
        return 0.1 if self.asked % 2 else 0.0


def opaque(model, x, y, task):
    with torch.no_grad():
        model.weight += x.mean()


PLAIN = {"lr": 0.5, "batch_size": 4, "decay": 0.1}
TRAINERS = {
    "a subclass": (lambda: Double(**PLAIN), "custom"),
    "a patched step": (lambda: patched(fed.SGD(**PLAIN), descend=lambda *a: None), "custom"),
    "patched batches": (
        lambda: patched(fed.SGD(**PLAIN), batches=lambda size, task: [np.zeros(4, int)] * 2),
        "custom",
    ),
    "a function": (lambda: opaque, "custom"),
    "momentum put in later": (lambda: patched(fed.SGD(**PLAIN), momentum=0.9), "refused"),
    "a moody decay": (
        lambda: fed.SGD(**PLAIN | {"decay": Moody(weight=0.1, bias=0.1)}),
        "harmless",
    ),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers(name):
    make, fate = TRAINERS[name]
    assert told(lambda: server(trainer=make())) == fate


# Schedules: what was used is what is recorded, and nothing that happens reaches them.


@pytest.mark.parametrize("rate", [Rising, counting], ids=["an object", "a closure"])
def test_step_sizes_with_a_state(rate):
    """The runs that are compared have one server: its schedules are asked once in all."""
    run = server(trainer=fed.SGD(**PLAIN | {"lr": rate()}))
    assert told(lambda: run) == "harmless"
    rates = [record.participants[0].lr for record in run.run(ROUNDS).ledger.rounds]
    assert rates == sorted(set(rates))
    assert len({one.lr for one in run.run(ROUNDS).ledger.rounds[1].participants}) == 1


@pytest.mark.parametrize("name", ["clip", "noise_std", "update_clip", "server_step"])
def test_settings_with_a_state(name):
    high = {"clip": 2.0, "noise_std": 0.02, "update_clip": 9.0, "server_step": 1.0}[name]

    def falling():
        asked = []

        def value(index):
            asked.append(index)
            return high / len(asked)

        return value

    run = server(**{name: falling()})
    assert told(lambda: run) in ("harmless", "empty")
    found = [getattr(record, name) for record in run.run(ROUNDS).ledger.rounds]
    assert found[:2] == [high, high / 2]
    assert found == [getattr(record, name) for record in run.run(ROUNDS).ledger.rounds]


def test_a_clip_that_reads_the_model():
    """There is nothing to read before the run: it is asked then, and stands fast."""
    seen = []

    def clip(index):
        return 10.0 / (1 + len(seen))

    def evaluate(model):
        seen.append(float(model.weight.detach().norm()))
        return {}

    run = server(clip=clip)
    assert told(lambda: run, evaluate=evaluate) == "harmless"
    assert {record.clip for record in run.run(ROUNDS).ledger.rounds} == {10.0}


def test_rounds_that_are_added_later_are_not_fixed(tmp_path):
    seen = []
    run = server(clip=lambda index: 10.0 / (1 + len(seen)))
    run.run(2, checkpoint=tmp_path)
    seen.append("a round")
    ledger = run.run(3, checkpoint=tmp_path).ledger
    assert [record.clip_fixed for record in ledger.rounds] == [True, True, False]
    with pytest.raises(ConditionError, match="fixed-clip"):
        bounds.deviation(ledger.rounds, RemovalThreat(clients=[0]))


# Models.


class Squared(nn.Linear):
    def forward(self, x):
        return super().forward(x) ** 3


class Sub(nn.Parameter):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result * 3 if function is functional.linear else result


class Times(nn.Module):
    def forward(self, weight):
        return 5 * weight


def hooked(model, kind="forward"):
    if kind == "forward":
        model.register_forward_hook(lambda module, args, output: output * 5)
    elif kind == "before":
        model.register_forward_pre_hook(lambda module, args: (5 * args[0],))
    else:
        model.weight.register_hook(lambda gradient: 5 * gradient)
    return model


def reforwarded():
    model = linear()
    model.forward = lambda x: functional.linear(5 * x, model.weight, model.bias)
    return model


def renamed():
    plain = linear()
    model = type("Linear", (Squared,), {"__module__": "torch.nn.modules.linear"})(4, 3).double()
    model.load_state_dict(plain.state_dict())
    return model


def subclassed():
    model = linear()
    model.weight = Sub(model.weight.detach())
    return model


def parametrized():
    model = linear()
    parametrize.register_parametrization(model, "weight", Times())
    return model


MODELS = {
    "a subclass": lambda: Squared(4, 3).double(),
    "a forward of its own": reforwarded,
    "a hook": lambda: hooked(linear()),
    "a hook before": lambda: hooked(linear(), "before"),
    "a hook of gradients": lambda: hooked(linear(), "gradient"),
    "a borrowed name": renamed,
    "a parameter of another class": subclassed,
    "a parametrization": parametrized,
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert told(lambda: server(model=MODELS[name]())) in ("custom", "refused")


class Rewriting(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 5 * result if function is functional.linear else result


def test_a_mode_that_rewrites_calls():
    with Rewriting():
        clean = server().run(ROUNDS)
    assert {record.model for record in clean.ledger.rounds} == {"Linear"}
    with pytest.raises(ConditionError, match="linear-model"):
        fed.certify(clean.model, TEST, clean.ledger, RemovalThreat(clients=[0]))


def test_hooks_that_rewrite_what_gradients_are_made_from():
    def inputs_times_60(saved):
        return 60 * saved if saved.is_floating_point() and saved.shape[-1:] == (4,) else saved

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, inputs_times_60):
        clean = server().run(ROUNDS)
    assert {record.model for record in clean.ledger.rounds} == {"Linear"}
    with pytest.raises(ConditionError, match="linear-model"):
        fed.certify(clean.model, TEST, clean.ledger, RemovalThreat(clients=[0]))


def test_whether_there_are_such_hooks_is_asked_without_a_trace():
    def same(saved):
        return saved

    for _ in range(2):
        assert fed.ours.plain_process()
        with torch.no_grad(), torch.inference_mode():
            assert fed.ours.plain_process()
        with torch.autograd.graph.saved_tensors_hooks(same, same):
            assert not fed.ours.plain_process()
            with torch.autograd.graph.saved_tensors_hooks(same, same):
                assert not fed.ours.plain_process()
        with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
            assert fed.ours.plain_process()
            with (
                pytest.raises(RuntimeError, match="not here"),
                torch.autograd.graph.saved_tensors_hooks(same, same),
            ):
                pass


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_around_all_modules(kind):
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    hook = register(
        lambda module, args, *output: (
            tuple(5 * one for one in args) if not output else 5 * output[0]
        )
    )
    try:
        clean = server().run(ROUNDS)
    finally:
        hook.remove()
    assert {record.model for record in clean.ledger.rounds} == {"Linear"}
    assert {one.loss for one in clean.ledger.rounds[0].participants} == {"custom"}


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (
            functional,
            "cross_entropy",
            lambda z, y, **k: 30 * functional.nll_loss(z.log_softmax(1), y, **k),
        ),
        (CrossEntropy, "losses", lambda self, outputs, y: steep(outputs, y)),
        (fed.SGD, "batches", lambda self, size, task: [torch.zeros(4, dtype=int).numpy()] * 2),
        (fed.Client, "input_norm", property(lambda self: 1.0)),
    ],
    ids=["function", "loss", "batches", "client"],
)
def test_code_that_is_put_into_classes(where, name, value, monkeypatch):
    monkeypatch.setattr(where, name, value)
    run = server().run(1)
    words = {
        word for one in run.ledger.rounds[0].participants for word in (one.loss, one.optimizer)
    }
    assert "custom" in words


# Rules.


def mean(models, weights):
    return fed.Aggregate(2 * fed.Mean()(models, weights).value, None)


class Borrowed:
    def __call__(self, models, weights):
        return fed.Aggregate(2 * fed.Mean()(models, weights).value, None)


class Better(fed.Mean):
    __call__ = Borrowed.__call__


RULES = {
    "a function of that name": lambda: mean,
    "a borrowed name": lambda: type("Mean", (Borrowed,), {"__module__": "rsfl.fed.aggregate"})(),
    "a subclass": Better,
    "one with a state": lambda: patched(fed.Mean(), kept=[]),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name):
    assert told(lambda: server(aggregate=RULES[name]())) == "custom"
    assert server(aggregate=RULES[name]()).run(1).ledger.rounds[0].aggregator.startswith("custom")


# Samples.


class Augmenting(Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return 5 * result if function is Tensor.__getitem__ else result


def test_inputs_of_another_class_do_not_register():
    x, y = blobs()
    with pytest.raises(TypeError, match=r"x must be a plain torch\.Tensor, got Augmenting"):
        fed.Client(0, x.as_subclass(Augmenting), y)
    with pytest.raises(TypeError, match=r"y must be a plain torch\.Tensor, got Augmenting"):
        fed.Client(0, x, y.as_subclass(Augmenting))


def test_inputs_with_methods_of_their_own():
    def changed(one):
        x = one.x.clone()
        x.flatten = lambda *a: torch.zeros(len(x), 1)
        return replace(one, x=x)

    assert told(lambda: server(make=changed)) == "custom"


def test_data_that_grow_in_place():
    """After the first round the inputs are ten times as long: the ledger says so."""
    run = server()

    def evaluate(model):
        run.clients[0].x.mul_(10)
        return {}

    norms = [
        max(one.input_norm for one in record.participants)
        for record in run.run(2, evaluate=evaluate).ledger.rounds
    ]
    assert norms[1] > 5 * norms[0]


def spoilt(**changes):
    """One sample a batch that nobody can train on."""

    def poison(x, y):
        x, y = x.clone(), y.clone()
        if "x" in changes:
            x[0] = changes["x"]
        if "y" in changes:
            y[0] = changes["y"]
        return x, y

    return poison


def failing(error):
    def poison(x, y):
        raise error

    return poison


POISONS = {
    "a label that is no class": spoilt(y=7),
    "a label that is ignored": spoilt(y=-100),
    "a label below all": spoilt(y=-(2**62)),
    "an input that is no number": spoilt(x=float("nan")),
    "an input that is infinite": spoilt(x=float("inf")),
    "an input whose square is infinite": spoilt(x=1e200),
    "an error": failing(RuntimeError("no")),
    "an interrupt": failing(KeyboardInterrupt()),
    "an exit": failing(SystemExit(1)),
    "too few samples": lambda x, y: (x[:1], y[:1]),
    "labels of another kind": lambda x, y: (x, y.double()),
    "no pair": lambda x, y: None,
    "a subclass": lambda x, y: (x.as_subclass(Augmenting), y),
}


@pytest.mark.parametrize("name", POISONS)
def test_samples_that_make_a_training_fail(name):
    """Nobody's training fails from its samples: no update turns to zero, which no bound on samples
    pays for."""
    assert told(server, poison=POISONS[name]) == "harmless"
    attack = {0: fed.Attack(data=POISONS[name])}
    ledger = server().run(1, attacks=attack).ledger
    assert ledger.fates(1)[0] == "used"


@pytest.mark.parametrize("name", ["label", "number", "long"])
def test_samples_that_were_bad_when_their_client_registered(name):
    """Each tenth sample of client 0: zero, with its share kept, and named in the ledger."""
    x, y = blobs()
    bad = torch.from_numpy(server().clients[0].where[::4])
    if name == "label":
        y[bad] = 5
    else:
        x[bad] = float("nan") if name == "number" else 50.0

    def change(one):
        return replace(one, x=x, y=y) if one.id == 0 else one

    def run(make=None):
        return server(make=make, max_input_norm=3.0)

    honest, attacked = run().run(ROUNDS), run(change).run(ROUNDS)
    assert attacked.ledger.unusable[0].startswith(f"{len(bad)} samples cannot be trained on")
    assert {one.outcome for record in attacked.ledger.rounds for one in record.participants} == {
        "used"
    }
    assert max(one.input_norm for one in attacked.ledger.rounds[0].participants) <= 3.0
    threat = SampleThreat(clients=[0], share=0.5, input_norm=3.0)
    assert held(attacked, threat, honest) > 0


def test_samples_that_are_moved_past_the_longest_are_not_valid():
    """Each counts as zero, and moves the model by its gradient: `valid-samples` names that."""
    x, y = blobs()
    x = x / x.norm(dim=1, keepdim=True) * 3**0.5 * (1 - 1e-9)

    def run():
        return server(make=lambda one: replace(one, x=x, y=y), max_input_norm=2.0)

    attack = {0: fed.Attack(data=lambda x, y: (x * (1 + 1e-6), y))}
    honest, attacked = run().run(ROUNDS), run().run(ROUNDS, attacks=attack)
    moved = {"clients": [0], "norm": 1e-5, "flips": False}
    assert "max_input_norm" in TRUSTED["valid-samples"]
    apart = float((honest.model.weight - attacked.model.weight).detach().norm())
    assert apart > bounds.deviation(honest.ledger.rounds, FeatureThreat(**moved)).value
    paid = FeatureThreat(**moved, valid=False)
    assert apart < bounds.deviation(honest.ledger.rounds, paid).value
    held(attacked, paid, honest)


def test_one_huge_registration_voids_nothing_where_it_is_capped():
    big = torch.full((8, 4), 1e9, dtype=DOUBLE)

    def change(one):
        return (
            fed.Client(0, big, torch.zeros(8, dtype=torch.long), one.trainer) if not one.id else one
        )

    run = server(make=change, max_input_norm=3.0)
    result = run.run(ROUNDS)
    assert held(result, RemovalThreat(clients=[5]), run.run(ROUNDS, exclude=[5])) > 0
    remote = fed.Remote(0, 8, input_norm=1e9)
    from rsfl.fed.survey import survey

    assert survey([remote], linear(), 3.0)[0].input_norm == 3.0


# Clients.


class Liar(fed.Client):
    @property
    def input_norm(self):
        return 1.0

    def samples(self):
        x, y = super().samples()
        return 5 * x, y


def test_clients_of_another_class_or_with_code_of_their_own():
    def subclass(one):
        return Liar(one.id, one.x, one.y, one.trainer, one.indices)

    def patch(one):
        x, y = one.samples()
        return patched(replace(one), samples=lambda: (5 * x, y))

    assert told(lambda: server(make=subclass)) == "custom"
    assert told(lambda: server(make=patch)) == "custom"


class Shifting:
    """A participant that is somebody else whenever it is asked."""

    trainer = fed.SGD(**PLAIN)

    def __init__(self, client):
        self.client, self.asked = client, 0

    @property
    def id(self):
        self.asked += 1
        return 100 + self.asked

    @property
    def size(self):
        self.asked += 1
        return 10**self.asked

    def fit(self, model, task):
        return self.client.fit(model, task)


def test_a_participant_is_asked_once_who_it_is():
    run = server(make=lambda one: Shifting(one) if one.id == 3 else one)
    assert run.registry[101] == 100
    ledger = run.run(2).ledger
    assert [record.participants[-1].client for record in ledger.rounds] == [101, 101]


# Replies.


class Rewriter(Tensor):
    """Changes what everybody else sent, as soon as it is touched."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        for other in Victims.rows:
            other.data.fill_(1e3)
        return super().__torch_function__(function, types, args, kwargs or {})


class Victims:
    rows = ()


class Dressed(dict):
    def __getitem__(self, name):
        return 5 * super().__getitem__(name)


class Replies:
    """A client whose reply is dressed up."""

    def __init__(self, client, dress):
        self.id, self.size, self.trainer = client.id, client.size, client.trainer
        self.client, self.dress = client, dress

    def fit(self, model, task):
        return self.dress(dict(self.client.fit(model, task)))


def shrunk(reply):
    reply["bias"] = reply["bias"].clone()
    reply["bias"].untyped_storage().resize_(0)
    return reply


class Key(str):
    __slots__ = ()


REPLIES = {
    "a tensor of another class": lambda r: {n: t.as_subclass(Rewriter) for n, t in r.items()},
    "a parameter": lambda r: {n: nn.Parameter(t) for n, t in r.items()},
    "a mapping of another class": Dressed,
    "keys of another class": lambda r: {Key(n): t for n, t in r.items()},
    "memory that is not there": shrunk,
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies(name):
    plain = server()
    run = server(make=lambda one: Replies(one, REPLIES[name]) if one.id == 4 else one)
    Victims.rows = ()
    result = run.run(ROUNDS)
    assert all(result.ledger.fates(t)[4].startswith("rejected: sent") for t in (1, 2, 3))
    gone = RemovalThreat(clients=[4])
    certificate = fed.certify(result.model, TEST, result.ledger, gone)
    other = plain.run(ROUNDS, exclude=[4]).model(TEST).argmax(1)
    made = ~certificate.abstained
    assert made.any()
    assert torch.equal(certificate.label[made], other[made])


def test_a_reply_that_is_changed_after_it_was_sent():
    sent = []

    def keep(reply):
        for tensor in sent:
            tensor.fill_(1e3)
        sent[:] = list(reply.values())
        return reply

    run = server(make=lambda one: Replies(one, keep) if one.id in (2, 4) else one)
    norms = {one.client: one.update_norm for one in run.run(1).ledger.rounds[0].participants}
    assert max(norms.values()) < 10


# Ledgers.


def edited(ledger, number, **changes):
    entries = list(ledger.entries)
    entries[number] = replace(entries[number], round=replace(entries[number].round, **changes))
    return replace(ledger, entries=tuple(entries))


def test_ledgers_that_are_not_those_of_the_model():
    result, other = server().run(ROUNDS), server(seed=5).run(ROUNDS)
    threat = RemovalThreat(clients=[0])
    entries = result.ledger.entries
    lies = {
        "another run's": other.ledger,
        "cut at the start": replace(result.ledger, entries=entries[1:]),
        "cut at the end": replace(result.ledger, entries=entries[:-1]),
        "a hole": replace(result.ledger, entries=(entries[0], entries[2])),
        "another order": replace(result.ledger, entries=entries[::-1]),
        "spliced": replace(
            result.ledger, entries=(entries[0], other.ledger.entries[1], entries[2])
        ),
        "another end": edited(result.ledger, 2, model_hash="ab" * 32),
        "weights that do not add up": edited(
            result.ledger,
            1,
            participants=[replace(one, weight=0.01) for one in entries[1].round.participants],
        ),
    }
    for name, ledger in lies.items():
        with pytest.raises(ValueError, match=r"."):
            print(name, fed.certify(result.model, TEST, ledger, threat))
    moved = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match="model must be the one"):
        fed.certify(moved, TEST, result.ledger, threat)
    assert result.ledger.start == 1
    assert replace(result.ledger, entries=entries[1:]).start == 2


def moody(model, x, y, task):
    """Fails where the weights are as they were in one of two runs."""
    if task.round == 1 or float(model.weight.detach().flatten()[0]) > moody.limit:
        raise RuntimeError
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(10.0)


def test_whoever_is_absent_in_one_run_may_send_in_the_other():
    """Code that is not known: whether it fails may depend on what the attackers did."""

    def run(rounds, attacks=None):
        def make(one):
            return replace(one, trainer=moody) if one.id == 5 else one

        slow = fed.SGD(lr=1e-3, batch_size=4, decay=0.1)
        return server(slow, make=make, update_clip=1.0).run(rounds, attacks=attacks)

    attack = {0: fed.Attack(data=one_sample)}
    starts = [float(run(1, how).model.weight.detach()[0, 0]) for how in (None, attack)]
    moody.limit = sum(starts) / 2
    runs = [run(2, how) for how in (None, attack)]
    fates = [one.ledger.fates(2)[5] for one in runs]
    assert sorted(fate.split(":")[0] for fate in fates) == ["absent", "clipped"]
    for ledger_of, other in (runs, runs[::-1]):
        found = bounds.deviation(ledger_of.ledger.rounds, SAMPLE)
        pairs = zip(ledger_of.model.parameters(), other.model.parameters(), strict=True)
        assert sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5 <= found.value
        held(ledger_of, SAMPLE, other)


def test_whoever_sends_anything_is_within_the_client_level():
    run = server(update_clip=2.0)
    clean = run.run(ROUNDS)
    for tamper in (
        lambda own, honest, generator: own * float("nan"),
        lambda own, honest, generator: -50 * own,
        lambda own, honest, generator: honest.mul_(0).sum(0),
        failing(KeyboardInterrupt()),
    ):
        attacked = run.run(ROUNDS, attacks={0: fed.Attack(update=tamper)})
        held(attacked, ClientThreat(clients=[0]), clean)
        others = [one for one in attacked.ledger.rounds[0].participants if one.client]
        assert all(one.outcome == "used" for one in others)


def test_a_checkpoint_whose_weights_are_of_another_class(tmp_path):
    run = server()
    run.run(1, checkpoint=tmp_path)
    (path,) = tmp_path.glob("state-*.rsfl")
    content = read(path)
    write(path, content | {"broadcast": nn.Parameter(content["broadcast"])})
    with pytest.raises(CheckpointError, match="something else than plain weights"):
        run.run(2, checkpoint=tmp_path)


def test_a_checkpoint_whose_schedules_say_something_else_now(tmp_path):
    server(clip=lambda index: 1.0).run(1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"clip was planned as \[1\.0\] and is \[2\.0\] now"):
        server(clip=lambda index: 2.0).run(2, checkpoint=tmp_path)
