"""Records refuse what cannot have happened."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from ledgers import participant, record

from rsfl.bounds import Round
from rsfl.bounds.records import columns_of, participants_of


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
        (participant, {"lr": np.inf}, "lr must lie in"),
        (participant, {"momentum": np.inf}, "momentum must lie in"),
        (participant, {"gap": np.inf}, "gap must lie in"),
        (participant, {"decay": (0.0, np.inf)}, "decay must lie in"),
        (record, {"broadcast_norm": np.inf}, "broadcast_norm must lie in"),
        (participant, {"decay": (0.2, 0.1)}, "decay must be the smallest and the largest"),
        (participant, {"decay": 0.1}, "decay must be the smallest and the largest"),
        (participant, {"input_norm": float("nan")}, "input_norm must lie in"),
        (participant, {"input_norm": 0.0}, "input_norm must lie in"),
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
        lambda: record(participants=[participant(), {"client": 7}]),
        lambda: replace(record(), participants=[]),
        lambda: record(sent_hash="0x12"),
        lambda: record(model_hash=12),
        lambda: record(clip_fixed=1),
        lambda: record(dtype=64),
        lambda: participant(client="a"),
    ):
        with pytest.raises(TypeError):
            make()


def columns(**changes):
    kept = [participant(client=0), participant(client=1, samples=None, batch_sizes=[2])]
    gone = participant(client=2, outcome="absent", update_norm=0.0, decay=(0.0, 0.5))
    return columns_of([*kept, gone]) | changes


def test_columns_give_the_participants_back():
    given = [
        participant(client=0),
        participant(client=1, samples=None, batch_sizes=[2], decay=(0.0, 0.5)),
        participant(client=5, outcome="absent", update_norm=0.0, input_norm=np.inf),
    ]
    assert participants_of(columns_of(given)) == tuple(given)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weight": [0.1, 0.2, 1.5]}, ValueError, "weight must lie in"),
        ({"lr": [0.1, 0.0, 0.1]}, ValueError, "lr must lie in"),
        ({"lr": [0.1, np.inf, 0.1]}, ValueError, "lr must lie in"),
        ({"gap": [0.1, np.inf, 0.1]}, ValueError, "gap must lie in"),
        ({"decay": [[0.0, np.inf]] * 3}, ValueError, "decay must lie in"),
        ({"input_norm": [0.0, 1.0, 1.0]}, ValueError, "input_norm must lie in"),
        ({"decay": [[0.1, 0.1], [0.2, 0.1], [0, 0]]}, ValueError, "the smallest and the largest"),
        ({"steps": [3, 1, 2]}, ValueError, "batch_sizes must hold 6 sizes, got 7"),
        ({"samples": [1, 2]}, ValueError, "samples must hold 18 numbers, got 2"),
        ({"outcome": ["used", "used", 3]}, TypeError, "outcome must be texts"),
        ({"loss": [3, "", ""]}, TypeError, "loss must be texts"),
        ({"loss": [""]}, ValueError, "columns must hold 3 entries each, not so .'loss'"),
        ({"outcome": ["used", "late", "absent"]}, ValueError, "outcome must be one of"),
        ({"update_norm": [0.1, 0.1, 0.1]}, ValueError, "update_norm must be 0"),
    ],
)
def test_columns_are_checked_like_participants(change, error, words):
    with pytest.raises(error, match=words):
        participants_of(columns(**change))
    missing = columns()
    del missing["steps"]
    with pytest.raises(ValueError, match=r"columns must hold .'steps'"):
        participants_of(missing)
