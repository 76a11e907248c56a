"""Mutation testing: how many small changes of the bounds and of the noise their tests notice.

    python -m benchmarks.mutants --sample 200

A mutant is a module with one operator, comparison, constant or function swapped. A seeded sample of
those of all modules is drawn, and against each the tests of its module run, the quick ones first: a
process that has imported what is heavy forks, and the child imports the mutant in place of the
module. What survives is printed, for a test to be written or for ``mutants.txt``, which lists those
that change no answer or only a safe one, with the reason.
"""

import argparse
import ast
import hashlib
import importlib
import os
import re
import resource
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("mutants.txt")
HEAVY = "numpy scipy.stats scipy.optimize torch hypothesis.extra.numpy mpmath flint pytest"

_TREE = "golden threat condition records scale limits poisoning recursion"
TESTS = {
    "_normal": "radii tradeoff linear",
    "_safe": "radii crfl tradeoff poisoning",
    "attack": _TREE,
    "_tails": "confidence sequential",
    "condition": f"condition {_TREE}",
    "confidence": "confidence",
    "crfl": "crfl",
    "examination": f"condition {_TREE}",
    "frame": _TREE,
    "limits": "golden limits scale",
    "linear": "linear",
    "poisoned": f"threat {_TREE}",
    "poisoning": _TREE,
    "radii": "radii",
    "records": f"records {_TREE}",
    "sequential": "sequential",
    "threat": f"threat {_TREE}",
    "top_two": "confidence",
    "tradeoff": "tradeoff",
    "voting": "voting",
}
"""The tests of each module of the bounds, by the names of their files."""
ELSEWHERE = {"recursion": "tests/verify"}  # where the recursion is derived a second time
NOISE = ("continuous", "law", "pixels", "rounded")
ENCLOSED = {
    "_normal": "quantiles cohen_radius",
    "_safe": "lecuyer_radius cohen_radius",
    "_tails": "clopper_pearson_lower clopper_pearson_upper log_wealth top_two_p_value",
    "confidence": "clopper_pearson_lower clopper_pearson_upper hoeffding",
    "crfl": "kl_budget contraction crfl",
    "linear": "linear",
    "radii": "cohen_radius uniform_radius laplace_radius lecuyer_radius li_radius linf_radius "
    "cohen_tightness uniform_tightness laplace_tightness",
    "rounded": "rounded",
    "sequential": "log_wealth sequential_decision",
    "top_two": "top_two_p_value",
    "voting": "voting",
}
"""What of ``test_rigorous`` is about each module."""


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
        elif isinstance(node, ast.ClassDef):
            parts = [*node.decorator_list]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        quiet |= {id(below) for part in parts for below in ast.walk(part)}
    return quiet


LONG = (
    "bound_holds or stronger_threat or larger_unknown or twenty_digits or billion or of_a_thousand "
    "or ten_million or any_two or harder or order_of or one_pass or more_honest or float_noise_can"
)
"""Tests that take seconds, by what their names hold: only what the others let pass meets them."""


class Mutant(NamedTuple):
    """One change of one module: how it is told, and the module's source with it."""

    module: Path
    name: str
    place: int
    field: str
    value: object

    def source(self) -> str:
        """The module with the change."""
        changed = ast.parse(self.module.read_text())
        target = next(n for i, n in enumerate(ast.walk(changed)) if i == self.place)
        setattr(target, self.field, self.value)
        return ast.unparse(ast.fix_missing_locations(changed))


def mutants(module: Path) -> Iterator[Mutant]:
    """Every mutant of a module. Those of one line that read the same are numbered."""
    source = module.read_text()
    tree, lines, seen = ast.parse(source), source.splitlines(), dict[str, int]()
    quiet = silent(tree)
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in quiet:
            continue
        for what, field, value in mutations(node):
            line = lines[getattr(node, "lineno", 1) - 1].strip()
            name = f"{module.stem}: {what} | {line}"
            seen[name] = seen.get(name, 0) + 1
            yield Mutant(module, f"{name} | {seen[name]}", place, field, value)


def drawn(mutant: Mutant, seed: int) -> str:
    """Its place in the draw of a seed, by its name alone: an edit elsewhere changes no other
    mutant's."""
    return hashlib.sha256(f"{seed} {mutant.name}".encode()).hexdigest()


