"""Run all benchmarks, or those named on the command line."""

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.machine import machine

MODULES = ("imports", "votes", "pipeline", "sequential", "deform", "parameters", "attacks", "fed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which ones (default: all of {', '.join(MODULES)})",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/benchmarks.json"), help="JSON file to write"
    )
    parser.add_argument(
        "--threads", type=int, help="threads of a forward pass (default: as many as PyTorch takes)"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODULES):
        parser.error(f"NAME must be one of {', '.join(MODULES)}, got {', '.join(sorted(unknown))}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    results = []
    for name in options.names or MODULES:
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            print(row, flush=True)
            results.append({"benchmark": name, **asdict(row), "met": row.met})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "rows": results}, indent=1))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
