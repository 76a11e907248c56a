"""Mutation testing: how many small changes of a module its tests notice.

    python -m benchmarks.mutants src/rsfl/bounds/crfl.py tests/bounds/test_crfl.py ... --sample 50

A mutant is the module with one operator, comparison, constant or function swapped. It is written to
a copy of the package, and the tests run against that copy: what they let pass is printed, for a
test to be written or for ``mutants.txt``, which lists those that change no answer, with the reason.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("mutants.txt")

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
NAMES = {
    "any": "all",
    "all": "any",
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "floor": "ceil",
    "ceil": "floor",
    "argmax": "argmin",
    "log1p": "log",
    "expm1": "exp",
}


def mutations(node: ast.AST) -> Iterator[tuple[str, str, object]]:
    """(what changes, its field, the new value) of one node."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]
        yield f"{type(node.op).__name__} to {other.__name__}", "op", other()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        other = OPERATORS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} to {other.__name__}", "ops", [other(), *node.ops[1:]]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "a sign dropped", "op", ast.UAdd()
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        changed = {0: 1, 1: 2}.get(node.value, node.value * 2)
        yield f"{node.value} to {changed}", "value", changed
        if node.value:
            yield f"{node.value} to 0", "value", 0
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield f"{node.value} to {not node.value}", "value", not node.value
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield f"{node.attr} to {NAMES[node.attr]}", "attr", NAMES[node.attr]
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield f"{node.id} to {NAMES[node.id]}", "id", NAMES[node.id]
    elif isinstance(node, ast.If):
        yield "the condition negated", "test", ast.UnaryOp(ast.Not(), node.test)


def silent(tree: ast.Module) -> set[int]:
    """The nodes whose change is nobody's business: annotations, decorators, errors and their
    texts."""
    quiet: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Raise | ast.JoinedStr):
            parts = [node]
        elif isinstance(node, ast.FunctionDef):
            parts = [*node.decorator_list, *filter(None, [node.returns])]
            parts += [
                one.annotation for one in ast.walk(node.args) if getattr(one, "annotation", 0)
            ]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        quiet |= {id(below) for part in parts for below in ast.walk(part)}
    return quiet


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(description, source) of every mutant of a module."""
    tree = ast.parse(source)
    quiet = silent(tree)
    lines = source.splitlines()
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in quiet:
            continue
        for what, field, value in mutations(node):
            changed = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(changed)) if i == place)
            setattr(target, field, value)
            line = getattr(node, "lineno", 0)
            text = ast.unparse(ast.fix_missing_locations(changed))
            yield f"{what} | {lines[line - 1].strip()}", text


def killed(module: Path, text: str, tests: list[str], copied: Path, seconds: float) -> bool:
    """Whether the tests fail, or do not end, with ``text`` in place of the module."""
    place = copied / module.relative_to(ROOT / "src")
    before = place.read_text()
    place.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(copied), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "-m", "not slow", *tests],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            timeout=seconds,
        )
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        place.write_text(before)


def main() -> None:
    """Kill a sample of the mutants of one module, and print what survives."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="paths or options of pytest")
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=300, help="after which tests count as failed"
    )
    given = parser.parse_args()
    module = given.module.resolve()
    every = list(mutants(module.read_text()))
    chosen = random.Random(given.seed).sample(every, min(given.sample, len(every)))
    known = EQUIVALENT.read_text() if EQUIVALENT.exists() else ""
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "src"
        shutil.copytree(ROOT / "src", copied, ignore=shutil.ignore_patterns("__pycache__"))
        unchanged = module.read_text()
        if killed(module, unchanged, given.tests, copied, given.seconds):
            sys.exit("the tests fail on the module as it is")
        for number, (what, text) in enumerate(chosen):
            entry = f"{module.name}: {what}"
            if entry in known or killed(module, text, given.tests, copied, given.seconds):
                continue
            alive += 1
            print(f"{number}: survived: {entry}", flush=True)
    good = len(chosen) - alive
    print(f"{module.name}: {good} of {len(chosen)} killed or listed ({len(every)} in all)")


if __name__ == "__main__":
    main()
