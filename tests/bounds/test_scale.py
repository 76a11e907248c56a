"""Ledgers of many clients and rounds are bounded in seconds."""

import time

import numpy as np
import pytest
from ledgers import THREATS, participant, record, threat

from rsfl.bounds import deviation, largest_norm, most_attackers


@pytest.fixture(scope="module")
def many():
    """30 rounds of 300 clients, each with settings of its own."""
    rng = np.random.default_rng(0)
    size = rng.uniform(1, 1.5, 300)
    return [
        record(
            t + 1,
            participants=[
                participant(
                    client=i,
                    weight=1 / 300,
                    input_norm=size[i],
                    lr=0.5,
                    update_norm=rng.uniform(0, 0.3),
                    gap=rng.uniform(0, 1e-4),
                    batch_sizes=[9],
                )
                for i in range(300)
            ],
            update_clip=2.0,
        )
        for t in range(30)
    ]


def test_one_pass_over_the_ledger_answers_many_questions(many):
    """Against the same questions one by one; a tenth of the size that the documentation speaks
    of."""
    began = time.perf_counter()
    for one in THREATS:
        if getattr(one, "samples", None) is None and getattr(one, "comparator", "") != "scaled":
            deviation(many, one)
    stated = threat("feature", at_most=2, norm=0.1, per_batch=1)
    radii = np.geomspace(1e-3, 1, 60)
    norms = largest_norm(many, stated, radii)
    most = most_attackers(many, threat("removal", at_most=1), radii)
    assert time.perf_counter() - began < 30  # 2 s on one core that has nothing else to do
    for at in (10, 35):
        alone = threat("feature", at_most=2, norm=max(norms[at], 1e-12), per_batch=1)
        assert norms[at] == 0 or deviation(many, alone).value < radii[at]
        if most[at]:
            removed = threat("removal", at_most=int(most[at]))
            assert deviation(many, removed).value < radii[at]
    assert (np.diff(norms) >= 0).all()
    assert (np.diff(most) >= 0).all()
    assert norms[-1] > 0
    assert most[-1] > most[0]
