"""Files as they are written hold, and what was changed in them is found: by their arithmetic, by
votes that are cast again, or by what model and data are."""

import json
import shutil
import zlib

import pytest
import torch
from saved import LAWS, READINGS, ballot, edited, false
from torch import nn

from rsfl import noise, runs, smooth
from rsfl.cli import main
from rsfl.verify import Witness, verify
from rsfl.verify.evidence import sample_size


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("reading", READINGS)
def test_certificates_of_every_law_and_reading_hold(tmp_path, law, reading):
    certificate = READINGS[reading](ballot(law))
    certificate.save(tmp_path / "c.json")
    report = verify(tmp_path / "c.json")
    assert false(report) == []
    assert all(one.holds for one in report)
    assert "proved from their votes" in str(report)


CLAIMS = {
    "radius": lambda c: c["radius"].__setitem__(0, repr(float(c["radius"][0]) * (1 + 1e-8))),
    "infinite": lambda c: c["radius"].__setitem__(0, "inf"),
    "nan": lambda c: c["radius"].__setitem__(0, "nan"),
    "lower": lambda c: c["p_lower"].__setitem__(0, "0.9999"),
    "upper": lambda c: c["p_upper"].__setitem__(0, "0.0001"),
    "label": lambda c: c["label"].__setitem__(0, 1),
    "alpha": lambda c: c.__setitem__("alpha", 0.0005),
    "no alpha": lambda c: c.__setitem__("alpha", 0.0),
    "law": lambda c: c["law"].__setitem__("sigma", 0.4999),
    "another law": lambda c: c.__setitem__("law", {"name": "Laplace", "scale": 0.5}),
    "unknown law": lambda c: c.__setitem__("law", {"name": "Magic", "sigma": 0.5}),
    "norm": lambda c: c["measure"].__setitem__("norm", "linf"),
    "unit": lambda c: c["measure"].__setitem__("unit", "pixels"),
    "votes": lambda c: c["counts"].__setitem__(0, {"0": 1001}),
    "negative votes": lambda c: c["counts"].__setitem__(5, {"0": 1000, "1": -1}),
    "class": lambda c: c["counts"].__setitem__(0, {"3": 1000}),
    "assumption": lambda c: c["assumptions"].pop(0),
    "basis": lambda c: c["assumptions"][2].__setitem__("basis", "checked"),
    "statement": lambda c: c["assumptions"][3].__setitem__("statement", "Anything."),
    "reading": lambda c: c["reading"].__setitem__("runner_up", "bounded"),
    "rule": lambda c: c.__setitem__("rule", {"name": "lucky"}),
    "numbers": lambda c: c["n"].__setitem__(3, 1100),
    "missing": lambda c: c.pop("counts"),
    "another way to write it": lambda c: c["radius"].__setitem__(2, "0.0_1"),
    "a number": lambda c: c["p_lower"].__setitem__(2, 0.5),
    "short": lambda c: c["label"].pop(),
}


@pytest.mark.parametrize("change", CLAIMS)
def test_what_does_not_follow_is_found(tmp_path, change):
    path = tmp_path / "c.json"
    ballot(noise.Gaussian(0.5)).certificate().save(path)
    report = verify(edited(path, CLAIMS[change]))
    assert report.status == 1
    assert false(report), report


def test_a_member_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "c.json"
    ballot(noise.Gaussian(0.5)).certificate().save(path)
    content = path.read_text().split('"content": ')[1][:-2]
    twice = '{"alpha": 1e-9, ' + content[1:]
    seal = zlib.crc32(twice.encode())
    head = f'{{"kind": "certificate", "format": 2, "crc32": {seal}, "content": '
    path.write_text(head + twice + "}\n")
    assert "members stand twice" in str(false(verify(path)))


