"""A plugin for pytest that checks every certificate which tests make, as somebody else would:

pytest -p verified tests/smooth tests/runs

Honest certificates raise no alarm. It is run by hand: it takes the tests about twice their time.
"""

import tempfile
from pathlib import Path

from rsfl.smooth import Certificate
from rsfl.verify import verify

ROWS = 25  # of each certificate
checked = 0
alarms = []


def pytest_configure():
    made = Certificate.read_from.__func__

    def read_from(cls, *arguments, **rest):
        certificate = made(cls, *arguments, **rest)
        check(certificate)
        return certificate

    Certificate.read_from = classmethod(read_from)


def check(certificate):
    global checked
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.json"
        try:
            certificate[:ROWS].save(path)
        except (TypeError, ValueError):
            return  # of a law without a name, or of nothing
        checked += 1
        alarms.extend(str(one) for one in verify(path) if one.holds is False)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{checked} certificates checked, {len(alarms)} false alarms")
    for one in alarms[:20]:
        terminalreporter.write_line(one)
