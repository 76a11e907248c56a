"""``rsfl verify``: records whose every number is derived a second time."""

import argparse

from rsfl import fed, runs, verify
from rsfl._laws import to_document
from rsfl.cli.callables import DTYPES, made, model_on_device
from rsfl.cli.laws import add_law, dashed, given_law, given_parameters

__all__ = ["add_to"]


def _verify(args: argparse.Namespace) -> int:
    printed = None
    given = given_parameters(args)
    if given or args.n is not None:
        if args.n is None:
            raise ValueError(f"-n must be given for logs, beside --{dashed(next(iter(given)))}")
        printed = verify.Printed(to_document(given_law(args)), args.n, args.alpha)
    witness = None
    if args.model is not None or args.data is not None:
        if args.model is None or args.data is None:
            raise ValueError("--model and --data must be given together: one votes on the other")
        model = model_on_device(args)
        _, dataset = runs.peeked(made("data", args.data))
        if not hasattr(dataset, "__getitem__"):
            dataset = list(dataset)
        witness = verify.Witness(model, dataset, args.forged, args.missed, args.batch_size)
    reports = [verify.verify(*args.paths, witness=witness, printed=printed)]
    if args.server is not None:
        reports.append(_replayed(args))
    elif args.checkpoint is not None:
        raise ValueError("--checkpoint must be given beside --server, which carries rounds out")
    report = verify.Report.of(reports)
    print(report, flush=True)
    return report.status


def _replayed(args: argparse.Namespace) -> verify.Report:
    """The rounds of the ledger among the paths, carried out again."""
    ledgers = []
    for path in args.paths:
        try:
            ledgers.append(fed.Ledger.load(path))
        except (OSError, ValueError):
            continue  # it is something else, or was found to be damaged
    if len(ledgers) != 1:
        raise ValueError(f"--server must be given beside one ledger, got {len(ledgers)}")
    server = made("server", args.server)
    if not isinstance(server, fed.Server):
        kind = type(server).__name__
        raise TypeError(f"--server {args.server!r} must return a fed.Server, got {kind}")
    return verify.replay(server, ledgers[0], args.checkpoint)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, among the others."""
    parser = commands.add_parser(
        "verify",
        help="check certificates, ballots, runs, ledgers and classic logs",
        description="Derive every number of a record a second time; with --model and --data vote "
        "again on a random sample of its inputs. One line a finding; the exit status is 0, or 1 "
        "where something is false.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, and directories of runs")
    parser.add_argument("--model", metavar="pkg.mod:callable", help="the model, as for certify")
    parser.add_argument("--data", metavar="pkg.mod:callable", help="the data, as for certify")
    parser.add_argument(
        "--forged",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of forged inputs that is to be found by voting again (default: 0.05)",
    )
    parser.add_argument(
        "--missed",
        type=float,
        default=0.01,
        metavar="P",
        help="probability with which it may be missed (default: 0.01)",
    )
    parser.add_argument(
        "--server",
        metavar="pkg.mod:callable",
        help="returns the fed.Server of a ledger's run, with its clients' data: its rounds are "
        "carried out again",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="the run's checkpoints, beside --server: its last round alone is carried out again",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="convert the model, as for certify")
    parser.add_argument("--device", help="where the model computes, as for certify")
    parser.add_argument("--batch-size", type=int, metavar="B", help="as for certify")
    add_law(parser, "classic logs")
    parser.add_argument("-n", "--n", type=int, help="votes an input of classic logs")
    parser.add_argument(
        "--alpha", type=float, default=0.001, help="their failure probability (default: 0.001)"
    )
    parser.set_defaults(run=_verify)
