"""The command line: ``rsfl certify``, ``rsfl report``, ``rsfl verify``, ``rsfl demo``."""

import argparse
import dataclasses
import importlib
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from typing_extensions import override

from rsfl import demo, runs, verify
from rsfl._laws import known, to_document
from rsfl._models import input_dtype
from rsfl._version import __version__
from rsfl.noise import Law
from rsfl.orbit import Orbit, Rotations, RotationScalings, Scalings
from rsfl.smooth import OrbitPlan, Smoother, evaluating, floored

__all__ = ["main"]

T = TypeVar("T")

DTYPES = ("float64", "float32", "bfloat16", "float16")


class _Parser(argparse.ArgumentParser):
    """Errors take one line."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _dashed(name: str) -> str:
    """``RoundedGaussian`` and ``half_width`` as ``rounded-gaussian`` and ``half-width``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower().replace("_", "-")


def _laws() -> dict[str, type[Law]]:
    """The laws of this library that perturb inputs, by the names of the option."""
    return {
        _dashed(law.__name__): law
        for law in known()
        if law.__module__.startswith("rsfl.") and law.space != "parameters"
    }


def _law_parameters() -> dict[str, tuple[type, list[str]]]:
    """The parameters of all laws: their type, and the laws that have them."""
    found: dict[str, tuple[type, list[str]]] = {}
    for name, law in _laws().items():
        for field in dataclasses.fields(law):  # type: ignore[arg-type]
            found.setdefault(field.name, (field.type, []))[1].append(name)  # type: ignore[arg-type]
    return found


def _law(args: argparse.Namespace) -> Law:
    """The law that the options describe."""
    law = _laws()[args.law]
    fields = {field.name: field for field in dataclasses.fields(law)}  # type: ignore[arg-type]
    given = {
        name: getattr(args, name) for name in _law_parameters() if getattr(args, name) is not None
    }
    for name in given:
        if name not in fields:
            raise ValueError(f"--law {args.law} has no --{_dashed(name)}, got {given[name]!r}")
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING:
            raise ValueError(f"--law {args.law} needs --{_dashed(name)}")
    return law(**given)


def _named(option: str, name: str) -> Any:
    """What ``pkg.mod:name`` names."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"--{option} must look like package.module:callable, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = _calling(
        f"--{option} {name!r}: importing {module_name}",
        lambda: importlib.import_module(module_name),
    )
    if not hasattr(module, attribute):
        raise ValueError(f"--{option} {name!r}: module {module_name} has no {attribute}")
    return getattr(module, attribute)


def _calling(what: str, function: Callable[[], T]) -> T:
    """The result of code that is not ours; its exception with a word on where it comes from."""
    try:
        return function()
    except Exception as error:
        raise RuntimeError(f"{what} raised {type(error).__name__}: {error}") from error


def _made(option: str, name: str) -> Any:
    """What the callable that ``pkg.mod:callable`` names returns."""
    function = _named(option, name)
    if not callable(function):
        raise TypeError(f"--{option} {name!r} must be callable, got {type(function).__name__}")
    return _calling(f"--{option} {name!r}", function)


def _device(name: str | None) -> torch.device:
    """The device asked for, by default the GPU if there is one; each local rank has a GPU of its
    own."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    local = os.environ.get("LOCAL_RANK")
    return (
        torch.device("cuda", int(local))
        if device.type == "cuda" and device.index is None and local
        else device
    )


