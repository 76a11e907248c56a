"""A log is read back as a prefix of what was written, or not at all."""

import dataclasses
import json

import pytest
import torch
from callables import LABELS, X, data
from hypothesis import given
from hypothesis import strategies as st
from models import MODELS

from rsfl import noise, runs
from rsfl.runs.log import Record, read_shard, recording
from rsfl.runs.report import as_text, read_runs
from rsfl.runs.settings import Settings, fingerprint, laws
from rsfl.smooth import GaussianSmoother, ParameterSmoother, Smoother

MODEL = MODELS["staircase"]
SMOOTHER = GaussianSmoother(MODEL, 0.5, 4)

counted = st.dictionaries(st.integers(0, 999), st.integers(1, 10**6), max_size=5)
a_record = st.builds(
    Record,
    index=st.integers(0, 10**6),
    label=st.integers(0, 999),
    rule=st.sampled_from(["fixed", "sequential"]),
    n0=st.integers(1, 1000),
    n=st.integers(1, 10**6),
    selection=counted,
    counts=counted,
    invalid=st.integers(0, 100),
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
    written = [Record(i, 1, "fixed", 10, 30, {1: 10}, {0: 2, 1: 27}, 1, 0.25) for i in (3, 4)]
    content = b"".join(record.line() for record in written)
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        found, _ = read_shard(path)
        assert found == written[: content[:cut].count(b"\n")]
        with recording(tmp_path, 0) as append:  # which drops what was torn
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


@pytest.mark.parametrize("garbage", [b"\n", b"{}\n", b"\x00\x00\n", b"idx\tlabel\n", b'{"index":3}\n', b"\xff\n"])
def test_garbage_lines_are_named(tmp_path, garbage):
    path = tmp_path / "votes-00000.jsonl"
    line = Record(0, 1, "fixed", 10, 30, {1: 10}, {1: 30}, 0, 0.25).line()
    path.write_bytes(line + garbage + line)
    with pytest.raises(ValueError, match=r"votes-00000.jsonl, line 2: the checksum does not fit the line"):
        read_shard(path)


def certified(out, **changes):
    given_ = {"n0": 20, "n": 200, "progress": False, **changes}
    return runs.certify(SMOOTHER, data(), out=out, **given_)


def test_a_log_gives_the_certificate_that_the_smoother_gives(tmp_path):
    certificate, labels = certified(tmp_path)
    direct = SMOOTHER.certify(X, n0=20, n=200)
    again, labels_again = runs.load(tmp_path)
    for one in (certificate, again):
        for name, value in direct.to_dict().items():
            assert (one.to_dict()[name] == value) is True or (one.to_dict()[name] == value).all(), name
    assert labels.tolist() == labels_again.tolist() == LABELS


def test_other_bounds_of_the_same_votes(tmp_path):
    certified(tmp_path)
    for changes in ({"alpha": 0.05}, {"runner_up": "bounded"}, {"method": "hoeffding"}):
        certificate, _ = runs.load(tmp_path, **changes)
        assert torch.equal(certificate.radius, SMOOTHER.certify(X, n0=20, n=200, **changes).radius)
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\), got 1.5"):
        runs.load(tmp_path, alpha=1.5)
    # one bound each at half of alpha is never better than both at once
    complement, bounded = runs.load(tmp_path, alpha=0.025)[0], runs.load(tmp_path, alpha=0.05, runner_up="bounded")[0]
    assert bool((bounded.radius >= complement.radius).all())


def test_sequential_votes_are_read_by_their_own_test_only(tmp_path):
    certificate, _ = certified(tmp_path, radius=0.1, n=3000)
    direct = SMOOTHER.certify_at(X, 0.1, n0=20, n_max=3000)
    for name in ("label", "radius", "p_lower", "counts", "n"):
        assert torch.equal(getattr(certificate, name), getattr(direct, name))
    assert certificate.assumptions == direct.assumptions
    assert 0 < int(certificate.abstained.sum()) < len(X)
    assert runs.load(tmp_path, alpha=0.001)[0].alpha == 0.001
    for changes in ({"alpha": 0.01}, {"runner_up": "bounded"}, {"method": "hoeffding"}):
        with pytest.raises(ValueError, match=r"a sequential test stopped these votes at radius 0\.1 and"):
            runs.load(tmp_path, **changes)
    settings = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**settings, "radius": None}))  # to read them as if n were fixed
    with pytest.raises(ValueError, match="line 1: sequential votes in a fixed run"):
        runs.load(tmp_path)


