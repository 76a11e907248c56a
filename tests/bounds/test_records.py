"""Records refuse what cannot have happened."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from ledgers import participant, record

from rsfl.bounds import Round


def test_a_round_survives_json():
    one = record(
        participants=[participant(weight=1.0, outcome="absent", reason="late", update_norm=0.0)],
        clip=np.inf,
    )
    assert Round.from_dict(json.loads(json.dumps(asdict(one)))) == one


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (participant, {"weight": 1.5}, "weight must lie in"),
        (participant, {"lr": 0.0}, "lr must lie in"),
        (participant, {"decay": (0.2, 0.1)}, "decay must be the smallest and the largest"),
        (participant, {"decay": 0.1}, "decay must be the smallest and the largest"),
        (participant, {"input_norm": float("nan")}, "input_norm must lie in"),
        (participant, {"batch_sizes": []}, "batch_sizes"),
        (participant, {"batch_sizes": [0]}, "batch_sizes must be a count of at least 1"),
        (participant, {"samples": [1, 2]}, "samples must list 9 indices"),
        (participant, {"update_norm": np.inf}, "update_norm must lie in"),
        (participant, {"outcome": "late"}, "outcome must be one of"),
        (
            participant,
            {"outcome": "rejected"},
            "update_norm must be 0 for a client that was rejected, got 0.3",
        ),
        (
            record,
            {"participants": [participant(), participant()]},
            "participants must be different clients",
        ),
        (record, {"clip": 0.0}, "clip must lie in"),
        (record, {"broadcast_norm": -1.0}, "broadcast_norm must lie in"),
        (record, {"weights_from": "me"}, "weights_from must be one of"),
    ],
)
def test_records_refuse_what_cannot_have_happened(make, change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_records_refuse_other_types():
    for make in (
        lambda: record(participants=[{"client": 0}]),
        lambda: record(clip_fixed=1),
        lambda: record(dtype=64),
        lambda: participant(client="a"),
    ):
        with pytest.raises(TypeError):
            make()
