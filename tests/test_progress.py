"""Who asked for no progress waits for nothing; who writes to a file gets lines."""

import io
import sys

import pytest
from tqdm import tqdm

from rsfl import _progress, runs
from rsfl._progress import progress


class Lock:
    """A lock that a killed process has left locked."""

    def __getattr__(self, name):
        raise AssertionError("waited for a lock between processes")

    def __enter__(self):
        raise AssertionError("waited for a lock between processes")

    def __exit__(self, *_):
        pass


@pytest.fixture
def dead_lock():
    had = tqdm.__dict__.get("_lock")
    tqdm._lock = Lock()
    yield
    if had is None:
        del tqdm._lock
    else:
        tqdm._lock = had


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.usefixtures("dead_lock")
@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_no_lock_of_other_processes_is_asked_for(monkeypatch, shown, kind):
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(3, shown=shown, what="working", unit="step") as bar:
        for _ in range(3):
            bar.update(1, share=0.5)
    if not shown:
        assert stream.getvalue() == ""
    else:
        assert "3/3" in stream.getvalue()
        assert "share=0.5" in stream.getvalue()


@pytest.mark.usefixtures("dead_lock")
def test_a_run_without_progress_waits_for_nobody(tmp_path):
    from callables import data
    from models import MODELS

    from rsfl.smooth import GaussianSmoother

    smoother = GaussianSmoother(MODELS["staircase"], 0.5, 4)
    certificate, _ = runs.certify(smoother, data()[:2], out=tmp_path, n=50, progress=False)
    assert len(certificate) == 2


def test_a_log_file_gets_a_line_a_minute_and_one_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(10_000, shown=True, what="working", unit="step", initial=100) as bar:
        for _ in range(9_900):
            now[0] += 0.1
            bar.update(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 17  # 990 seconds: sixteen whole minutes and the end
    assert lines[-1] == "working: 10000/10000 (10 step/s)"
    assert "\r" not in stream.getvalue()
    with progress(None, shown=True, what="working"):
        pass
    assert stream.getvalue().splitlines() == lines  # nothing was done, nothing is told
