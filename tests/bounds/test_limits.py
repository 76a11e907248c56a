"""Inverse questions, against the deviation bound itself."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import THREATS, ledgers, log, value

from rsfl.bounds import (
    ClientThreat,
    FeatureThreat,
    RemovalThreat,
    largest_norm,
    latest_round,
    most_attackers,
)
from rsfl.bounds.limits import _lanes_apart
from rsfl.bounds.poisoning import framed

RADII = np.array([0.0, 1e-6, 1e-3, 0.02, 0.1, 0.5, 3.0, 1e3])


@settings(max_examples=30)
@given(ledgers(), st.sampled_from([one for one in THREATS if isinstance(one, FeatureThreat)]))
def test_largest_norm_is_the_largest(rounds, threat):
    found = largest_norm(rounds, threat, RADII)
    assert (np.diff(found) >= 0).all()
    for radius, norm in zip(RADII, found, strict=True):
        if norm > 0:
            assert value(rounds, replace(threat, norm=norm)) < radius
        if norm < 2.0**400:
            beyond = replace(threat, norm=norm * (1 + 1e-12) + 1e-100)
            assert value(rounds, beyond) >= radius * (1 - 1e-12)
    assert largest_norm(rounds, threat, 0.02) == pytest.approx(found[3], rel=1e-9)


@given(ledgers(), st.sampled_from([one for one in THREATS if one.at_most]))
def test_most_attackers_is_the_largest(rounds, threat):
    found, clients = most_attackers(rounds, threat, RADII), len(rounds[0].participants)
    for radius, most in zip(RADII, found, strict=True):
        if most:
            assert value(rounds, replace(threat, at_most=most)) < radius
        if most + 1 < clients:
            assert value(rounds, replace(threat, at_most=most + 1)) >= radius
    assert found[-1] >= 1
    assert most_attackers(rounds, threat, 0.1) == found[4]


@given(ledgers(), st.sampled_from([one for one in THREATS if not isinstance(one, RemovalThreat)]))
def test_latest_round_is_the_latest(rounds, threat):
    found = latest_round(rounds, threat, RADII)
    single = np.array([value(rounds, replace(threat, rounds=[one.index])) for one in rounds])
    for radius, latest in zip(RADII, found, strict=True):
        assert latest == np.logical_and.accumulate(single < radius).sum()


def test_inverse_questions_refuse_threats_without_that_question():
    with pytest.raises(ValueError, match="must be a FeatureThreat, got ClientThreat"):
        largest_norm(log(), ClientThreat(at_most=1), 0.1)
    with pytest.raises(ValueError, match="unknown set"):
        most_attackers(log(), ClientThreat(clients=[1]), 0.1)
    with pytest.raises(ValueError, match="got RemovalThreat"):
        latest_round(log(), RemovalThreat(at_most=1), 0.1)
    with pytest.raises(ValueError, match=r"radius must lie in \[0, inf\], got -1"):
        most_attackers(log(), RemovalThreat(at_most=1), -1)


def test_a_radius_that_the_bound_reaches_is_not_certified():
    rounds = log(update_clip=9.0)
    for one in THREATS:
        if not isinstance(one, RemovalThreat):
            last = value(rounds, replace(one, rounds=[3]))
            assert latest_round(rounds, one, last) < 3 <= latest_round(rounds, one, last * 1.001)
        if one.at_most and not one.clients:
            alone = value(rounds, replace(one, at_most=1))
            assert most_attackers(rounds, one, alone) == 0
            assert most_attackers(rounds, one, alone * 1.001) == 1


def test_the_latest_round_is_one_before_which_every_round_is_certified():
    # The second round is worth less than the first: it counts only as far as the first does.
    slow, fast = log(1), log(3, server_step=0.25)[1:]
    rounds, threat = [*slow, *fast], ClientThreat(clients=[0])
    rounds = [replace(one, update_clip=9.0) for one in rounds]
    single = [value(rounds, replace(threat, rounds=[t])) for t in (1, 2, 3)]
    assert single[1] < single[2] < single[0]
    assert latest_round(rounds, threat, (single[0] + single[2]) / 2) == 0
    assert latest_round(rounds, threat, single[0] * 1.001) == 3


def test_a_norm_whose_bound_is_the_radius_is_not_promised():
    # At 1 and at 256 the search begins: their bounds are known before anything is closed in on.
    rounds = log(update_clip=9.0)
    for one in THREATS:
        if isinstance(one, FeatureThreat):
            apart = _lanes_apart(framed(rounds, one))
            for norm in (1.0, 256.0):
                reached = value(rounds, replace(one, norm=norm)) * apart
                assert largest_norm(rounds, one, reached) < norm
            assert largest_norm(rounds, one, np.nextafter(reached, np.inf)) >= norm


def test_of_two_clients_one_may_be_removed():
    two = log(clients=2, update_clip=9.0)
    assert most_attackers(two, RemovalThreat(at_most=1), [1e-9, 1e3]).tolist() == [0, 1]
    # a threat's own number is not used
    assert most_attackers(two, RemovalThreat(at_most=2), [1e-9, 1e3]).tolist() == [0, 1]


def test_what_is_found_for_many_radii_is_what_is_found_for_each():
    rounds = log(update_clip=9.0)
    for one in THREATS:
        radii = RADII[::-1]
        if isinstance(one, FeatureThreat):
            each = [largest_norm(rounds, one, radius) for radius in radii]
            np.testing.assert_allclose(largest_norm(rounds, one, radii), each, rtol=1e-9)
        if one.at_most:
            each = [most_attackers(rounds, one, radius) for radius in radii]
            assert most_attackers(rounds, one, radii).tolist() == each
