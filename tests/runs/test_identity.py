"""A run that is resumed is the same run: its model, its machine, its inputs."""

import multiprocessing

import pytest
import torch
from callables import LABELS, X, data
from models import MODELS
from torch import nn

from rsfl import runs
from rsfl.runs.settings import Settings
from rsfl.smooth import Certificate, GaussianSmoother


class Held:
    def __init__(self, sign):
        self.sign = sign


class Model(nn.Module):
    """A classifier with weights in places where they are easily missed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layers, self.held = nn.Linear(1, 8), [nn.Linear(8, 4)], Held(1.0)
        self.table = SHARED

    def forward(self, x):
        return scaled(self.layers[0](self.first(x).relu()) * self.held.sign)


SHARED = {"scale": 1.0}


def scaled(logits):
    return logits * SHARED["scale"]


def hooked(model):
    model.register_forward_hook(lambda module, x, y: -y)


def hooked_everywhere(model):
    return nn.modules.module.register_module_forward_hook(lambda module, x, y: y + 0).remove


def weight_in_a_list(model):
    model.layers[0].weight.data[0, 0] += 1


def attribute(model):
    model.held.sign = -1.0


def global_value(model):
    SHARED["scale"] = 2.0
    return lambda: SHARED.update(scale=1.0)


def other_code(model):
    model.__class__ = type("Model", (Model,), {"forward": lambda self, x: -Model.forward(self, x)})


def autocast(model):
    context = torch.autocast("cpu", dtype=torch.bfloat16)
    context.__enter__()
    return lambda: context.__exit__(None, None, None)


def capability(model):
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    return patch.undo


CHANGES = {
    hooked: "differs in code, answers",
    hooked_everywhere: "differs in code",
    weight_in_a_list: "differs in attributes",
    attribute: "differs in attributes, answers",
    global_value: "differs in attributes, answers",
    other_code: "differs in code, answers",
    autocast: "autocast is '' there, got 'bfloat16'",
    capability: "machine is .* there, got 'AVX2'",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_since_is_named(tmp_path, change):
    model = Model()

    def certified():
        smoother = GaussianSmoother(model, 0.5, 4)
        return runs.certify(smoother, data(), out=tmp_path, n0=20, n=150)

    certified()
    certified()
    undo = change(model)
    try:
        with pytest.raises(ValueError, match=f"holds another run: .*{CHANGES[change]}"):
            certified()
    finally:
        if undo is not None:
            undo()


class Closed(nn.Module):
    """Computes with a name of its module, which no fingerprint follows but by the answers."""

    def forward(self, x):
        return torch.nn.functional.one_hot((x[:, 0] > EDGE).long(), 4).double()


EDGE = 0.5


def test_code_that_is_called_elsewhere_shows_in_the_answers(tmp_path, monkeypatch):
    smoother = GaussianSmoother(Closed(), 0.5, 4)
    x = [(torch.tensor([0.7]), 1), *data()]
    runs.certify(smoother, x, out=tmp_path, n=50)
    monkeypatch.setattr(f"{__name__}.EDGE", 0.9)
    monkeypatch.setitem(globals(), "EDGE", 0.9)
    with pytest.raises(ValueError, match="its answers alone: code that it calls, or the number of"):
        runs.certify(smoother, x, out=tmp_path, n=50)


SMOOTHER = GaussianSmoother(MODELS["staircase"], 0.5, 4)


def test_labels_are_classes(tmp_path):
    wrong = [*data()[:3], (X[3], 4)]
    with pytest.raises(ValueError, match=r"input 3: y must be a class in \[0, 4\), got 4: labels"):
        runs.certify(SMOOTHER, wrong, out=tmp_path, n=5000)
    certificate, labels = runs.load(tmp_path)  # what was done before stays
    assert labels.tolist() == LABELS[: len(certificate)]
    assert len(certificate) == 2


BAD = {
    "nan": (torch.tensor([float("nan")]), 0, "x must be finite, got nan"),
    "label": (torch.tensor([0.5]), 9, r"y must be a class in \[0, 4\), got 9"),
    "shape": (torch.tensor([0.5, 0.5]), 0, r"it has shape \(2,\), the first one \(1,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_input_that_cannot_be_certified_is_named_or_recorded(tmp_path, name):
    x, label, words = BAD[name]
    dataset = data()
    dataset[7] = x, label
    with pytest.raises(ValueError, match=f"input 7: {words}"):
        runs.certify(SMOOTHER, dataset, out=tmp_path, n=200)
    for _ in range(2):  # and once recorded it is done
        certificate, labels = runs.certify(SMOOTHER, dataset, out=tmp_path, n=200, on_bad="record")
    assert len(certificate) == 12
    assert certificate.n.tolist() == [200] * 7 + [0] + [200] * 4
    bad = certificate[7]
    assert (bad.label.tolist(), bad.radius.tolist()) == ([-1], [0.0])
    assert (bad.p_lower.tolist(), bad.p_upper.tolist()) == ([0.0], [1.0])
    assert runs.load(tmp_path, runner_up="bounded")[0].p_upper[7] == 1
    why = runs.Directory.open(tmp_path).records()[7].impossible
    assert words.split(",")[0].split("\\")[0] in why
    others = [i for i in range(12) if i != 7]
    direct = SMOOTHER.certify(X[others], n=200, index=others)
    assert torch.equal(certificate.radius[others], direct.radius)
    share = runs.certified_accuracy(certificate, labels, 0.0)
    assert share == float((direct.label == torch.tensor(LABELS)[others]).sum()) / 12


def test_a_sequential_run_records_what_it_cannot_certify(tmp_path):
    dataset = data()
    dataset[3] = torch.tensor([float("inf")]), 0
    certificate, _ = runs.certify(
        SMOOTHER, dataset, out=tmp_path, n=2000, radius=0.1, on_bad="record"
    )
    assert certificate.abstained[3]
    assert len(certificate) == 12


def test_what_is_no_smoother_and_no_data_is_told_what_was_expected(tmp_path):
    images = pytest.importorskip("PIL.Image")
    picture = images.new("RGB", (4, 4))
    for call, words in (
        (
            lambda: runs.certify(MODELS["staircase"], data(), out=tmp_path),
            r"smoother must be a smoother, such as smooth.GaussianSmoother\(model, .*got Staircase",
        ),
        (
            lambda: runs.certify(SMOOTHER, {"x": X, "y": LABELS}, out=tmp_path),
            r"dataset must yield pairs \(x, y\), got a mapping of \['x', 'y'\]: give the pair",
        ),
        (
            lambda: runs.certify(SMOOTHER, [{"x": X[0], "y": 0}], out=tmp_path),
            r"got a mapping of \['x', 'y'\]",
        ),
        (
            lambda: runs.certify(SMOOTHER, [(X[0], 0, "name")], out=tmp_path),
            r"got 3 entries: give the two that are input and label",
        ),
        (
            lambda: runs.certify(SMOOTHER, [(picture, 0)], out=tmp_path),
            r"x must be a tensor, got a PIL image: .*ToTensor",
        ),
        (lambda: SMOOTHER.certify(picture), "x must be a torch.Tensor, got a PIL image: "),
        (
            lambda: runs.plot_certified_accuracy(SMOOTHER.certify(X, n=50)),
            r"curves must be a mapping \{name: \(certificate, labels\)\}, got Certificate",
        ),
        (
            lambda: runs.envelope(SMOOTHER.certify(X, n=50), 0.0),
            r"curves must be a mapping \{name: \(certificate, labels\)\}, got Certificate",
        ),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_inputs_decide_what_is_one_test_set(tmp_path):
    labels = torch.tensor(LABELS)
    one = SMOOTHER.certify(X, n=50)
    assert runs.envelope({"a": (one, labels), "b": (one, labels)}, 0.0) >= 0
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = SMOOTHER.certify(X[order], n=50)
    assert runs.envelope({"a": (one, labels), "b": (shuffled, labels[order])}, 0.0) >= 0
    others = SMOOTHER.certify(X + 1 / 64, n=50)
    with pytest.raises(
        ValueError, match=r"one test set, got others, of \[12, 12\] inputs, whose i"
    ):
        runs.envelope({"a": (one, labels), "b": (others, labels)}, 0.0)
    with pytest.raises(ValueError, match="one test set"):  # a label beside another input
        runs.envelope({"a": (one, labels), "b": (one, labels.roll(1))}, 0.0)
    logged, true = runs.certify(SMOOTHER, data(), out=tmp_path / "run", n=50)
    assert runs.envelope({"a": (one, labels), "b": (logged, true)}, 0.0) >= 0
    runs.write_tsv(tmp_path / "run.tsv", one, LABELS)
    said, told = runs.read_tsv(tmp_path / "run.tsv")
    assert runs.envelope({"a": (one, labels), "b": (said, told)}, 0.0) >= 0
    runs.write_tsv(tmp_path / "run.tsv", one, LABELS[::-1])
    said, told = runs.read_tsv(tmp_path / "run.tsv")
    with pytest.raises(ValueError, match="whose labels differ by their index"):
        runs.envelope({"a": (one, labels), "b": (said, told)}, 0.0)


def saved(path):
    SMOOTHER.certify(X, n=50).save(path)


def test_certificates_are_saved_to_one_path_by_many_processes(tmp_path):
    path = tmp_path / "certificate.json"
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=saved, args=(path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert torch.equal(Certificate.load(path).radius, SMOOTHER.certify(X, n=50).radius)
    assert [left.name for left in tmp_path.iterdir()] == ["certificate.json"]


def test_the_settings_say_what_a_ballot_was_cast_under(tmp_path):
    certificate, _ = runs.certify(SMOOTHER, data(), out=tmp_path, n=50)
    settings = Settings.read(tmp_path)
    assert certificate.model == settings.model.whole
    assert settings.machine == torch.backends.cpu.get_cpu_capability()
    assert certificate.spot_checked
    certificate.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json").model == settings.model.whole
