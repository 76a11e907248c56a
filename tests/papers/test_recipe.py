"""What the recipes share reads official files and nothing else, and computes nothing twice."""

import gzip
import lzma
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.papers import recipe


@pytest.mark.parametrize(
    ("end", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_idx_reads_what_the_header_says(tmp_path: Path, end: str, pack) -> None:
    data = struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3) + bytes(range(6))
    (tmp_path / f"a{end}").write_bytes(pack(data))
    assert recipe.idx(tmp_path / "a").equal(torch.arange(6, dtype=torch.uint8).view(2, 3))


@pytest.mark.parametrize("data", [b"", b"\0\0\x0d\x01\0\0\0\0", b"\0\0\x08\x01\0\0\0\x02a"])
def test_idx_refuses_other_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match="a must"):
        recipe.idx(tmp_path / "a")


def test_idx_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"images must be there, or the same with \.gz or \.xz"
    ):
        recipe.idx(tmp_path / "images")


def cifar(folder: Path, first: object) -> None:
    (folder / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
        content = {
            b"data": first if name == "data_batch_1" else images,
            b"labels": [3, int(name[-1], 36) % 10],
        }
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=4))


def test_cifar10_is_in_order_and_between_0_and_1(tmp_path: Path) -> None:
    cifar(tmp_path, np.full((2, 3072), 255, dtype=np.uint8))
    x, y, test_x, test_y = recipe.cifar10(tmp_path)
    assert x.shape == (10, 3, 32, 32)
    assert bool((x[:2] == 1).all())
    assert y.tolist() == [3, 1, 3, 2, 3, 3, 3, 4, 3, 5]
    assert float(test_x[0, 0, 0, 7] * 255) == pytest.approx(7)
    assert len(test_y) == 2


def test_cifar10_runs_nothing_that_a_file_names(tmp_path: Path) -> None:
    cifar(tmp_path, Path("a"))
    with pytest.raises(pickle.UnpicklingError, match="pathlib"):
        recipe.cifar10(tmp_path)


def test_numbers_are_computed_once_for_the_same_settings(tmp_path: Path) -> None:
    asked = []

    def compute(value: float):
        return lambda: asked.append(value) or {"value": value}

    assert recipe.once(tmp_path, {"case": 1}, compute(1.5)) == {"value": 1.5}
    assert recipe.once(tmp_path, {"case": 1}, compute(2.5)) == {"value": 1.5}
    assert recipe.once(tmp_path, {"case": 2}, compute(2.5)) == {"value": 2.5}
    assert asked == [1.5, 2.5]


def test_a_failed_computation_leaves_nothing_that_counts(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        recipe.once(tmp_path, {}, lambda: {"value": 1 / 0})
    assert recipe.once(tmp_path, {}, lambda: {"value": 1}) == {"value": 1}


def test_monotone() -> None:
    assert recipe.monotone([1.0, 2.0], rising=True) == "agrees"
    assert (
        recipe.monotone([1.0, 1.0], rising=True) == recipe.monotone([1.0], rising=True) == "differs"
    )


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([(0.3, 0.1), (0.21, 0.1)], "agrees"),
        ([(0.3, 0.1), (0.2, 0.1)], "cannot tell"),  # two errors are not more than two
        ([(0.3, 0.1), (0.0, 0.0)], "cannot tell"),
        ([(0.3, 0.1), (-0.2, 0.1)], "cannot tell"),
        ([(0.3, 0.1), (-0.21, 0.1)], "differs"),
        ([(0.0, 0.1), (-0.21, 0.1)], "differs"),
        ([], "cannot tell"),
    ],
)
def test_a_claim_agrees_if_all_its_gaps_are_positive(
    gaps: list[tuple[float, float]], said: str
) -> None:
    assert recipe.verdict(gaps) == said
    assert [recipe.sure(*gap) for gap in gaps] == [recipe.verdict([gap]) for gap in gaps]


def test_no_recipe_has_words_of_its_own() -> None:
    words = re.compile(r"""["'](agrees|differs|cannot tell|mixed|nothing to tell)\b""")
    for path in Path(recipe.__file__).parent.glob("*.py"):
        found = [] if path.name == "recipe.py" else words.findall(path.read_text())
        assert not found, f"{path.name} words a verdict by itself"


def test_every_recipe_is_run_at_its_smallest_scale() -> None:
    folder = Path(recipe.__file__).parent
    recipes = [path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text()]
    assert len(recipes) > 8
    tests = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    run = [text for text in tests if ".main(" in text and "smoke" in text]
    for name in recipes:
        named = re.compile(rf"import .*\b{name}\b")
        assert any(named.search(text) for text in run), f"{name} is not run at its smallest scale"
