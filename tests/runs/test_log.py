"""A log is read back as a prefix of what was written, or not at all."""

import dataclasses
import json
import threading

import numpy as np
import pytest
import torch
from callables import LABELS, X, data
from hypothesis import given
from hypothesis import strategies as st
from models import MODELS

from rsfl import noise, runs
from rsfl._fingerprint import Fingerprint, model_fingerprint
from rsfl._laws import known
from rsfl.runs.log import Directory, Record, read_shard
from rsfl.runs.report import as_text, read_runs
from rsfl.runs.settings import Settings
from rsfl.smooth import GaussianSmoother, ParameterSmoother, Sequential, Smoother

MODEL = MODELS["staircase"]
SMOOTHER = GaussianSmoother(MODEL, 0.5, 4)

HEADER = {
    **{"law": {"name": "Gaussian", "sigma": 0.5}, "rule": {"name": "fixed"}},
    **{"measure": {"norm": "l2", "space": "input", "unit": "input units"}, "classes": 1000},
    **{"dim": 1, "seed": 0, "model": "", "spot_checked": True, "condition": ""},
}


def record(index, counts, n, *, label=1, selection=None, n0=10, run="run", seconds=0.25, data=""):
    """A line as a run would write it."""
    votes = [{str(c): k for c, k in one.items()} for one in (selection or {1: n0}, counts)]
    columns = {"index": [index], "input": [data], "n0": [n0], "selection": votes[:1], "n": [n]}
    return Record(run, label, seconds, "", {**HEADER, **columns, "counts": votes[1:]})


counted = st.dictionaries(st.integers(0, 999), st.integers(1, 10**6), max_size=5)
a_record = st.builds(
    record,
    run=st.text("0123456789abcdef", min_size=16, max_size=16),
    data=st.text("0123456789abcdef", min_size=16, max_size=16),
    index=st.integers(0, 10**6),
    label=st.integers(0, 999),
    n0=st.integers(1, 1000),
    n=st.integers(1, 10**6),
    selection=counted,
    counts=counted,
    seconds=st.floats(0, 1e6),
)


@given(st.lists(a_record, max_size=6), st.data())
def test_any_truncation_reads_back_as_a_prefix(tmp_path_factory, written, draw):
    path = tmp_path_factory.mktemp("log") / "votes-00000.jsonl"
    lines = [record.line() for record in written]
    content = b"".join(lines)
    cut = draw.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    found, end = read_shard(path)
    whole = [len(b"".join(lines[: i + 1])) <= cut for i in range(len(lines))]
    assert found == written[: sum(whole)]
    assert end == len(b"".join(lines[: sum(whole)]))


def test_every_truncation_of_one_log(tmp_path):
    path = tmp_path / "votes-00000.jsonl"
    written = [record(i, {0: 2, 1: 27}, 30) for i in (3, 4)]
    content = b"".join(record.line() for record in written)
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        found, _ = read_shard(path)
        assert found == written[: content[:cut].count(b"\n")]
        with Directory(tmp_path, None).recording(0) as append:  # which drops what was torn
            append(written[len(found) :])
        assert path.read_bytes() == content


@given(st.lists(a_record, min_size=1, max_size=4), st.data())
def test_no_changed_byte_goes_unseen(tmp_path_factory, written, draw):
    path = tmp_path_factory.mktemp("log") / "votes-00000.jsonl"
    content = bytearray(b"".join(record.line() for record in written))
    place = draw.draw(st.integers(0, len(content) - 1))
    content[place] ^= draw.draw(st.integers(1, 255))
    path.write_bytes(content)
    if place == len(content) - 1:  # the last line break: the line was torn
        assert read_shard(path)[0] == written[:-1]
        return
    line = content[:place].count(b"\n") + 1
    with pytest.raises(ValueError, match=rf"votes-00000.jsonl, line {line}: "):
        read_shard(path)


