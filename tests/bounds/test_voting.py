"""Group voting against every way in which malicious clients could vote."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsfl.bounds.voting import group_votes


def survives(ballots, labels, corrupted):
    """Whether no choice of that many groups and of their votes changes the label."""
    label = np.bincount(ballots, minlength=labels).argmax()
    for groups in combinations(range(len(ballots)), corrupted):
        for votes in product(range(labels), repeat=corrupted):
            forged = np.array(ballots)
            forged[list(groups)] = votes
            if np.bincount(forged, minlength=labels).argmax() != label:
                return False
    return True


@pytest.mark.parametrize(
    ("groups", "labels"), [(1, 2), (2, 2), (3, 2), (6, 2), (7, 2), (4, 3), (5, 3), (6, 3), (5, 4)]
)
def test_count_is_exact_over_all_corruptions(groups, labels):
    for ballots in combinations_of_votes(groups, labels):
        label, most = group_votes(np.bincount(ballots, minlength=labels))
        assert label == np.bincount(ballots, minlength=labels).argmax()
        assert survives(ballots, labels, int(most))
        assert not survives(ballots, labels, int(most) + 1)


def combinations_of_votes(groups, labels):
    """Every ballot up to the order of the groups, which does not matter."""
    return [b for b in product(range(labels), repeat=groups) if list(b) == sorted(b)]


@given(
    st.lists(
        st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any), min_size=1, max_size=5
    )
)
def test_rows_are_independent(votes):
    labels, most = group_votes(votes)
    for row, label, count in zip(votes, labels, most, strict=True):
        assert (label, count) == group_votes(row)
        assert 0 <= count <= sum(row) // 2


def test_ties_go_to_the_smaller_label():
    assert group_votes([0, 3, 3]) == (1, 0)
    assert group_votes([3, 0, 4]) == (2, 0)
    assert group_votes([3, 0, 5]) == (2, 0)
    assert group_votes([5, 0, 3]) == (0, 1)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([3], "at least 2 labels"),
        (3, "at least 2 labels"),
        ([[1, 2], [0, 0]], "at least one vote"),
        ([1, -1], "got -1 at index 1"),
        ([1, 0.5], "must be whole, got 0.5"),
    ],
)
def test_bad_votes_are_refused(votes, message):
    with pytest.raises(ValueError, match=message):
        group_votes(votes)
