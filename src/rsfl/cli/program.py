"""The command line: ``rsfl certify``, ``rsfl report``, ``rsfl verify``, ``rsfl demo``."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from typing_extensions import override

from rsfl import demo
from rsfl._version import __version__
from rsfl.cli import certify, report, verify

__all__ = ["main", "parser"]


class _Parser(argparse.ArgumentParser):
    """Errors take one line."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _demo(args: argparse.Namespace) -> None:
    demo.main(args.out)


def parser() -> argparse.ArgumentParser:
    """The options of every command."""
    whole = _Parser(
        prog="rsfl",
        description="Certify classifiers by randomized smoothing, and report what came out.",
    )
    whole.add_argument("--version", action="version", version=f"rsfl {__version__}")
    commands = whole.add_subparsers(
        dest="command", required=True, metavar="certify | report | verify | demo"
    )

    for command in (certify, report, verify):
        command.add_to(commands)

    demonstration = commands.add_parser("demo", help="train, certify and plot handwritten digits")
    demonstration.add_argument(
        "--out", default="demo-out", metavar="DIR", help="where the plot goes"
    )
    demonstration.set_defaults(run=_demo)

    for one in commands.choices.values():
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after ``rsfl``; those of the process by default.

    Returns:
        The exit status: 0, 1 where ``verify`` finds something false, 2 after an error (one line on
        stderr), 128 + signal when interrupted.
    """
    args = parser().parse_args(arguments)
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