@pytest.mark.parametrize(
    "garbage", [b"\n", b"{}\n", b"\x00\x00\n", b"idx\tlabel\n", b'{"index":3}\n', b"\xff\n"]
)
def test_garbage_lines_are_named(tmp_path, garbage):
    path = tmp_path / "votes-00000.jsonl"
    line = record(0, {1: 30}, 30).line()
    path.write_bytes(line + garbage + line)
    with pytest.raises(
        ValueError, match=r"votes-00000.jsonl, line 2: (it is no ballot|'utf-8'|Expecting)"
    ):
        read_shard(path)


def certified(out, **changes):
    given_ = {"n0": 20, "n": 200, **changes}
    return runs.certify(SMOOTHER, data(), out=out, **given_)


def test_a_log_gives_the_certificate_that_the_smoother_gives(tmp_path):
    certificate, labels = certified(tmp_path)
    direct = SMOOTHER.certify(X, n0=20, n=200)
    again, labels_again = runs.load(tmp_path)
    for one in (certificate, again):
        for name, value in direct.to_dict().items():
            assert (one.to_dict()[name] == value) is True or (one.to_dict()[name] == value).all(), (
                name
            )
    assert labels.tolist() == labels_again.tolist() == LABELS


def test_other_bounds_of_the_same_votes(tmp_path):
    certified(tmp_path)
    for changes in ({"alpha": 0.05}, {"runner_up": "bounded"}, {"confidence": "hoeffding"}):
        certificate, _ = runs.load(tmp_path, **changes)
        assert torch.equal(certificate.radius, SMOOTHER.certify(X, n0=20, n=200, **changes).radius)
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\), got 1.5"):
        runs.load(tmp_path, alpha=1.5)
    # one bound each at half of alpha is never better than both at once
    complement, bounded = (
        runs.load(tmp_path, alpha=0.025)[0],
        runs.load(tmp_path, alpha=0.05, runner_up="bounded")[0],
    )
    assert bool((bounded.radius >= complement.radius).all())


def test_sequential_votes_are_read_by_their_own_test_only(tmp_path):
    certificate, _ = certified(tmp_path, radius=0.1, n=3000)
    direct = SMOOTHER.certify_at(X, 0.1, n0=20, n_max=3000)
    for name in ("label", "radius", "p_lower", "counts", "n"):
        assert torch.equal(getattr(certificate, name), getattr(direct, name))
    assert certificate.assumptions == direct.assumptions
    assert 0 < int(certificate.abstained.sum()) < len(X)
    assert runs.load(tmp_path, alpha=0.001)[0].alpha == 0.001
    for changes in ({"alpha": 0.01}, {"runner_up": "bounded"}, {"confidence": "hoeffding"}):
        with pytest.raises(
            ValueError, match=r"a sequential test stopped these votes at radius 0\.1 and"
        ):
            runs.load(tmp_path, **changes)
    settings = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(
        json.dumps({**settings, "radius": None})
    )  # to read them as if n were fixed
    with pytest.raises(ValueError, match="line 1: votes of the run"):
        runs.load(tmp_path)
    record = read_shard(tmp_path / "votes-00000.jsonl")[0][0]
    fixed = Settings.read(tmp_path)
    with pytest.raises(ValueError, match=r"votes stopped by Sequential.* in a run of None"):
        dataclasses.replace(record, run=fixed.identity).check(fixed)


def rewrite(path, *, votes=None, **changes):
    """The first record of a file, changed and sealed again, appended to another rank's."""
    found = read_shard(path)[0][0]
    found = dataclasses.replace(found, ballot={**found.ballot, **(votes or {})}, **changes)
    (path.parent / "votes-00007.jsonl").write_bytes(found.line())


