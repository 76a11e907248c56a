"""A plugin for pytest that checks every certificate which tests make, as somebody else would:

pytest -p verified tests/smooth tests/runs

Honest certificates raise no alarm. It is run by hand: it takes the tests about twice their time.
With ``-n`` each process checks its own, and the numbers are added up.
"""

import functools
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from rsfl import fed, smooth
from rsfl.fed import certificate as poisoning
from rsfl.smooth import exact
from rsfl.verify import verify

ROWS = 25  # of each certificate
LARGEST = 2000  # participants of all rounds of a ledger that is held against a certificate
checked: Counter[str] = Counter()
alarms = []
now = ""


def pytest_configure():
    watch(smooth.Certificate, "read_from")
    watch(smooth.OrbitBallot, "certificate")
    watch(smooth.JointBallot, "certificate")
    watch(smooth.DualSmoother, "certify")
    watch(fed.GroupVote, "certify")
    watch(exact, "_certificate")
    watch(poisoning, "_held", ledger=1)


def watch(owner, name, ledger=None):
    """Check what this function or method returns; its argument ``ledger`` goes with it."""
    there = vars(owner)[name]
    made = getattr(there, "__func__", there)

    @functools.wraps(made)
    def wrapper(*arguments, **rest):
        found = made(*arguments, **rest)
        check(found, None if ledger is None else arguments[ledger])
        return found

    setattr(owner, name, classmethod(wrapper) if isinstance(there, classmethod) else wrapper)


def check(certificate, ledger):
    rows = certificate[:ROWS] if hasattr(type(certificate), "__getitem__") else certificate
    if ledger is not None:
        if not isinstance(ledger, fed.Ledger):
            return  # bare rounds, of which no file is written
        if sum(len(one.participants) for one in ledger.rounds) > LARGEST:
            return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "c.json"]
        try:
            rows.save(paths[0])
        except (TypeError, ValueError):
            return  # of a law without a name, or of nothing
        if ledger is not None:
            paths.append(Path(folder) / "ledger.json")
            ledger.save(paths[1])
        checked[type(certificate).__name__] += 1
        found = [str(one) for one in verify(*paths) if one.holds is False]
        alarms.extend(f"{now}: {one}" for one in found)


def pytest_runtest_setup(item):
    global now
    now = item.nodeid


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["verified"] = dict(checked), alarms


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    number, found = getattr(node, "workeroutput", {}).get("verified", ({}, []))
    checked.update(number)
    alarms.extend(found)


def pytest_terminal_summary(terminalreporter):
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(checked.items()))
    total = checked.total()
    terminalreporter.write_line(
        f"{total} certificates checked, {len(alarms)} false alarms: {kinds}"
    )
    for one in alarms[:40]:
        terminalreporter.write_line(one)
