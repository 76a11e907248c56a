"""``rsfl report``: tables, plots and pages of runs."""

import argparse
from pathlib import Path

import numpy as np

from rsfl import runs
from rsfl.smooth import JointCertificate

__all__ = ["add_to"]


def _joint(args: argparse.Namespace) -> None:
    """Table and heat map of a joint certificate."""
    if len(args.paths) != 1 or args.labels is None:
        raise ValueError(
            f"a joint certificate (.json) is reported alone and with --labels FILE, which has the "
            f"true label of each of its inputs on a line, got {args.paths!r}"
        )
    certificate = JointCertificate.load(args.paths[0])
    labels = np.array([int(line) for line in Path(args.labels).read_text().split()])
    radii = [float(text) for text in args.radii.split(",")]
    text = runs.joint_table(certificate, labels, radii)
    if args.plot:
        import matplotlib

        matplotlib.use("Agg")
        axes = runs.plot_joint(certificate, labels, title=Path(args.paths[0]).stem)
        axes.figure.savefig(args.plot, dpi=150)  # type: ignore[union-attr]
    print(text, flush=True)


def _report(args: argparse.Namespace) -> None:
    if any(path.endswith(".json") for path in args.paths):
        _joint(args)
        return
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


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, among the others."""
    parser = commands.add_parser(
        "report",
        help="tables and plots of runs",
        description="Certified accuracy at radii, average certified radius, abstentions and "
        "times of one run or more.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="run directories, files idx label predict radius correct time, or one joint "
        "certificate (.json): clients and inputs at once",
    )
    parser.add_argument(
        "--radii",
        default="0,0.25,0.5,0.75,1,1.25,1.5",
        metavar="R,R,...",
        help="radii of the table (default: 0,0.25,...,1.5)",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="true labels of a joint certificate, one a line"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the curves, or the heat map of a joint certificate (.png, .pdf, .svg)",
    )
    parser.add_argument("--envelope", action="store_true", help="add the best run at each radius")
    parser.add_argument(
        "--evidence",
        metavar="FILE",
        help="write a page about the run (.html, .md): what was certified, assumptions, hashes, "
        "how to verify it",
    )
    parser.add_argument(
        "--tsv", metavar="FILE", help="write the run as idx label predict radius correct time"
    )
    parser.add_argument(
        "--norm",
        default="l2",
        help="norm of the radii of files that are read or written, which do not say it (l2)",
    )
    parser.add_argument("--unit", default="input units", help="their unit, likewise (input units)")
    parser.add_argument(
        "--alpha",
        type=float,
        help="read the votes at this failure probability; for files, the one they were made with",
    )
    parser.add_argument(
        "--runner-up",
        default="complement",
        choices=("complement", "bounded"),
        help="bound of the strongest rival: what the label leaves, or by its own votes (default: "
        "complement)",
    )
    parser.add_argument(
        "--rho",
        type=float,
        default=0.001,
        help="failure probability of the column 'all at once' (default: 0.001)",
    )
    parser.set_defaults(run=_report)