def test_shards_are_merged_and_contradictions_named(tmp_path):
    certificate, _ = certified(tmp_path)
    path = tmp_path / "votes-00000.jsonl"
    rewrite(path, seconds=9.0)
    assert torch.equal(runs.load(tmp_path)[0].counts, certificate.counts)
    for changes, words in (
        ({"label": 3}, "other votes for input 0 than before"),
        ({"votes": {"counts": [{"2": 200}]}}, "other votes for input 0 than before"),
        ({"votes": {"counts": [{"2": 201}]}}, "201 votes of 200 are accounted for"),
        ({"votes": {"n0": [21]}}, "21 and 200 votes in a run of 20 and 200"),
        ({"votes": {"counts": [{"4": 200}]}}, "a vote for 4, none of the 4 classes"),
        ({"votes": {"counts": [{"2": -1}]}}, "-1 is no number of votes"),
        ({"votes": {"seed": 5}}, "seed is 5, in a run of 0"),
    ):
        rewrite(path, **changes)
        with pytest.raises(ValueError, match=f"votes-00007.jsonl, line 1: {words}"):
            runs.load(tmp_path)


def test_votes_of_another_run_are_refused_however_alike(tmp_path):
    """Machines that share no disk: what was meant to be one run was two, and the votes look
    alike."""
    torch.manual_seed(0)
    runs_ = {
        "ours": SMOOTHER,
        "sigma": GaussianSmoother(MODEL, 0.1, 4),
        "weights": GaussianSmoother(torch.nn.Linear(1, 4), 0.5, 4),
        "seed": SMOOTHER,
    }
    for rank, (name, smoother) in enumerate(runs_.items()):
        seed = 7 * (name == "seed")
        runs.certify(
            smoother,
            data(),
            out=tmp_path / name,
            n0=20,
            n=5000,
            seed=seed,
            rank=min(rank, 1),
            world_size=2,
            progress=False,
        )
    (foreign,) = {Settings.read(tmp_path / "ours").identity}
    for name in ("sigma", "weights", "seed"):
        content = (tmp_path / name / "votes-00001.jsonl").read_bytes()
        (tmp_path / "ours" / "votes-00001.jsonl").write_bytes(content)
        with pytest.raises(
            ValueError,
            match=rf"votes-00001\.jsonl, line 1: votes of the run .* in the run {foreign}",
        ):
            runs.load(tmp_path / "ours")
    runs.certify(
        SMOOTHER, data(), out=tmp_path / "twin", n0=20, n=5000, rank=1, world_size=2, progress=False
    )
    content = (tmp_path / "twin" / "votes-00001.jsonl").read_bytes()
    (tmp_path / "ours" / "votes-00001.jsonl").write_bytes(content)
    assert len(runs.load(tmp_path / "ours")[0]) == len(X)


def test_lines_of_another_run_under_the_name_of_this_one_are_refused(tmp_path):
    """All of them, so that no two lines disagree: only the settings tell."""
    runs_ = {
        "ours": (SMOOTHER, {}),
        "law": (GaussianSmoother(MODEL, 5.0, 4), {}),
        "model": (GaussianSmoother(torch.nn.Linear(1, 4), 0.5, 4), {}),
        "seed": (SMOOTHER, {"seed": 7}),
        "spot_checked": (GaussianSmoother(MODEL, 0.5, 4, spot_check=False), {}),
    }
    for name, (smoother, more) in runs_.items():
        out = tmp_path / name
        runs.certify(smoother, data(), out=out, n0=20, n=200, limit=6, progress=False, **more)
    ours = Settings.read(tmp_path / "ours")
    path = tmp_path / "ours" / "votes-00000.jsonl"
    for name in [*runs_][1:]:
        lines = read_shard(tmp_path / name / "votes-00000.jsonl")[0]
        path.write_bytes(
            b"".join(dataclasses.replace(one, run=ours.identity).line() for one in lines)
        )
        with pytest.raises(ValueError, match=f"line 1: {name} is .*, in a run of"):
            runs.load(tmp_path / "ours")


def test_inputs_that_are_none_of_a_run_are_refused(tmp_path):
    runs.certify(SMOOTHER, data(), out=tmp_path, n0=20, n=200, skip=2, limit=3, progress=False)
    assert runs.load(tmp_path)[0].index.tolist() == [0, 2, 4]
    for index in (1, 6):
        rewrite(tmp_path / "votes-00000.jsonl", votes={"index": [index]})
        with pytest.raises(ValueError, match=f"line 1: input {index} is none of this run"):
            runs.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("law", {"name": "Gaussian", "sigma": 5.0}), ("alpha", 0.5), ("dim", 2), ("num_classes", 5)],
)
def test_settings_that_were_edited_fit_no_votes(tmp_path, name, value):
    certified(tmp_path)
    settings = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(ValueError, match=r"votes-00000\.jsonl, line 1: votes of the run"):
        runs.load(tmp_path)


