"""Runs go on where they stopped, whatever stopped them, and end with the votes of an undisturbed
one."""

import contextlib
import errno
import os
import random
import resource
import signal
import sys
import threading
import time

import pytest
import torch
from callables import LABELS, X, data
from models import MODELS
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from tqdm import tqdm

from rsfl import runs
from rsfl.runs.log import Directory, read_shard
from rsfl.runs.schedule import owner
from rsfl.runs.settings import Settings
from rsfl.smooth import GaussianSmoother, floored

SMOOTHER = GaussianSmoother(MODELS["staircase"], 0.5, 4)


class Neighbours(nn.Module):
    """Votes depend on the place in the batch and on its size, as rounding errors do, only more
    so."""

    def forward(self, x):
        place = torch.arange(len(x)) * 2654435761 + len(x) * 40503
        return nn.functional.one_hot((place // 1000 + (x[:, 0] > 0.5)) % 4, 4).float()


class Slow:
    """Inputs that take their time; what ``at`` holds is called when its index is read."""

    def __init__(self, size, pause=0.0, at=None):
        self.size, self.pause, self.at = size, pause, at or {}
        self.read = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        time.sleep(self.pause)
        self.at.get(index, lambda: None)()
        return torch.tensor([index / self.size]), index % 4


def certified(out, dataset=None, smoother=SMOOTHER, **changes):
    given = {"n0": 20, "n": 150, **changes}
    return runs.certify(smoother, data() if dataset is None else dataset, out=out, **given)


def votes(out):
    """Everything recorded but the time it took."""
    return [(r.label, r.impossible, r.ballot) for r in Directory.open(out).records().values()]


@contextlib.contextmanager
def child(work):
    """A process that does the work, with this one's imports already made; yields its id and reaps
    it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # threads of the parent do not exist here
            tqdm.set_lock(
                threading.RLock()
            )  # its own is shared by forked processes, and would be killed held
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    yield pid


def ended(pid):
    """How a child ended: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


fork_is_quick_here = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@fork_is_quick_here
@pytest.mark.parametrize(
    "changes", [{"n": 1000}, {"n": 300, "radius": 0.1}], ids=["fixed", "sequential"]
)
def test_thirty_kills_change_no_vote(tmp_path, changes):
    kills, size, moment = 30, 800, random.Random(0)
    settings = {"smoother": GaussianSmoother(Neighbours(), 0.5, 4, spot_check=False), **changes}
    certified(tmp_path / "whole", Slow(size), **settings)
    out, lengths = tmp_path / "killed", [0]

    def written():
        return sum(path.stat().st_size for path in out.glob("votes-*"))

    for kill in range(kills):
        before = written()
        with child(lambda: certified(out, Slow(size, pause=0.001), **settings)) as pid:
            deadline = time.monotonic() + 30
            while (
                kill % 2 and written() <= before
            ):  # half of them at any moment, half once there is something new
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(moment.uniform(0.0, 0.02))
            os.kill(pid, signal.SIGKILL)
            assert ended(pid) == -signal.SIGKILL  # it was at work
        lengths.append(len(votes(out)) if (out / "run.json").exists() else 0)
    assert lengths == sorted(lengths)  # nothing is ever lost
    assert len(set(lengths)) > kills // 2
    certified(out, Slow(size), **settings)
    assert votes(out) == votes(tmp_path / "whole")
    first, second = runs.load(out)[0], runs.load(tmp_path / "whole")[0]
    assert torch.equal(first.radius, second.radius)


def test_a_log_cut_anywhere_is_continued(tmp_path):
    certified(tmp_path)
    path = tmp_path / "votes-00000.jsonl"
    content, expected = path.read_bytes(), votes(tmp_path)
    for cut in random.Random(1).sample(range(len(content)), 25):
        path.write_bytes(content[:cut])
        certified(tmp_path)
        assert votes(tmp_path) == expected


@fork_is_quick_here
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path):
    certified(tmp_path / "whole", Slow(40))
    out = tmp_path / "full"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        certified(out, Slow(40))

    with child(limited) as pid:
        assert ended(pid) == errno.EFBIG
    assert (out / "votes-00000.jsonl").stat().st_size == 2000
    some = votes(out)
    assert 0 < len(some) < 40
    certified(out, Slow(40))
    assert votes(out) == votes(tmp_path / "whole")


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor, rest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rsfl._files.os.write", full)
    with pytest.raises(OSError, match=r"No space left on device.*run\.json"):
        certified(tmp_path)


@fork_is_quick_here
def test_a_second_process_is_refused(tmp_path):
    with child(lambda: certified(tmp_path, Slow(400, pause=0.002))) as pid:
        while not (tmp_path / "run.json").exists():
            time.sleep(0.005)
        with pytest.raises(
            BlockingIOError, match=r"another process is writing.*votes-00000\.jsonl"
        ):
            certified(tmp_path, Slow(400))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    certified(tmp_path, Slow(400))  # the lock went with its process
    run = Directory.open(tmp_path)
    with run.recording(0), pytest.raises(BlockingIOError):
        certified(tmp_path, Slow(400))
    with run.recording(1):
        certified(tmp_path, Slow(400))  # another rank's file is another matter


@pytest.fixture
def listening():
    """Signals as in the foreground: what runs these tests may have them ignored."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_after_the_chunk(tmp_path, number):
    before = signal.getsignal(number)
    dataset = Slow(40, at={9: lambda: signal.raise_signal(number)})
    with pytest.raises(
        runs.Interrupted, match=rf"{number.name}: stopped, all votes are safe in .*"
    ) as stopped:
        certified(tmp_path, dataset)
    assert stopped.value.signal == number
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before
    assert len(votes(tmp_path)) == 16  # one group
    certified(tmp_path, Slow(40))
    certified(tmp_path / "whole", Slow(40))
    assert votes(tmp_path) == votes(tmp_path / "whole")


@pytest.mark.usefixtures("listening")
def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    certified(tmp_path, Slow(40, at={9: lambda: signal.raise_signal(signal.SIGINT)}))
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert len(votes(tmp_path)) == 40


@pytest.mark.usefixtures("listening")
def test_a_second_interrupt_acts_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        certified(tmp_path, Slow(40, at={20: twice}))
    assert not isinstance(stopped.value, runs.Interrupted)
    assert len(votes(tmp_path)) == 16


def test_a_finished_run_is_left_alone(tmp_path):
    certificate, _ = certified(tmp_path, Slow(20))
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    times = {path: path.stat().st_mtime_ns for path in files}
    dataset = Slow(20)
    with pytest.MonkeyPatch.context() as patch:  # no vote is counted
        patch.setattr(GaussianSmoother, "count", None)
        again, labels = certified(tmp_path, dataset)
    assert dataset.read == [0, *range(19, 0, -2)]  # some, to see that they are the same
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert {path: path.stat().st_mtime_ns for path in files} == times
    assert torch.equal(again.radius, certificate.radius)
    assert labels.tolist() == [i % 4 for i in range(20)]


def test_only_what_is_missing_is_read(tmp_path):
    certified(tmp_path, Slow(20), n=2000)
    expected = votes(tmp_path)
    path = tmp_path / "votes-00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7] + lines[8:]))
    dataset = Slow(20)
    certified(tmp_path, dataset, n=2000)
    assert dataset.read == [
        0,
        *range(19, 8, -2),
        6,
        4,
        2,
        0,
        5,
        6,
        7,
        8,
        9,
    ]  # some again, the group of what is missing
    assert votes(tmp_path) == expected
    assert len(read_shard(path)[0]) == 20  # of which only that is written


@pytest.mark.parametrize("radius", [None, 0.1])
def test_the_number_of_votes_is_the_one_of_the_smoother_unless_it_is_said(tmp_path, radius):
    """A sequential run gives up an input after that many."""
    certificate, _ = runs.certify(SMOOTHER, data()[:2], out=tmp_path, radius=radius)
    assert Settings.read(tmp_path).n == 100_000
    direct = SMOOTHER.certify(X[:2]) if radius is None else SMOOTHER.certify_at(X[:2], radius)
    assert torch.equal(certificate.n, direct.n)


def test_another_run_is_refused(tmp_path):
    certified(tmp_path)
    other = GaussianSmoother(MODELS["threshold"], 0.5, 4)
    for changes, words in (
        ({"n": 151}, "n is 150 there, got 151"),
        ({"n0": 21}, "n0 is 20 there, got 21"),
        ({"alpha": 0.01}, "alpha is 0.001 there, got 0.01"),
        ({"seed": 1}, "seed is 0 there, got 1"),
        ({"radius": 0.1}, "radius is None there, got 0.1"),
        ({"skip": 2}, "skip is 1 there, got 2"),
        ({"limit": 5}, "limit is None there, got 5"),
        (
            {"smoother": GaussianSmoother(MODELS["staircase"], 0.25, 4)},
            r"law is Gaussian\(sigma=0.5\) there",
        ),
        (
            {"smoother": GaussianSmoother(MODELS["staircase"], 0.5, 5)},
            "num_classes is 4 there, got 5",
        ),
        ({"smoother": other}, "model is '"),
        ({"dataset": data()[:5]}, "inputs is 12 there, got 5"),
        ({"dataset": [(X[1], 0), *data()[1:]]}, "data is '"),
        ({"dataset": [(X[0].double(), 0), *data()[1:]]}, "dtype is 'float32' there, got 'float64'"),
        (
            {"dataset": [(X[0].expand(2), 0), *data()[1:]]},
            r"input_shape is \(1,\) there, got \(2,\)",
        ),
    ):
        content = (tmp_path / "votes-00000.jsonl").read_bytes()
        with pytest.raises(ValueError, match=f"holds another run: {words}"):
            certified(tmp_path, **changes)
        assert (tmp_path / "votes-00000.jsonl").read_bytes() == content
    certified(tmp_path, batch_size=7, world_size=3)  # how it is computed is no setting


@pytest.mark.parametrize("kind", [list, iter], ids=["by index", "as a stream"])
def test_later_data_that_changed_are_refused(tmp_path, kind):
    """The first input is the same; of the others the sign was turned, or the labels are new."""
    (x, y), *others = data()
    certified(tmp_path, kind(data()[:]), n=5000)  # two inputs to a group
    path = tmp_path / "votes-00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in (12, 8, 7, 2):
        content = b"".join(lines[:kept])
        for changed in ([(-z, t) for z, t in others], [(z, (t + 1) % 4) for z, t in others]):
            path.write_bytes(content)
            with pytest.raises(
                ValueError, match=r"dataset is not the one of this run: input \d+ is another than"
            ):
                certified(tmp_path, kind([(x, y), *changed]), n=5000)
            assert path.read_bytes() == content
        certified(tmp_path, kind(data()), n=5000)
        assert path.read_bytes().splitlines()[:kept] == content.splitlines()
        assert len(votes(tmp_path)) == 12


def test_a_model_that_differs_in_a_plain_attribute_is_another(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, std):
            super().__init__()
            self.std, self.linear = torch.tensor(std), nn.Linear(1, 4)

        def forward(self, x):
            return self.linear(x / self.std)

    def smoother(std):
        torch.manual_seed(0)
        return GaussianSmoother(Scaled(std), 0.5, 4)

    certified(tmp_path, smoother=smoother(0.1), limit=6)
    certified(tmp_path, smoother=smoother(0.1), limit=6)
    with pytest.raises(ValueError, match="holds another run: model is"):
        certified(tmp_path, smoother=smoother(10.0), limit=6)


def test_a_mistake_leaves_no_run_behind(tmp_path):
    for changes, words in (
        ({"n": 5}, "n must be at least 10"),
        ({"alpha": 2.0}, "alpha must lie in"),
        ({"dataset": [(torch.tensor([float("nan")]), 0)]}, "x must be finite"),
        ({"smoother": GaussianSmoother(MODELS["staircase"], 0.5, 9)}, "num_classes=9"),
        ({"radius": 99.0}, "radius must be one that"),
    ):
        with pytest.raises(ValueError, match=words):
            certified(tmp_path, **changes)
    assert not (tmp_path / "run.json").exists()
    certified(tmp_path)


def test_the_same_votes_for_any_number_of_ranks(tmp_path):
    settings = {"smoother": GaussianSmoother(Neighbours(), 0.5, 4, spot_check=False), "n": 5000}
    certified(tmp_path / "one", Slow(30), **settings)
    for world in (2, 3, 40):
        out = tmp_path / str(world)
        for rank in reversed(range(world)):
            certificate, _ = certified(out, Slow(30), rank=rank, world_size=world, **settings)
        assert len(certificate) == 30
        assert votes(out) == votes(tmp_path / "one")
        assert (
            sum(len(read_shard(path)[0]) for path in out.glob("votes-*")) == 30
        )  # nothing was done twice
    empty, labels = certified(tmp_path / "idle", Slow(1), rank=1, world_size=2)
    assert (len(empty), labels.tolist()) == (0, [])


@fork_is_quick_here
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_lost_rank_is_finished_by_any_number(tmp_path, ranks):
    certified(tmp_path / "one", Slow(30), n=5000)
    out = tmp_path / "two"
    certified(out, Slow(30), rank=0, world_size=2, n=5000)
    kill = {index: lambda: os.kill(os.getpid(), signal.SIGKILL) for index in range(20, 30)}
    with child(lambda: certified(out, Slow(30, at=kill), rank=1, world_size=2, n=5000)) as pid:
        assert ended(pid) == -signal.SIGKILL
    assert 15 < len(votes(out)) < 30
    for rank in range(ranks):
        certified(out, Slow(30), rank=rank, world_size=ranks, n=5000)
    assert votes(out) == votes(tmp_path / "one")


def test_ranks_share_evenly_and_so_they_do_with_what_one_has_left():
    def shares(positions, world):
        return [sum(owner(p, world) == rank for p in positions) for rank in range(world)]

    for before in range(1, 17):
        assert set(shares(range(before * 50), before)) == {50}
        left = [p for p in range(2000) if owner(p, before) == 0]
        for now in set(range(2, 9)) - {before}:
            assert max(shares(left, now)) <= 2 * len(left) / now
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\), got 2"):
        certified("unused", rank=2, world_size=2)


def test_data_sets_of_all_kinds_give_the_same_votes(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(data())

    kinds = [
        data(),
        iter(data()),
        TensorDataset(X, torch.tensor(LABELS)),
        (X, torch.tensor(LABELS)),
        Stream(),
        DataLoader(data(), batch_size=None),
        [(x.tolist(), y) for x, y in data()],
    ]
    for i, dataset in enumerate(kinds):
        certified(tmp_path / str(i), dataset, skip=2, limit=4)
        assert votes(tmp_path / str(i)) == votes(tmp_path / "0")
    assert [ballot["index"] for _, _, ballot in votes(tmp_path / "0")] == [[0], [2], [4], [6]]


def test_a_data_set_may_write_every_input_into_the_same_memory(tmp_path):
    """Votes of a group were those of its last input, under all of its numbers."""

    class Reused:
        def __init__(self, kind):
            self.buffer, self.kind = torch.zeros(X.shape[1:]), kind

        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            if index >= len(self):
                raise IndexError(index)
            self.buffer.copy_(X[index])
            return self.kind(self.buffer), LABELS[index]

    certified(tmp_path / "own", limit=6)
    for i, kind in enumerate((lambda x: x, torch.Tensor.numpy)):
        certified(tmp_path / f"{i}", Reused(kind), limit=6)
        certified(tmp_path / f"{i} in turn", iter(Reused(kind)), limit=6)
        for end in ("", " in turn"):
            assert votes(tmp_path / f"{i}{end}") == votes(tmp_path / "own")


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        ([], ValueError, "dataset must hold at least one input, got 0"),
        (iter(()), ValueError, "dataset must hold at least one input, got 0"),
        (3, TypeError, r"dataset must yield pairs \(x, y\), got 3"),
        ([X[0]], TypeError, r"dataset must yield pairs \(x, y\), got Tensor"),
        ([(X[0], 0.5)], ValueError, "y must be whole, got 0.5"),
        ([(X[0], -1)], ValueError, "y must be a count of at least 0"),
        ([(torch.tensor([1]), 0)], TypeError, "x must have a floating point dtype"),
        (
            [(X[0], 0), (X[:2, 0], 0)],
            ValueError,
            r"input 1: it has shape \(2,\), the first",
        ),
        (
            DataLoader(data(), batch_size=4),
            TypeError,
            "one input and its label at a time, got 4 labels; of a DataLoad",
        ),
        (
            (X, torch.tensor(LABELS[:5])),
            ValueError,
            r"y must hold a label for each x, got shapes \(5,\) and \(12, 1\)",
        ),
    ],
)
def test_bad_data_are_named(tmp_path, dataset, error, words):
    with pytest.raises(error, match=words):
        certified(tmp_path, dataset)


def test_inputs_follow_the_type_of_the_model(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 4)
    seen = set()
    model.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        seen.clear()
        out = tmp_path / str(dtype)
        certified(out, smoother=GaussianSmoother(model.to(dtype), 0.5, 4))
        assert seen == {dtype}
        assert Settings.read(out).dtype == str(dtype).removeprefix("torch.")


class Coarse(nn.Module):
    """The sum of 1024 coordinates against a half each, from bfloat16 inputs without any other
    rounding."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(0.5, dtype=torch.bfloat16))

    def forward(self, x):
        assert x.dtype == torch.bfloat16
        margin = (x.float() - self.centre.float()).sum(
            dim=1
        ) / 32  # of slope 1: the margin is the distance
        return torch.stack([margin, -margin], dim=1)


def test_a_low_precision_model_is_certified_at_the_inputs_of_the_data_set(tmp_path):
    """Halfway between two bfloat16 numbers the input would be rounded to, its exact radius is half
    of theirs."""
    exact = 32 * (2.0**-9 + 1e-6)
    x = torch.full((1024,), 0.5 + 2.0**-9 + 1e-6)  # rounded: 0.5 + 2 ** -8
    smoother = GaussianSmoother(Coarse(), 0.25, 2)
    certificate, _ = certified(tmp_path, [(x, 0)], smoother, n0=500, n=20_000)
    assert Settings.read(tmp_path).dtype == "bfloat16"
    assert exact / 2 < float(certificate.radius) <= exact
    assert torch.equal(smoother.certify(x[None], n0=500, n=20_000).counts, certificate.counts)


def test_progress_says_how_far_and_how_good(tmp_path, capsys):
    certificate, labels = certified(tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "input/s" in shown
    assert (
        f"certified accuracy={floored(runs.certified_accuracy(certificate, labels, 0.0), 3)}"
        in shown
    )
    assert sys.stderr.isatty() or "\n" not in shown.strip()
    certified(tmp_path / "unasked")
    assert capsys.readouterr().err == ""
