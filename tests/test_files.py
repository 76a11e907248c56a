"""Files are replaced whole, however many processes write them at once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from rsfl import _checkpoint, _document
from rsfl._files import replaced

LARGE = 200_000


def write(path: str, who: int) -> None:
    for turn in range(5):
        _document.write(path, "note", 1, {"who": who, "turn": turn, "text": str(who) * LARGE})


def test_many_processes_write_one_file(tmp_path):
    path = tmp_path / "note.json"
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(8, mp_context=context) as pool:
        for done in [pool.submit(write, str(path), who) for who in range(8)]:
            done.result()
    found = _document.read(path, "note", 1)
    assert found["text"] == str(found["who"]) * LARGE
    assert [left.name for left in tmp_path.iterdir()] == ["note.json"]


def test_threads_of_one_process_write_one_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "note"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda who: replaced(path, bytes([who]) * LARGE), range(200)))
    content = path.read_bytes()
    assert content == content[:1] * LARGE


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path: Path = tmp_path / "note"
    replaced(path, b"before")
    monkeypatch.setattr("rsfl._files.appended", lambda *_: (_ for _ in ()).throw(OSError(28, "no")))
    with pytest.raises(OSError, match="no"):
        replaced(path, b"after")
    assert path.read_bytes() == b"before"
    assert [left.name for left in tmp_path.iterdir()] == ["note"]


def test_a_checkpoint_from_a_gpu_is_read_where_there_is_none(tmp_path, monkeypatch):
    tensors = {"weight": torch.arange(3.0)}
    with monkeypatch.context() as there:
        there.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        _checkpoint.write(tmp_path / "c", tensors)
    assert torch.equal(_checkpoint.read(tmp_path / "c")["weight"], tensors["weight"])