def test_files_of_the_first_format_are_refused_by_its_number(tmp_path):
    certified(tmp_path)
    line = read_shard(tmp_path / "votes-00000.jsonl")[0][0].line()
    (tmp_path / "votes-00001.jsonl").write_bytes(line.replace(b'"format": 1', b'"format": 9'))
    words = "it is a ballot of format 9, not a ballot of 1"
    with pytest.raises(ValueError, match=rf"votes-00001\.jsonl, line 1: {words}"):
        runs.load(tmp_path)
    settings = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**settings, "format": 1}))
    with pytest.raises(
        ValueError, match=r"run\.json cannot be read .*: format is 1, this version reads 3"
    ):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"n": np.int64(200)},
        {"n": 200.0, "limit": 4.0},
        {"n0": np.int32(20), "seed": np.int64(3), "limit": np.int64(4), "skip": np.int16(2)},
        {"alpha": np.float32(0.001)},
        {"radius": np.float32(0.1), "n": np.int64(3000)},
    ],
)
def test_numbers_of_any_type_are_settings(tmp_path, changes):
    certificate, _ = certified(tmp_path, **changes)
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in changes.items()
    }
    assert torch.equal(certified(tmp_path, **plain)[0].radius, certificate.radius)
    assert all(
        type(value) in (bool, int, float, str, tuple, type(None))
        for value in vars(Settings.read(tmp_path)).values()
        if not isinstance(value, (noise.Law, Fingerprint, Sequential))
    )


def test_a_law_of_the_same_name_is_another_law(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Gaussian(noise.Gaussian):
        """Its radii are in another norm."""

        norm = "linf"

        def radius(self, p_a, p_b=None, *, dim=1):
            return super().radius(p_a, p_b) / dim**0.5

    def certify(law, out):
        return runs.certify(Smoother(MODEL, law, 4), data(), out=out, n=200, progress=False)[0]

    own = certify(Gaussian(0.5), tmp_path / "own")
    assert (own.norm, runs.load(tmp_path / "own")[0].norm) == ("linf", "linf")
    assert own.law == runs.load(tmp_path / "own")[0].law
    certify(noise.Gaussian(0.5), tmp_path / "ours")
    assert type(runs.load(tmp_path / "ours")[0].law) is noise.Gaussian
    with pytest.raises(ValueError, match="holds another run: law is"):
        certify(Gaussian(0.5), tmp_path / "ours")
    names = {"__module__": Gaussian.__module__, "__qualname__": Gaussian.__qualname__}
    twin = dataclasses.dataclass(frozen=True)(type("Gaussian", (noise.Gaussian,), names))
    assert twin(0.5) != Gaussian(0.5)
    with pytest.raises(ValueError, match=r"law '.*Gaussian' is defined 2 times"):
        runs.load(tmp_path / "own")
    settings = json.loads((tmp_path / "own/run.json").read_text())
    (tmp_path / "own/run.json").write_text(
        json.dumps({**settings, "law": {"name": "mine:Gaussian", "sigma": 0.5}})
    )
    with pytest.raises(
        ValueError, match=r"law 'mine:Gaussian' is not one of .*; import the module"
    ):
        runs.load(tmp_path / "own")


def test_directories_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no run\.json"):
        runs.load(tmp_path)
    for text in ("", "{}", '{"format": 2}', '{"format": 3}', '{"format": 4}', "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json cannot be read as the settings of a run"):
            runs.load(tmp_path)


@pytest.mark.parametrize("law", [law for law in known() if law.space != "parameters"])
def test_every_law_survives_the_round_trip(tmp_path, law):
    given_ = {
        f.name: 0.25 for f in dataclasses.fields(law) if f.name in ("sigma", "scale", "half_width")
    }
    law = law(**given_, **({"bases": 2} if law.__name__ == "DCT" else {}))
    images = [(torch.full((1, 4, 4), 0.2), 1)]
    smoother = Smoother(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), law, 3)
    certificate, _ = runs.certify(smoother, images, out=tmp_path, n0=5, n=20, alpha=0.5)
    assert certificate.law == runs.load(tmp_path)[0].law == law
    assert Settings.read(tmp_path).law == law


