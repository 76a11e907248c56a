"""Dependencies run one way, and importing rsfl does nothing but define names."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rsfl

SOURCE = Path(rsfl.__file__).parent
CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
ORDER = re.findall(r"`(\w+)` *[<.]", CONTRIBUTING.split("Where things go")[1].split("\n\n")[0])
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> list[str]:
    """The modules that a file imports anywhere in it, as dotted names; ``from a import b`` gives
    a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import, write rsfl.{node.module}"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_arrow_runs_back(path):
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        if name.startswith("rsfl."):
            there = name.split(".")[1]
            assert there in ORDER, f"{path}: {name} is in no known room"
            assert here == there or ORDER.index(there) < ORDER.index(here), (
                f"{path}: {here} imports {name}"
            )
        if here in ("_checks", "bounds"):
            assert name.split(".")[0] != "torch", f"{path}: bounds are numbers in, numbers out"


def file_of(name: str) -> Path | None:
    """The file of this library that an imported name is in; None for another library's."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        inside = SOURCE.parent.joinpath(*parts[:length])
        for path in (inside.with_suffix(".py"), inside / "__init__.py"):
            if path in FILES:
                return path
    return None


def circle(arrows: dict[Path, set[Path]]) -> list[Path]:
    """Files that import one another in a circle, if there are any."""
    done: set[Path] = set()

    def walked(path: Path, way: list[Path]) -> list[Path]:
        if path in way:
            return way[way.index(path) :]
        if path in done:
            return []
        for there in sorted(arrows[path]):
            if found := walked(there, [*way, path]):
                return found
        done.add(path)
        return []

    return next((found for path in arrows if (found := walked(path, []))), [])


def test_no_files_import_one_another_in_a_circle():
    """Not even for the types' sake: what two files need is below both."""
    arrows = {
        path: {there for name in imports(path) if (there := file_of(name)) and there != path}
        for path in FILES
    }
    assert sum(map(len, arrows.values())) > 4 * len(FILES), "arrows are not found"
    found = circle(arrows)
    assert not found, " -> ".join(str(path.relative_to(SOURCE)) for path in found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_other_rooms_are_known_by_their_faces(path):
    for name in imports(path):
        there, *inside = name.removeprefix("rsfl.").split(".")
        if not name.startswith("rsfl.") or there.startswith("_") or there == room(path):
            continue
        assert len(inside) <= 1, f"{path}: {name} is inside of another room"
        if inside and (SOURCE / there).is_dir():
            assert inside[0] in importlib.import_module(f"rsfl.{there}").__all__, (
                f"{path}: {name} is not in the room's face"
            )


def test_the_order_names_every_room():
    assert {room(path) for path in FILES} - {"__init__", "__main__"} <= set(ORDER)


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in FILES}), ids=lambda folder: folder.name
)
def test_no_public_name_hides_a_module(folder):
    package = importlib.import_module(".".join(folder.relative_to(SOURCE.parent).parts))
    for module in pkgutil.iter_modules([str(folder)]):
        assert isinstance(getattr(package, module.name, package), ModuleType), (
            f"{module.name} is something else too"
        )


HEAVY = ["matplotlib", "statsmodels", "sklearn", "flwr", "ray", "pandas", "flint"]


def test_import_is_clean():
    code = f"""
import random, sys
import numpy, torch
def states():
    return (
        repr(numpy.random.get_state()), random.getstate(), torch.get_default_device(),
        torch.get_rng_state().tolist(),
    )
before = states()
import rsfl
from rsfl import *
assert before == states(), "importing rsfl seeded something"
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_subpackages_come_when_asked_for():
    code = """
import sys
import rsfl
assert "rsfl.bounds" not in sys.modules and "scipy" not in sys.modules
assert rsfl.bounds.cohen_radius(0.9, sigma=1.0) > 1
assert "rsfl.fed" not in sys.modules
assert set(rsfl.__all__) <= set(dir(rsfl))
try:
    rsfl.bound
except AttributeError as error:
    assert str(error) == "module 'rsfl' has no attribute 'bound'"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
