"""Threats refuse contradictions."""

import pytest

from rsfl.bounds import Threat


@pytest.mark.parametrize(
    ("level", "given_", "message"),
    [
        ("pixel", {"clients": [0]}, "level must be one of"),
        ("removal", {}, "either clients or at_most"),
        ("removal", {"clients": [0], "at_most": 1}, "either clients or at_most"),
        (
            "removal",
            {"clients": [0], "rounds": [1]},
            "rounds does not apply at the removal level; leave it out, got",
        ),
        (
            "client",
            {"clients": [0], "norm": 0.1},
            "norm does not apply at the client level; leave it out, got 0.1",
        ),
        ("client", {"clients": [0], "scale": 2.0}, "scale and comparator do not apply"),
        ("feature", {"clients": [0]}, "norm must be given"),
        ("feature", {"clients": [0], "norm": -0.1}, "norm must lie in"),
        ("feature", {"clients": [0, 0], "norm": 0.1}, "clients must be a list of different"),
        (
            "feature",
            {"clients": [0], "norm": 0.1, "scale": (2.0, 1.0)},
            "scale must be one number or a pair",
        ),
        ("feature", {"clients": [0], "norm": 0.1, "share": 0.1, "per_batch": 1}, "at most one"),
        (
            "feature",
            {"clients": [0], "norm": 0.1, "samples": {1: [2]}},
            "samples must name the clients",
        ),
        ("feature", {"at_most": 1, "norm": 0.1, "comparator": "scaled"}, "clients must be named"),
        ("sample", {"clients": [0]}, "input_norm must be given"),
    ],
)
def test_threats_refuse_contradictions(level, given_, message):
    with pytest.raises(ValueError, match=message):
        Threat(level, **given_)
