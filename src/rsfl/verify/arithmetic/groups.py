"""Votes of groups of clients."""

from collections.abc import Sequence

__all__ = ["group_votes"]


def group_votes(votes: Sequence[int]) -> tuple[int, int]:
    """The label of a vote among groups, and the most groups that may be replaced by any others
    without changing it, by trying.

    Args:
        votes: Votes of the groups for each label.
    """

    def winner(counts: Sequence[int]) -> int:
        return max(range(len(counts)), key=lambda label: (counts[label], -label))

    label = winner(votes)
    for replaced in range(1, votes[label] + 1):
        for rival in range(len(votes)):
            moved = list(votes)
            moved[label] -= replaced
            moved[rival] += replaced
            if rival != label and winner(moved) != label:
                return label, replaced - 1
    return label, votes[label]