def test_noise_on_some_parameters_takes_the_smoother(pictures, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    smoother = smooth.ParameterSmoother(model, 0.1, 4, parameters=["1.weight"])
    x = torch.stack([one for one, _ in pictures])
    smoother.certify(x, n0=20, n=100).save(tmp_path / "c.json")
    report = verify(tmp_path / "c.json", witness=Witness(model, pictures))
    assert report.holds
    assert "give a smoother that says on which" in str(report)
    report = verify(tmp_path / "c.json", witness=Witness(smoother, pictures))
    assert report.holds
    assert "the same to a vote" in str(report)


def test_numbers_of_votes_that_differ_are_said(tmp_path):
    parts = [ballot(noise.Gaussian(0.5), inputs=3, n=n) for n in (500, 1000)]
    smooth.Ballot.cat(parts).certificate().save(tmp_path / "c.json")
    report = verify(tmp_path / "c.json")
    assert report.holds
    assert "is [500, 1000] for different inputs" in str(report)


def test_what_is_found_is_said_with_both_numbers(tmp_path):
    path = tmp_path / "c.json"
    ballot(noise.Gaussian(0.5)).certificate().save(path)
    report = verify(edited(path, lambda c: c["radius"].__setitem__(0, "3.5")))
    (text,) = false(report)
    assert "input 0: radius is 3.5, where 1.231" in text
    assert "2.27 too much" in text
    path.write_text(path.read_text().replace('"crc32": ', '"crc32": 1'))
    assert "the checksum does not fit" in false(verify(path))[0]


def test_sequential_certificates_that_claim_more(tmp_path):
    path = tmp_path / "c.json"
    for change in (
        lambda c: c["reading"].__setitem__("radius", 0.4),
        lambda c: c.__setitem__("radius", ["0.03"] * len(c["radius"])),
        lambda c: c["label"].__setitem__(1, 0),
        lambda c: c["counts"].__setitem__(0, {"0": 20, "1": 980}),
        lambda c: c.__setitem__("alpha", 1e-300),
    ):
        ballot(noise.Gaussian(0.5)).certificate_at(0.02, 0.001).save(path)
        assert verify(path).holds
        assert false(verify(edited(path, change)))


def test_predictions_that_claim_more(tmp_path):
    path = tmp_path / "c.json"
    for change in (
        lambda c: c["label"].__setitem__(0, 1),
        lambda c: c["counts"].__setitem__(0, {"0": 500, "1": 500}),
        lambda c: c["radius"].__setitem__(0, "0.1"),
        lambda c: c["p_lower"].__setitem__(0, "0.9"),
    ):
        ballot(noise.Gaussian(0.5)).prediction(0.001).save(path)
        assert verify(path).holds
        assert false(verify(edited(path, change)))


# --- Votes that are cast again -------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))


@pytest.fixture(scope="module")
def pictures():
    x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    return [(one, i % 4) for i, one in enumerate(x)]


@pytest.fixture(scope="module")
def run(network, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    smoother = smooth.GaussianSmoother(network, 0.25, 4)
    runs.certify(smoother, pictures, out=out / "fixed", n0=20, n=200)
    runs.certify(smoother, pictures, out=out / "sequential", n0=20, n=2000, radius=0.05)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    smoother = smooth.ParameterSmoother(linear, 0.1, 4)
    runs.certify(smoother, pictures, out=out / "parameters", n0=20, n=200)
    return out, linear


@pytest.mark.parametrize("kind", ["fixed", "sequential", "parameters"])
def test_runs_hold_at_all_depths(run, network, pictures, kind):
    out, linear = run
    model = linear if kind == "parameters" else network
    report = verify(out / kind, witness=Witness(model, pictures))
    assert false(report) == []
    assert {one.depth for one in report} == {"arithmetic", "evidence", "identity"}
    assert all(one.holds for one in report)
    assert f"{sample_size(30, 0.05, 0.01)} the same to a vote" in str(report)


def test_another_model_or_other_data_are_found(run, network, pictures):
    out, _ = run
    torch.manual_seed(2)
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
    report = verify(out / "fixed", witness=Witness(other, pictures))
    assert {one.depth for one in report if one.holds is False} == {"identity", "evidence"}
    moved = [(x + (i == 7) * 1e-6, y) for i, (x, y) in enumerate(pictures)]
    (text,) = false(verify(out / "fixed", witness=Witness(network, moved, missed=1.0)))
    assert "the inputs 7 are others" in text


def line_of(content, change):
    content = json.loads(json.dumps(content))
    change(content)
    document = {"kind": "ballot", "format": 1}
    document |= {"crc32": zlib.crc32(json.dumps(content).encode()), "content": content}
    return json.dumps(document)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c["law"].__setitem__("sigma", 1.0), "law is"),
        (lambda c: c.__setitem__("run", "0" * 16), "votes of the run 0000"),
        (lambda c: c.__setitem__("seed", 5), "seed is 5"),
        (lambda c: c["n"].__setitem__(0, 199), "20 and 199 votes, in a run of 20 and 200"),
        (lambda c: c["index"].__setitem__(0, 999), "input 999 is none of this run"),
        (lambda c: c["index"].__setitem__(0, 3), "other votes for input 3 than before"),
        (lambda c: c["counts"].__setitem__(0, {"0": 201}), "no votes"),
    ],
)
def test_lines_of_a_run_that_were_changed(run, tmp_path, change, text):
    out = shutil.copytree(run[0] / "fixed", tmp_path / "run")
    path = out / "votes-00000.jsonl"
    lines = path.read_text().splitlines()
    lines[-1] = line_of(json.loads(lines[-1])["content"], change)
    path.write_text("\n".join(lines) + "\n")
    report = verify(out)
    assert any(text in one for one in false(report)), report


def test_settings_of_a_run_that_were_changed(run, tmp_path):
    out = shutil.copytree(run[0] / "fixed", tmp_path / "run")
    settings = json.loads((out / "run.json").read_text())
    for name, value in (("alpha", 1e-4), ("model", {**settings["model"], "weights": "0"})):
        (out / "run.json").write_text(json.dumps({**settings, name: value}))
        assert "votes of the run" in str(false(verify(out)))