def test_the_radius_reads_the_dimension_of_the_noise(tmp_path):
    smoother = Smoother(MODEL, noise.RoundedGaussian(0.25), 4)
    grid = (torch.arange(4)[:, None] / 255).float()
    certificate, _ = runs.certify(
        smoother, list(zip(grid, [0] * 4, strict=True)), out=tmp_path, n=200
    )
    assert torch.equal(certificate.radius, smoother.certify(grid, n=200).radius)


def test_noise_on_parameters(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 4)
    smoother = ParameterSmoother(model, 0.3, 4, parameters=["bias"])
    certificate, labels = runs.certify(smoother, data(), out=tmp_path, n=500)
    direct = smoother.certify(X, n=500)
    assert torch.equal(certificate.counts, direct.counts)
    assert torch.equal(runs.load(tmp_path)[0].radius, direct.radius)
    assert (certificate.space, certificate.assumptions) == ("parameters", direct.assumptions)
    unsaid, _ = runs.certify(smoother, data(), out=tmp_path / "unsaid")
    assert unsaid.n.tolist() == smoother.certify(X).n.tolist() == [1000] * len(X)
    other = ParameterSmoother(model, 0.3, 4, parameters=["weight"])
    with pytest.raises(ValueError, match=r"parameters is \('bias',\) there, got \('weight',\)"):
        runs.certify(other, data(), out=tmp_path, n=500)
    with pytest.raises(ValueError, match="noise of their own"):
        runs.accuracy_interval(certificate, labels, 0.0)
    (run,) = read_runs([str(tmp_path)])
    assert "all inputs share their noise" in as_text([run], ["0"])


def test_fingerprints_see_weights_buffers_and_structure():
    def network(slope=0.1):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(2, 2), torch.nn.LeakyReLU(slope), torch.nn.BatchNorm1d(2)
        )

    assert model_fingerprint(network()) == model_fingerprint(network())
    changed = [network(), network(), network().bfloat16(), network(0.2)]
    changed[0][0].weight.data[0, 0] += 1e-6
    changed[1][2].running_mean += 1
    assert len({model_fingerprint(model) for model in [network(), *changed]}) == 5


def test_fingerprints_see_what_modules_hold_as_plain_attributes():
    class Normalised(torch.nn.Module):
        def __init__(self, **attributes):
            super().__init__()
            vars(self).update(attributes)

    def inside(**attributes):
        return model_fingerprint(torch.nn.Sequential(Normalised(**attributes)))

    kinds = [
        {},
        {"std": torch.tensor([0.5])},
        {"std": torch.tensor([0.25])},
        {"std": torch.tensor([0.5], dtype=torch.float64)},
        {"std": 0.5},
        {"std": np.array([0.5])},
        {"std": np.array([0.25])},
        {"std": (0.5, 0.25)},
        {"std": [(0.25, 0.5)]},
        {"mean": 0.5},
        {"mode": "sum"},
        {"options": {"scale": 2}},
        {"options": {"scale": 3}},
        {"of": {1, 2}},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16},
    ]
    assert len({inside(**kind) for kind in kinds}) == len(kinds)
    assert [inside(**kind) for kind in kinds] == [inside(**kind) for kind in kinds]
    assert inside(f=lambda: 1, lock=threading.Lock()) == inside(f=lambda: 1, lock=threading.Lock())
    assert inside(f=lambda: 1) != inside(f=lambda: 2)
    model = torch.nn.Sequential(torch.nn.LSTM(2, 2), torch.nn.Dropout())
    assert model_fingerprint(model.train()) == model_fingerprint(model.eval())