def rewrite(path, **changes):
    """The first record of a file, changed and sealed again, appended to another rank's."""
    record = dataclasses.replace(read_shard(path)[0][0], **changes)
    (path.parent / "votes-00007.jsonl").write_bytes(record.line())


def test_shards_are_merged_and_contradictions_named(tmp_path):
    certificate, _ = certified(tmp_path)
    path = tmp_path / "votes-00000.jsonl"
    rewrite(path, seconds=9.0)
    assert torch.equal(runs.load(tmp_path)[0].counts, certificate.counts)
    for changes, words in (
        ({"label": 3}, "other votes for input 0 than before"),
        ({"counts": {2: 200}, "invalid": 0}, "other votes for input 0 than before"),
        ({"counts": {2: 201}, "invalid": 0}, "201 votes of 200 are accounted for"),
        ({"n0": 21}, "21 and 200 votes in a run of 20 and 200"),
        ({"counts": {4: 200}, "invalid": 0}, "a vote for none of the 4 classes"),
    ):
        rewrite(path, **changes)
        with pytest.raises(ValueError, match=f"votes-00007.jsonl, line 1: {words}"):
            runs.load(tmp_path)


def test_directories_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no run\.json"):
        runs.load(tmp_path)
    for text in ("", "{}", '{"format": 2}', '{"format": 1}', "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json cannot be read as the settings of a run"):
            runs.load(tmp_path)


@pytest.mark.parametrize("law", [law for law in laws().values() if law.space != "parameters"])
def test_every_law_survives_the_round_trip(tmp_path, law):
    given_ = {f.name: 0.25 for f in dataclasses.fields(law) if f.name in ("sigma", "scale", "half_width")}
    law = law(**given_, **({"bases": 2} if law.__name__ == "DCT" else {}))
    images = [(torch.full((1, 4, 4), 0.2), 1)]
    smoother = Smoother(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), law, 3)
    certificate, _ = runs.certify(smoother, images, out=tmp_path, n0=5, n=20, alpha=0.5, progress=False)
    assert certificate.law == runs.load(tmp_path)[0].law == law
    assert Settings.read(tmp_path).law == law


def test_the_radius_reads_the_dimension_of_the_noise(tmp_path):
    smoother = Smoother(MODEL, noise.RoundedGaussian(0.25), 4)
    grid = (torch.arange(4)[:, None] / 255).float()
    certificate, _ = runs.certify(smoother, list(zip(grid, [0] * 4, strict=True)), out=tmp_path, n=200, progress=False)
    assert torch.equal(certificate.radius, smoother.certify(grid, n=200).radius)


def test_noise_on_parameters(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 3)
    smoother = ParameterSmoother(model, 0.3, 3, parameters=["bias"])
    certificate, labels = runs.certify(smoother, data(), out=tmp_path, n=500, progress=False)
    direct = smoother.certify(X, n=500)
    assert torch.equal(certificate.counts, direct.counts)
    assert torch.equal(runs.load(tmp_path)[0].radius, direct.radius)
    assert (certificate.space, certificate.assumptions) == ("parameters", direct.assumptions)
    unsaid, _ = runs.certify(smoother, data(), out=tmp_path / "unsaid")
    assert unsaid.n.tolist() == smoother.certify(X).n.tolist() == [1000] * len(X)
    other = ParameterSmoother(model, 0.3, 3, parameters=["weight"])
    with pytest.raises(ValueError, match=r"parameters is \('bias',\) there, got \('weight',\)"):
        runs.certify(other, data(), out=tmp_path, n=500, progress=False)
    with pytest.raises(ValueError, match="noise of their own"):
        runs.accuracy_interval(certificate, labels, 0.0)
    (run,) = read_runs([str(tmp_path)])
    assert "all inputs share their noise" in as_text([run], ["0"])


def test_fingerprints_see_weights_buffers_and_structure():
    def network(slope=0.1):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LeakyReLU(slope), torch.nn.BatchNorm1d(2))

    assert fingerprint(network()) == fingerprint(network())
    changed = [network(), network(), network().bfloat16(), network(0.2)]
    changed[0][0].weight.data[0, 0] += 1e-6
    changed[1][2].running_mean += 1
    assert len({fingerprint(model) for model in [network(), *changed]}) == 5