def tests(module: Path) -> list[str]:
    """What pytest is to run for a module."""
    folder, name = "tests/bounds", module.stem
    chosen = [
        f"{folder}/test_rigorous.py::test_on_the_safe_side_of_the_enclosure[{one}]"
        for one in ENCLOSED.get(name, "").split()
    ]
    files = dict.fromkeys(TESTS.get(name, "").split())
    chosen += [f"{ELSEWHERE.get(one, folder)}/test_{one}.py" for one in files]
    return chosen + ["tests/test_noise.py"] * (name in NOISE)


def child(module: Path, source: str | None, seconds: int, said: int) -> None:
    """Run the tests with ``source`` in place of the module, and end with what pytest says."""
    os.dup2(said, 1)
    os.dup2(said, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # also against endless loops
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
    import hypothesis
    import pytest

    # The first counterexample will do, out of few.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    register = hypothesis.settings.register_profile
    few = {"max_examples": 30, "phases": phases}
    fewer = staticmethod(lambda name, **given: register(name, **{**given, **few}))
    type.__setattr__(hypothesis.settings, "register_profile", fewer)
    plain = SourceFileLoader.get_code

    def code(self: SourceFileLoader, fullname: str) -> object:
        if source is None or Path(self.path) != module:
            return plain(self, fullname)
        return compile(source, self.path, "exec", dont_inherit=True)

    SourceFileLoader.get_code = code  # type: ignore[method-assign, assignment]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = 0
    try:
        for part in (f"not ({LONG})", LONG):
            found = pytest.main([*options, "-k", part, *tests(module)])
            if found not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                status = 1
                break
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def outcomes(
    tasks: list[tuple[str, Path, str | None]], jobs: int, seconds: int
) -> Iterator[tuple[str, str]]:
    """(name, the test that failed or how the process ended, "" if all passed) of every task, as
    they end."""
    waiting, running = list(reversed(tasks)), dict[int, tuple[str, str]]()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, module, source = waiting.pop()
                said, path = tempfile.mkstemp(dir=folder)
                if not (pid := os.fork()):
                    child(module, source, seconds, said)
                os.close(said)
                running[pid] = name, path
            pid, status = os.wait()
            name, path = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", Path(path).read_text(), re.MULTILINE)
            yield name, "" if code == 0 else failed[1] if failed else f"ended with {code}"
            os.unlink(path)


def main() -> None:
    """Kill a sample of all mutants, and print what survives."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="by name; without any, all that have tests here")
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="a text that the mutants' names hold")
    parser.add_argument("--seconds", type=int, default=120, help="after which tests have failed")
    parser.add_argument("--unchecked", action="store_true", help="do not run unchanged modules")
    given = parser.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT / "src"))
    for name in HEAVY.split():
        importlib.import_module(name)
    package = ROOT / "src/rsfl"
    modules = [
        package / ("noise" if name in NOISE else "bounds") / f"{name}.py"
        for name in given.modules or [*TESTS, *NOISE]
    ]
    every = [one for module in modules for one in mutants(module)]
    chosen = sorted(every, key=lambda one: drawn(one, given.seed))[: given.sample]
    chosen = [one for one in chosen if given.only in one.name]
    listed = EQUIVALENT.read_text() if EQUIVALENT.exists() else ""
    todo = [one for one in chosen if f"\n{one.name}\n" not in listed]
    whole = [] if given.unchecked else sorted({one.module for one in todo})
    for name, why in outcomes([(str(m), m, None) for m in whole], given.jobs, given.seconds):
        if why:
            sys.exit(f"the tests fail on the module as it is: {name}, {why}")
    alive = 0
    tasks = [(one.name, one.module, one.source()) for one in todo]
    for number, (name, why) in enumerate(outcomes(tasks, given.jobs, given.seconds)):
        alive += not why
        print(f"{number}: {'killed  ' if why else 'SURVIVED'} {name} | {why}", flush=True)
    print(
        f"{len(todo) - alive} of {len(chosen)} mutants killed, {len(chosen) - len(todo)} listed as "
        f"equivalent, {alive} survived ({len(every)} in all)"
    )


if __name__ == "__main__":
    main()
