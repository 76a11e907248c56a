"""Run all benchmarks, or those named on the command line."""

import argparse
import importlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import row as rows_of
from benchmarks.machine import machine

MODULES = (
    "imports",
    "votes",
    "pipeline",
    "sequential",
    "certificates",
    "deform",
    "parameters",
    "attacks",
    "fed",
    "groups",
    "shares",
)


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
    parser.add_argument(
        "--processor",
        action="store_true",
        help="processor time, on one thread: for machines that others use as well",
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODULES):
        parser.error(f"NAME must be one of {', '.join(MODULES)}, got {', '.join(sorted(unknown))}")
    rows_of.BY_PROCESSOR = options.processor
    if options.threads is not None or options.processor:
        torch.set_num_threads(options.threads or 1)
    began = time.perf_counter()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for name in options.names or MODULES:
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            print(row, flush=True)
            results.append({"benchmark": name, **asdict(row), "met": row.met})
        found = {
            "machine": machine(),
            "clock": "processor" if options.processor else "wall",
            "seconds": round(time.perf_counter() - began),
            "rows": results,
        }
        options.out.write_text(json.dumps(found, indent=1))  # of a run that is stopped, so far
    met = [row["met"] for row in results if row["met"] is not None]
    print(f"{sum(met)} of {len(met)} targets met, {len(met) - sum(met)} missed")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
