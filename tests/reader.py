"""A reader of rsfl's certificates in fifty lines of plain Python, written from docs/format.md."""

import json
import math
import sys
import zlib
from pathlib import Path
from statistics import NormalDist


def read(path):
    """The content of a document, if it is as it was written."""
    document = json.loads(Path(path).read_text())
    if document["crc32"] != zlib.crc32(json.dumps(document["content"]).encode()):
        raise ValueError(f"{path}: the checksum does not fit")
    return document["kind"], document["content"]


def lower_bound(votes, n, alpha):
    """Clopper-Pearson: the p at which P[Bin(n, p) >= votes] is alpha, by bisection."""

    def mass(k, p):
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))

    low, high = 0.0, 1.0
    while votes and high - low > 1e-12:
        middle = (low + high) / 2
        tail = sum(mass(k, middle) for k in range(votes, n + 1))
        low, high = (middle, high) if tail < alpha else (low, middle)
    return low


def radius(law, p):
    """The radius of a label whose probability is at least p."""
    if p <= 0.5:
        return 0.0
    if "sigma" in law:
        return law["sigma"] * NormalDist().inv_cdf(p)
    if "half_width" in law:
        return law["half_width"] * (2 * p - 1)
    return -law["scale"] * math.log(2 - 2 * p)


def inputs(content):
    """Index, selected class, votes for it, number of votes and radius of each input."""
    columns = (content[name] for name in ("index", "selection", "counts", "n"))
    for index, selection, counts, n in zip(*columns, strict=True):
        chosen = max(selection, key=lambda label: (selection[label], -int(label)), default="0")
        votes = counts.get(chosen, 0)
        p = lower_bound(votes, n, content.get("alpha", 0.001))
        yield index, int(chosen), votes, n, radius(content["law"], p)


if __name__ == "__main__":
    for row in inputs(read(sys.argv[1])[1]):
        print(*row)
