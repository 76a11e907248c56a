"""The command line does what the functions do, and says in one line what is wrong."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from callables import LABELS, SIZE, X, data, linear, model
from torch import nn

from rsfl import cli, runs
from rsfl.cli import program
from rsfl.fed import GroupJudge, GroupVote
from rsfl.noise import Gaussian
from rsfl.runs.log import Directory, read_shard
from rsfl.runs.settings import Settings
from rsfl.smooth import DeformationSmoother, GaussianSmoother, JointSmoother, floored

HERE = str(Path(__file__).parent)
WHAT = ["--model", "callables:model", "--data", "callables:data"]
LITTLE = ["-n", "150", "--n0", "20", "--quiet"]


def certify(out, *more, what=WHAT, law=("--sigma", "0.5")):
    return cli.main(["certify", *what, *law, *LITTLE, "--device", "cpu", "--out", str(out), *more])


def votes(out):
    return [(r.label, r.ballot) for r in Directory.open(out).records().values()]


def test_certify_is_what_the_function_does(tmp_path):
    assert certify(tmp_path / "cli") == 0
    smoother = GaussianSmoother(model(), 0.5, 4)
    runs.certify(smoother, data(), out=tmp_path / "function", n=150, n0=20)
    assert (tmp_path / "cli/run.json").read_text() == (tmp_path / "function/run.json").read_text()
    assert votes(tmp_path / "cli") == votes(tmp_path / "function")
    assert certify(tmp_path / "cli") == 0


def test_certify_and_verify_take_models_of_several_inputs(tmp_path, capsys):
    what = ["--model", "callables:parts", "--data", "callables:mappings"]
    assert certify(tmp_path / "parts", what=what) == 0
    assert certify(tmp_path / "plain") == 0
    found, other = (runs.load(tmp_path / name)[0] for name in ("parts", "plain"))
    assert torch.equal(found.counts, other.counts)
    assert (found.touched, other.touched) == ("x", "")
    assert cli.main(["verify", str(tmp_path / "parts"), *what]) == 0
    capsys.readouterr()


def test_certify_options_reach_the_run(tmp_path, capsys):
    given = ["--seed", "3", "--alpha", "0.01", "--skip", "2", "--limit", "4"]
    given += ["--at-radius", "0.1", "--batch-size", "64"]
    what = ["--model", "callables:linear", "--data", "callables:stream", "--dtype", "bfloat16"]
    assert certify(tmp_path, *given, what=what, law=("--law", "laplace", "--scale", "0.5")) == 0
    settings = Settings.read(tmp_path)
    assert repr(settings.law) == "Laplace(scale=0.5)"
    shown = [
        getattr(settings, name)
        for name in ("seed", "alpha", "skip", "limit", "radius", "dtype", "num_classes")
    ]
    assert shown == [3, 0.01, 2, 4, 0.1, "bfloat16", 4]
    certificate, labels = runs.load(tmp_path)
    assert certificate.index.tolist() == [0, 2, 4, 6]
    assert labels.tolist() == LABELS[0:8:2]
    assert capsys.readouterr().err == ""
    assert linear().weight.dtype == torch.float32


def test_certify_leaves_the_data_alone(tmp_path, monkeypatch):
    """A model that writes into its input is shown a copy, also when it is asked for its classes."""
    x = torch.tensor([[0.6, 0.0], [0.4, 0.0]])
    monkeypatch.setattr(
        "callables.data", lambda: torch.utils.data.TensorDataset(x, torch.tensor([0, 1]))
    )

    class InPlace(torch.nn.Module):
        def forward(self, x):
            x.sub_(0.5)
            return torch.stack([x[:, 0], -x[:, 0]], dim=1)

    monkeypatch.setattr("callables.model", InPlace)
    assert certify(tmp_path) == 0
    assert x.tolist() == torch.tensor([[0.6, 0.0], [0.4, 0.0]]).tolist()


def test_progress_and_a_closing_line(tmp_path, capsys):
    assert (
        cli.main(
            [
                "certify",
                *WHAT,
                "--sigma",
                "0.5",
                "--n",
                "150",
                "--device",
                "cpu",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().err
    certificate, labels = runs.load(tmp_path)
    share = floored(runs.certified_accuracy(certificate, labels, 0.0), 3)
    assert "12/12" in shown
    assert shown.endswith(f"12 inputs in {tmp_path}, certified accuracy {share} at radius 0\n")


def test_the_closing_line_promises_no_more_than_was_certified(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("callables.data", lambda: list(zip(X[:3], [0, 0, 3], strict=True)))
    what = [
        *WHAT,
        "--sigma",
        "0.1",
        "-n",
        "2000",
        "--device",
        "cpu",
        "--at-radius",
        "0.0019607843137254",
    ]
    assert cli.main(["certify", *what, "--out", str(tmp_path)]) == 0
    certificate, labels = runs.load(tmp_path)
    share = runs.certified_accuracy(certificate, labels, 0.0)
    shown = float(
        re.search(
            r"certified accuracy (\S+) at radius 0\.0019607843137254\n$", capsys.readouterr().err
        )[1]
    )
    assert share == 2 / 3
    assert shown == 0.666


def test_report_is_told_the_norm_of_files(tmp_path, capsys):
    assert certify(tmp_path / "l1", law=("--law", "uniform", "--half-width", "0.5")) == 0
    words = ["report", str(tmp_path / "l1"), "--tsv", str(tmp_path / "l1.tsv")]
    assert cli.main(words) == 2
    assert "norm must be 'l1', that of the certificate, got 'l2'" in capsys.readouterr().err
    assert cli.main([*words, "--norm", "l1"]) == 0
    assert cli.main(["report", str(tmp_path / "l1.tsv"), "--norm", "l1", "--unit", "pixels"]) == 0
    assert "as published, taken for l1 radius in pixels" in capsys.readouterr().out


def test_deformations_are_laws_too(tmp_path, monkeypatch):
    images = [
        (torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(i)), i) for i in range(3)
    ]
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    monkeypatch.setattr("callables.data", lambda: images)
    monkeypatch.setattr("callables.model", lambda: network)
    assert (
        certify(tmp_path, law=("--law", "rotation", "--half-width", "0.4", "--padding", "border"))
        == 0
    )
    law = Settings.read(tmp_path).law
    x = torch.stack([image for image, _ in images])
    direct = DeformationSmoother(network, law, 3).certify(x, n=150, n0=20)
    assert torch.equal(runs.load(tmp_path)[0].counts, direct.counts)
    assert (law.half_width, law.padding, direct.unit) == (0.4, "border", "radians")


def test_a_signal_stops_between_chunks_and_says_how_to_go_on(tmp_path, capsys):
    what = ["--model", "callables:model", "--data", "callables:interrupted"]
    assert certify(tmp_path, "-n", "2000", what=what) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == (
        f"rsfl certify: SIGTERM: stopped, all votes are safe in {tmp_path}; run the same command "
        f"again to resume\n"
    )
    assert len(votes(tmp_path)) == 10  # two groups of five
    assert (
        certify(
            tmp_path,
            "-n",
            "2000",
            what=["--model", "callables:model", "--data", "callables:stream"],
        )
        == 0
    )
    assert len(votes(tmp_path)) == SIZE


ERRORS = {
    "no such module": (
        ["--model", "no_such:thing"],
        "importing no_such raised ModuleNotFoundError: No module named",
    ),
    "no such name": (
        ["--data", "callables:nothing"],
        "--data 'callables:nothing': module callables has no nothing",
    ),
    "no colon": (
        ["--data", "callables"],
        "--data must look like package.module:callable, got 'callables'",
    ),
    "not callable": (
        ["--data", "callables:number"],
        "--data 'callables:number' must be callable, got int",
    ),
    "callable raises": (
        ["--model", "callables:broken"],
        "--model 'callables:broken' raised KeyError: 'no such",
    ),
    "not a model": (
        ["--model", "callables:data"],
        "--model 'callables:data' must give a torch.nn.Module, got list",
    ),
    "not data": (["--data", "callables:model"], "dataset must yield pairs (x, y), got Staircase"),
    "wrong input": (
        ["--model", "callables:wide"],
        "on an input of shape (1,) raised RuntimeError: mat1 and mat2",
    ),
    "wrong logits": (
        ["--model", "callables:flat"],
        "must give logits (1, K) for one input, got (1,)",
    ),
    "ragged data": (
        ["--data", "callables:ragged"],
        "input 1: it has shape (1,), the first one",
    ),
    "directory": (["--out", "/dev/null/run"], "Not a directory: '/dev/null/run'"),
    "too few votes": (
        ["--n", "5"],
        "n must be at least 10 to certify anything at alpha=0.001, got 5",
    ),
    "no parameter": (["--law", "uniform"], "--law uniform has no --sigma, got 0.5"),
    "radius": (
        ["--at-radius", "50"],
        "radius must be one that Gaussian(sigma=0.5) can certify, at most 4.1",
    ),
    "unknown law": (["--law", "cauchy"], "invalid choice: 'cauchy'"),
    "unknown option": (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    "not a number": (["--n", "many"], "argument -n/--n: invalid int value: 'many'"),
    "no such device": (["--device", "toaster"], "toaster"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(tmp_path, capsys, name):
    more, words = ERRORS[name]
    try:
        status = certify(tmp_path / "run", *more)
    except SystemExit as stop:  # argparse
        status = stop.code
    shown = capsys.readouterr().err
    assert status == 2
    assert words in shown
    assert shown.startswith("rsfl")
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    assert "Traceback" not in shown


def test_a_missing_parameter_and_another_run(tmp_path, capsys):
    assert certify(tmp_path, law=()) == 2
    assert capsys.readouterr().err == "rsfl certify: error: --law gaussian needs --sigma\n"
    assert certify(tmp_path) == 0
    assert certify(tmp_path, "--alpha", "0.01") == 2
    assert "holds another run: alpha is 0.001 there, got 0.01" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="raised KeyError") as raised:
        certify(tmp_path, "--debug", "--model", "callables:broken")
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "run"
    assert certify(out) == 0
    return out


def test_report_of_a_joint_certificate_is_a_table_and_a_heat_map(tmp_path, capsys):
    votes = GroupVote(tuple(nn.Linear(2, 2) for _ in range(5)), tuple((k,) for k in range(5)), 2)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    certificate = JointSmoother(GroupJudge(votes), Gaussian(0.2)).certify(x, n=200)
    labels = certificate.label(0)
    certificate.save(tmp_path / "joint.json")
    (tmp_path / "labels.txt").write_text("\n".join(map(str, labels.tolist())))
    words = ["report", str(tmp_path / "joint.json"), "--radii", "0,0.1"]
    more = ["--labels", str(tmp_path / "labels.txt"), "--plot", str(tmp_path / "joint.png")]
    assert cli.main([*words, *more]) == 0
    shown = capsys.readouterr().out
    assert shown == runs.joint_table(certificate, labels, [0.0, 0.1]) + "\n"
    assert "any 2 clients" in shown
    assert (tmp_path / "joint.png").stat().st_size > 5000
    assert cli.main(words) == 2
    assert "--labels FILE" in capsys.readouterr().err
    (tmp_path / "labels.txt").write_text("1\n0")
    assert cli.main([*words, *more]) == 2
    assert "labels" in capsys.readouterr().err


def test_report_prints_json_plots_and_writes(run, tmp_path, capsys):
    tsv, plot = tmp_path / "run.tsv", tmp_path / "curve.png"
    words = [
        "report",
        str(run),
        "--radii",
        "0, 0.25",
        "--json",
        "--tsv",
        str(tsv),
        "--plot",
        str(plot),
        "--envelope",
    ]
    assert cli.main(words) == 0
    document = json.loads(capsys.readouterr().out)
    certificate, labels = runs.load(run)
    assert document["runs"][0]["radii"]["0.25"] == runs.certified_accuracy(
        certificate, labels, 0.25
    )
    assert runs.read_tsv(tsv)[0].label.tolist() == certificate.label.tolist()
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert (
        cli.main(["report", str(run), str(tsv), "--envelope", "--alpha", "0.01", "--rho", "0.01"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "alpha = 0.01 for each" in shown
    assert "with probability 1 - 0.01" in shown
    assert "upper envelope" in shown


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["/no/such/run"], "error: there is no file /no/such/run, nor a directory of a run"),
        (["--radii", "0;1"], "radii must be numbers, got '0;1'"),
        (["--radii", "-1"], "radii must lie in [0, inf], got -1.0"),
        (["--alpha", "2"], "alpha must lie in (0, 1), got 2.0"),
        (["--plot", "/dev/null/plot.png"], "Not a directory: '/dev/null/plot.png'"),
        ([HERE], "holds no run: there is no run.json"),
    ],
)
def test_report_errors_are_one_line(run, capsys, more, words):
    assert cli.main(["report", str(run), *more]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_every_option_is_explained(capsys):
    for command in ("certify", "report", "verify", "demo"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "--debug" in shown
    (commands,) = (action.choices for action in program.parser()._actions if action.choices)
    assert set(commands) == {"certify", "report", "verify", "demo"}
    for command in commands.values():
        assert all(action.help for action in command._actions)


def test_torchrun_gives_the_votes_of_one_process(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([HERE, *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
    ]
    words = [*WHAT, "--sigma", "0.5", "--n", "5000", "--quiet", "--device", "cpu", "--out"]
    two = [*torchrun, "rsfl", "certify", *words, str(tmp_path / "two")]
    done = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert cli.main(["certify", *words, str(tmp_path / "one")]) == 0
    assert votes(tmp_path / "two") == votes(tmp_path / "one")
    shards = sorted((tmp_path / "two").glob("votes-*.jsonl"))
    assert [len(read_shard(path)[0]) for path in shards] == [6, 6]


def test_orbits_are_certified_and_resumed(tmp_path, capsys, monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    network[1].weight.data = torch.stack([torch.zeros(25), torch.ones(25)])
    network[1].bias.data = torch.tensor([0.0, -4.0])
    images = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("callables.data", lambda: (images, torch.tensor([1, 1, 0])))
    monkeypatch.setattr("callables.model", lambda: network)
    orbit = ("--orbit", "rotation", "--angle", "10", "--allowance", "0.01")
    law = ("--law", "gaussian", "--sigma", "0.3")
    for limit in ("2", "3"):
        command = ["certify", *WHAT, "--out", str(tmp_path), *law, *orbit, "--limit", limit]
        assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert "2 inputs" in said
    assert "certified accuracy 0.666 over Rotations" in said
    certificate, labels = runs.load_orbits(tmp_path)
    assert certificate.label.tolist() == [1, 1, 1]
    assert certificate.allowance == 0.01
    assert certificate.orbit.box[0][1] == pytest.approx(10 * math.pi / 180)
    assert labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--orbit", "rotation"), "--orbit rotation needs --angle"),
        (("--orbit", "rotation", "--angle", "9", "--change", "1"), "has no --change"),
        (("--orbit", "rotation", "--angle", "200"), "angle must lie in"),
        (("--orbit", "scaling", "--change", "0.1", "--n", "9"), "it has no --n"),
    ],
)
def test_orbit_options_that_do_not_fit(tmp_path, capsys, options, words):
    command = ["certify", *WHAT, "--out", str(tmp_path), "--sigma", "0.5", *options]
    assert cli.main(command) == 2
    assert words in capsys.readouterr().err


def test_the_version_is_told(capsys):
    from rsfl import __version__

    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"rsfl {__version__}\n"


def test_half_a_turn_is_the_most_and_is_told_in_radians(tmp_path, capsys):
    assert certify(tmp_path, law=("--law", "rotation", "--half-width", "20")) == 2
    shown = capsys.readouterr().err
    assert "half_width must be at most pi radians, half a turn, got 20.0: 20 degrees are" in shown


def test_without_flint_verify_names_the_extra(run):
    blocked = "import sys; sys.modules['flint'] = None; from rsfl import cli; sys.exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "verify", str(run)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "rsfl.verify needs python-flint: pip install 'rsfl[verify]'" in done.stderr


def test_a_reader_that_has_enough_is_no_error(run):
    words = f"{sys.executable} -m rsfl report {run} {run} {run} --envelope"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", f"{words} | true; echo ${{PIPESTATUS[0]}}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout in ("0\n", "141\n")


def test_a_bad_input_is_recorded_where_that_is_asked_for(tmp_path, monkeypatch):
    dataset = data()
    dataset[5] = (torch.tensor([float("nan")]), 0)
    monkeypatch.setattr("callables.data", lambda: dataset)
    assert certify(tmp_path) == 2
    assert certify(tmp_path, "--on-bad", "record") == 0
    assert len(runs.load(tmp_path)[0]) == SIZE
