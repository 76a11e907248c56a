"""Ledgers of runs that were never run, and threats against them."""

import numpy as np
from hypothesis import strategies as st

from rsfl.bounds import (
    ClientThreat,
    ConditionError,
    FeatureThreat,
    ForensicThreat,
    Participant,
    RemovalThreat,
    Round,
    SampleThreat,
    deviation,
)

PLAIN = {
    "aggregator": "mean",
    "model": "linear",
    "dtype": "float64",
    "weights_from": "server",
    "seed": 0,
}
PLAIN_SGD = {"loss": "softmax cross-entropy", "optimizer": "sgd", "momentum": 0.0}

KINDS = {
    "feature": FeatureThreat,
    "sample": SampleThreat,
    "client": ClientThreat,
    "forensic": ForensicThreat,
    "removal": RemovalThreat,
}


def threat(level, **settings):
    """The threat of a level by its name."""
    return KINDS[level](**settings)


def participant(**changes):
    given = {
        "client": 0,
        "weight": 0.25,
        "lr": 0.2,
        "decay": (0.1, 0.1),
        "input_norm": 1.5,
        "batch_sizes": [4, 4, 1],
        **PLAIN_SGD,
        "samples": [0, 1, 2, 3, 4, 5, 6, 7, 8],
        "update_norm": 0.3,
        "gap": 0.05,
    }
    return Participant(**given | changes)


def record(index=1, clients=4, participants=None, **changes):
    everyone = participants or [participant(client=i, weight=1 / clients) for i in range(clients)]
    return Round(
        **{"index": index, "participants": everyone, "broadcast_norm": 1.0} | PLAIN | changes
    )


def log(rounds=3, **changes):
    return [record(t + 1, **changes) for t in range(rounds)]


THREATS = [
    FeatureThreat(clients=[0, 1], norm=0.1, flips=False),
    FeatureThreat(at_most=2, norm=0.1, samples=2, scale=2.0),
    FeatureThreat(clients=[0, 1], norm=0.1, scale=2.0, comparator="scaled"),
    SampleThreat(clients=[0, 1], input_norm=2.0, per_batch=1),
    ClientThreat(at_most=2),
    ForensicThreat(clients=[0, 1]),
    RemovalThreat(clients=[0, 1]),
    RemovalThreat(at_most=2),
]


@st.composite
def settings_of_clients(draw):
    """Participants that meet the conditions, each with its own settings; weights are equal."""
    clients = draw(st.integers(3, 5))
    everyone = []
    for i in range(clients):
        size, lam = draw(st.floats(1, 3)), draw(st.sampled_from([0.0, 0.1, 1.0]))
        everyone.append(
            participant(
                client=i,
                weight=1 / clients,
                input_norm=size,
                decay=(lam, lam),
                lr=draw(st.floats(0.05, 1)) / (lam + size**2 / 2),
                update_norm=draw(st.floats(0, 1)),
                gap=draw(st.floats(0, 0.1)),
            )
        )
    return everyone


@st.composite
def ledgers(draw):
    everyone = draw(settings_of_clients())
    clip = draw(st.sampled_from([np.inf, 1.0, 0.1]))
    return [
        record(
            t + 1,
            participants=everyone,
            broadcast_norm=draw(st.floats(0, 0.1)),
            noise_norm=0.01,
            clip=clip,
            server_step=draw(st.sampled_from([0.5, 1.0])),
            update_clip=60.0,  # above every honest update
        )
        for t in range(draw(st.integers(1, 4)))
    ]


def value(rounds, threat):
    """The bound; inf where the runs could drift so far apart that an honest update would reach the
    clip."""
    try:
        return deviation(rounds, threat).value
    except ConditionError as error:
        if error.condition != "honest-updates-intact":
            raise
        return np.inf