def _certify(args: argparse.Namespace) -> None:
    law = _law(args)
    model = _named("model", args.model)
    model = model if isinstance(model, nn.Module) else _made("model", args.model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"--model {args.model!r} must give a torch.nn.Module, got {type(model).__name__}"
        )
    model.to(_device(args.device), getattr(torch, args.dtype) if args.dtype else None)
    first, dataset = runs.peeked(_made("data", args.data))
    x, _ = runs.example(first, model)
    one = x[None].to(input_dtype(model, x), copy=True)  # the model may write into it
    with evaluating(model):
        logits = _calling(
            f"--model {args.model!r} on an input of shape {tuple(x.shape)}", lambda: model(one)
        )
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(
            f"--model {args.model!r} must give logits (1, K) for one input, got {shape}"
        )
    smoother = Smoother(model, law, logits.shape[1])
    if args.orbit:
        _certify_orbits(args, smoother, dataset)
        return
    rank = int(os.environ.get("RANK", "0"))
    certificate, labels = runs.certify(
        smoother,
        dataset,
        out=args.out,
        n0=args.n0,
        n=args.n,
        alpha=args.alpha,
        radius=args.at_radius,
        seed=args.seed,
        skip=args.skip,
        limit=args.limit,
        batch_size=args.batch_size,
        on_bad=args.on_bad,
        rank=rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        progress=not args.quiet and rank == 0,
    )
    if not args.quiet and len(labels):
        at = args.at_radius or 0
        share = floored(runs.certified_accuracy(certificate, labels, at), 3)
        print(
            f"{len(labels)} inputs in {args.out}, certified accuracy {share} at radius {at}",
            file=sys.stderr,
        )


def _family(args: argparse.Namespace) -> Orbit:
    """The orbit that the options describe."""
    needed = {"rotation": ["angle"], "scaling": ["change"], "rotation-scaling": ["angle", "change"]}
    for name in ("angle", "change"):
        if (getattr(args, name) is not None) != (name in needed[args.orbit]):
            verb = "needs" if name in needed[args.orbit] else "has no"
            raise ValueError(f"--orbit {args.orbit} {verb} --{name}")
    angle = 0.0 if args.angle is None else math.radians(args.angle)
    if args.orbit == "rotation":
        return Rotations(angle)
    if args.orbit == "scaling":
        return Scalings(args.change)
    return RotationScalings(angle, args.change)


def _certify_orbits(args: argparse.Namespace, smoother: Smoother, dataset: Any) -> None:
    """Certify every picture of an orbit, for each input."""
    if args.at_radius is not None or args.n is not None:
        raise ValueError("--orbit spends as many votes as it needs: it has no --n, no --at-radius")
    family = _family(args)
    run = runs.OrbitRun(
        family,
        args.allowance,
        args.alpha,
        OrbitPlan(batch_size=args.batch_size),
        args.seed,
        args.skip,
    )
    certificate, labels = runs.certify_orbits(
        smoother, dataset, run, out=args.out, limit=args.limit, progress=not args.quiet
    )
    if not args.quiet:
        right = (certificate.label.numpy() == labels).mean()
        votes = certificate.votes.double().mean()
        print(
            f"{len(labels)} inputs in {args.out}, certified accuracy {floored(float(right), 3)} "
            f"over {family}, {votes:.0f} votes an input",
            file=sys.stderr,
        )


def _report(args: argparse.Namespace) -> None:
    measure = {"norm": args.norm, "unit": args.unit}
    found = runs.read_runs(args.paths, alpha=args.alpha, runner_up=args.runner_up, **measure)
    radii = [text.strip() for text in args.radii.split(",")]
    text = (
        runs.as_json(found, radii)
        if args.json
        else runs.as_text(found, radii, with_envelope=args.envelope, rho=args.rho)
    )
    if args.tsv:
        if len(found) != 1:
            raise ValueError(f"--tsv writes one run, got {len(found)}")
        runs.write_tsv(args.tsv, *found[0].curve, found[0].seconds, **measure)
    if args.plot:
        import matplotlib

        matplotlib.use("Agg")
        axes = runs.plot_certified_accuracy(
            {run.name: run.curve for run in found}, envelope=args.envelope
        )
        axes.figure.savefig(args.plot, dpi=150)  # type: ignore[union-attr]
    if args.evidence:
        if len(args.paths) != 1:
            raise ValueError(f"--evidence is about one run, got {len(args.paths)}")
        runs.evidence(args.paths[0], args.evidence, radii=[float(text) for text in radii])
    print(text, flush=True)