def test_a_consistent_lie_about_votes_needs_the_model(network, pictures, tmp_path):
    smoother = smooth.GaussianSmoother(network, 0.25, 4)
    x = torch.stack([one for one, _ in pictures])
    honest = smoother.ballot(x, n0=20, n=200)
    lie = smooth.Votes(torch.full((30, 4), 0), honest.votes.invalid * 0)
    lie.counts[:, 2] = 200
    path = tmp_path / "c.json"
    smooth.Ballot(honest.law, lie, lie, dim=16, seed=0).certificate().save(path)
    assert verify(path).holds
    report = verify(path, witness=Witness(network, pictures))
    assert {one.depth for one in report if one.holds is False} == {"evidence"}
    honest.certificate().save(path)
    assert verify(path, witness=Witness(smoother, pictures)).holds


def test_close_calls_explain_a_vote_but_no_more(pictures, tmp_path):
    class Close(nn.Module):
        """Two logits that differ by rounding in every eighth vote."""

        def forward(self, x):
            first = x.flatten(1).sum(1)
            second = torch.where(first.abs() % 1 < 0.125, first * (1 + 2e-7), first - 1)
            return torch.stack([first, second], dim=1)

    x = torch.stack([one for one, _ in pictures])
    honest = smooth.GaussianSmoother(Close(), 0.25, 2).ballot(x, n0=20, n=400)
    for moved, holds in ((3, True), (200, False)):
        counts = honest.votes.counts.clone()
        counts[:, 0] -= moved
        counts[:, 1] += moved
        votes = smooth.Votes(counts, honest.votes.invalid)
        changed = smooth.Ballot(honest.law, honest.selection, votes, dim=16, inputs=honest.inputs)
        changed.save(tmp_path / "b.json")
        report = verify(tmp_path / "b.json", witness=Witness(Close(), pictures))
        assert report.holds is holds, report


def test_votes_of_another_kind_of_device_are_compared_as_draws(run, network, pictures, tmp_path):
    out = shutil.copytree(run[0] / "fixed", tmp_path / "run")
    settings = json.loads((out / "run.json").read_text())
    other = smooth.GaussianSmoother(network, 0.25, 4)
    x = torch.stack([one for one, _ in pictures])
    drawn = other.ballot(x, n0=20, n=200, seed=99)  # as good as another device

    def rewritten(votes):
        told = {**settings, "machine": "an abacus"}
        (out / "run.json").write_text(json.dumps(told))
        from rsfl.verify.directories import _identity

        lines = (run[0] / "fixed" / "votes-00000.jsonl").read_text().splitlines()
        contents = [json.loads(line)["content"] for line in lines]
        sparse = [{str(k): v for k, v in enumerate(row) if v} for row in votes.tolist()]
        lines = [
            line_of(c, lambda c: c.update(run=_identity(told), counts=[sparse[c["index"][0]]]))
            for c in contents
        ]
        (out / "votes-00000.jsonl").write_text("\n".join(lines) + "\n")
        return verify(out, witness=Witness(network, pictures))

    report = rewritten(drawn.votes.counts)
    assert false(report) == []
    assert "no further apart than draws are" in str(report)
    report = rewritten(torch.tensor([[0, 0, 0, 200]] * 30))
    assert {one.depth for one in report if one.holds is False} == {"evidence"}


@pytest.mark.parametrize(
    ("inputs", "forged", "missed", "size"),
    [(10_000, 0.05, 0.01, 90), (40, 0.05, 0.01, 36), (10, 0.001, 0.01, 10), (100, 1.0, 0.01, 1)],
)
def test_the_sample_is_as_large_as_what_may_be_missed_asks(inputs, forged, missed, size):
    assert sample_size(inputs, forged, missed) == size


# --- The command line ----------------------------------------------------------------------------


def test_the_command_line_says_what_was_found(run, tmp_path, capsys):
    path = tmp_path / "c.json"
    ballot(noise.Gaussian(0.5)).certificate().save(path)
    assert main(["verify", str(path), str(run[0] / "fixed")]) == 0
    assert "6 findings, 0 false" in capsys.readouterr().out
    edited(path, lambda c: c["radius"].__setitem__(0, "3.5"))
    assert main(["verify", str(path)]) == 1
    assert "FALSE  arithmetic" in capsys.readouterr().out
    log = tmp_path / "log.tsv"
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t0\t0\t1.2316\t1\t1.0\n")
    assert main(["verify", str(log)]) == 2
    assert "n, alpha and the law must be given" in capsys.readouterr().err
    assert main(["verify", str(log), "--sigma", "0.5", "-n", "1000"]) == 0
    assert main(["verify", str(tmp_path / "none.json")]) == 1
    other = tmp_path / "other.json"
    other.write_text('{"kind": "poem", "format": 1, "crc32": 0, "content": {}}')
    assert "a poem of format 1 is not known" in str(verify(other))


def test_the_command_line_votes_again(tmp_path, capsys):
    words = ["--model", "callables:model", "--data", "callables:data"]
    out = str(tmp_path / "run")
    law = ["--sigma", "0.5", "--n", "200", "--out", out, "--quiet"]
    assert main(["certify", *words, *law]) == 0
    assert main(["verify", out, *words]) == 0
    assert "the same to a vote" in capsys.readouterr().out
    assert main(["verify", out, *words[:2]]) == 2
    assert "--model and --data must be given together" in capsys.readouterr().err