def _verify(args: argparse.Namespace) -> int:
    printed = None
    given = [name for name in _law_parameters() if getattr(args, name) is not None]
    if given or args.n is not None:
        if args.n is None:
            raise ValueError(f"-n must be given for logs, beside --{_dashed(given[0])}")
        printed = verify.Printed(to_document(_law(args)), args.n, args.alpha)
    witness = None
    if args.model is not None or args.data is not None:
        if args.model is None or args.data is None:
            raise ValueError("--model and --data must be given together: one votes on the other")
        model = _named("model", args.model)
        model = model if isinstance(model, nn.Module) else _made("model", args.model)
        model.to(_device(args.device), getattr(torch, args.dtype) if args.dtype else None)
        _, dataset = runs.peeked(_made("data", args.data))
        if not hasattr(dataset, "__getitem__"):
            dataset = list(dataset)
        witness = verify.Witness(model, dataset, args.forged, args.missed, args.batch_size)
    report = verify.verify(*args.paths, witness=witness, printed=printed)
    print(report, flush=True)
    return report.status


def _demo(args: argparse.Namespace) -> None:
    demo.main(args.out)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rsfl",
        description="Certify classifiers by randomized smoothing, and report what came out.",
    )
    parser.add_argument("--version", action="version", version=f"rsfl {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="certify | report | verify | demo"
    )

    certify = commands.add_parser(
        "certify",
        help="certify a data set; run again to resume",
        description="Certify a data set and log the votes. Run the same command again to resume. "
        "Under "
        "torchrun (torchrun --nproc-per-node K -m rsfl certify ...) the ranks share the work; "
        "write -n there, torchrun "
        "takes --n for an option of its own.",
    )
    certify.add_argument(
        "--model",
        required=True,
        metavar="pkg.mod:callable",
        help="returns the model, a torch.nn.Module giving logits",
    )
    certify.add_argument(
        "--data",
        required=True,
        metavar="pkg.mod:callable",
        help="returns or yields pairs (x, y) of one input each, or returns two tensors of all x "
        "and all y",
    )
    certify.add_argument("--out", required=True, metavar="DIR", help="directory of the run")
    certify.add_argument(
        "--law", default="gaussian", choices=_laws(), help="law of the noise (default: gaussian)"
    )
    for name, (kind, names) in _law_parameters().items():
        certify.add_argument(
            f"--{_dashed(name)}", type=kind, help=f"parameter of {', '.join(names)}"
        )
    certify.add_argument(
        "-n",
        "--n",
        type=int,
        help=f"votes that bound the probability (default: {Smoother.default_n})",
    )
    certify.add_argument(
        "--n0", type=int, default=100, help="votes that select the class (default: 100)"
    )
    certify.add_argument(
        "--alpha", type=float, default=0.001, help="failure probability per input (default: 0.001)"
    )
    certify.add_argument(
        "--at-radius",
        type=float,
        metavar="R",
        help="ask only whether the radius is at least R, with at most n votes",
    )
    certify.add_argument(
        "--orbit",
        choices=("rotation", "scaling", "rotation-scaling"),
        help="certify every picture of a family, handed in by anybody, with pixel noise",
    )
    certify.add_argument("--angle", type=float, help="largest angle of the orbit, in degrees")
    certify.add_argument("--change", type=float, help="largest change of scale of the orbit")
    certify.add_argument(
        "--allowance",
        type=float,
        default=0.0,
        help="l2 distance that a picture may be from one of the orbit (default: 0)",
    )
    certify.add_argument(
        "--skip", type=int, default=1, metavar="K", help="certify every K-th input (default: 1)"
    )
    certify.add_argument(
        "--limit", type=int, metavar="N", help="certify at most N inputs, counted after skipping"
    )
    certify.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    certify.add_argument(
        "--dtype",
        choices=DTYPES,
        help="convert the model, which gets noisy inputs in this type: that is certified",
    )
    certify.add_argument(
        "--device", help="such as cpu, cuda, cuda:1 (default: cuda if there is one)"
    )
    certify.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help="noisy inputs per forward call (default: fitting)",
    )
    certify.add_argument(
        "--on-bad",
        default="raise",
        choices=("raise", "record"),
        help="what to do about an input that cannot be certified: stop, or record why and go on "
        "(default: raise)",
    )
    certify.add_argument("--quiet", action="store_true", help="no progress")
    certify.set_defaults(run=_certify)

    report = commands.add_parser(
        "report",
        help="tables and plots of runs",
        description="Certified accuracy at radii, average certified radius, abstentions and "
        "times of one run or more.",
    )
    report.add_argument(
        "paths",
        nargs="+",
        metavar="DIR_OR_TSV",
        help="run directories, or files idx label predict radius correct time",
    )
    report.add_argument(
        "--radii",
        default="0,0.25,0.5,0.75,1,1.25,1.5",
        metavar="R,R,...",
        help="radii of the table (default: 0,0.25,...,1.5)",
    )
    report.add_argument("--json", action="store_true", help="print JSON")
    report.add_argument("--plot", metavar="FILE", help="draw the curves (.png, .pdf, .svg)")
    report.add_argument("--envelope", action="store_true", help="add the best run at each radius")
    report.add_argument(
        "--evidence",
        metavar="FILE",
        help="write a page about the run (.html, .md): what was certified, assumptions, hashes, "
        "how to verify it",
    )
    report.add_argument(
        "--tsv", metavar="FILE", help="write the run as idx label predict radius correct time"
    )
    report.add_argument(
        "--norm",
        default="l2",
        help="norm of the radii of files that are read or written, which do not say it (l2)",
    )
    report.add_argument("--unit", default="input units", help="their unit, likewise (input units)")
    report.add_argument(
        "--alpha",
        type=float,
        help="read the votes at this failure probability; for files, the one they were made with",
    )
    report.add_argument(
        "--runner-up",
        default="complement",
        choices=("complement", "bounded"),
        help="bound of the strongest rival: what the label leaves, or by its own votes (default: "
        "complement)",
    )
    report.add_argument(
        "--rho",
        type=float,
        default=0.001,
        help="failure probability of the column 'all at once' (default: 0.001)",
    )
    report.set_defaults(run=_report)

    check = commands.add_parser(
        "verify",
        help="check certificates, ballots, runs, ledgers and classic logs",
        description="Derive every number of a record a second time; with --model and --data vote "
        "again on a random sample of its inputs. One line a finding; the exit status is 0, or 1 "
        "where something is false.",
    )
    check.add_argument("paths", nargs="+", metavar="PATH", help="files, and directories of runs")
    check.add_argument("--model", metavar="pkg.mod:callable", help="the model, as for certify")
    check.add_argument("--data", metavar="pkg.mod:callable", help="the data, as for certify")
    check.add_argument(
        "--forged",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of forged inputs that is to be found by voting again (default: 0.05)",
    )
    check.add_argument(
        "--missed",
        type=float,
        default=0.01,
        metavar="P",
        help="probability with which it may be missed (default: 0.01)",
    )
    check.add_argument("--dtype", choices=DTYPES, help="convert the model, as for certify")
    check.add_argument("--device", help="where the model computes, as for certify")
    check.add_argument("--batch-size", type=int, metavar="B", help="as for certify")
    check.add_argument(
        "--law", default="gaussian", choices=_laws(), help="law of classic logs (default: gaussian)"
    )
    for name, (kind, names) in _law_parameters().items():
        check.add_argument(f"--{_dashed(name)}", type=kind, help=f"parameter of {', '.join(names)}")
    check.add_argument("-n", "--n", type=int, help="votes an input of classic logs")
    check.add_argument(
        "--alpha", type=float, default=0.001, help="their failure probability (default: 0.001)"
    )
    check.set_defaults(run=_verify)

    demonstration = commands.add_parser("demo", help="train, certify and plot handwritten digits")
    demonstration.add_argument(
        "--out", default="demo-out", metavar="DIR", help="where the plot goes"
    )
    demonstration.set_defaults(run=_demo)

    for command in (certify, report, check, demonstration):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after ``rsfl``; those of the process by default.

    Returns:
        The exit status: 0, 1 where ``verify`` finds something false, 2 after an error (one line on
        stderr), 128 + signal when interrupted.
    """
    args = _parser().parse_args(arguments)
    try:
        status: int | None = args.run(args)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal", 2)
        print(
            f"rsfl {args.command}: {stop or 'interrupted'}; run the same command again to resume",
            file=sys.stderr,
        )
        return 128 + int(number)
    except BrokenPipeError:  # whoever reads the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if args.debug:
            raise
        own = isinstance(error, ValueError | TypeError | RuntimeError | OSError | ImportError)
        message = " ".join((str(error) if own else f"{type(error).__name__}: {error}").split())
        print(f"rsfl {args.command}: error: {message}", file=sys.stderr)
        return 2
    return status or 0
