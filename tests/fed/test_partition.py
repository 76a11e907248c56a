"""Partitions: who holds what, in the stated proportions, and fairly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rsfl import fed
from rsfl.fed import partition


@given(samples=st.integers(1, 200), clients=st.integers(1, 50), seed=st.integers(0, 99))
def test_equal_shares_are_disjoint_complete_and_equal(samples, clients, seed):
    if clients > samples:
        with pytest.raises(ValueError, match="clients"):
            partition.equal(samples, clients, seed=seed)
        return
    parts = partition.equal(samples, clients, seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_equal_shares_do_not_follow_the_order_of_the_data():
    labels = np.repeat(np.arange(10), 1000)
    table = [
        np.bincount(labels[part], minlength=10) for part in partition.equal(10_000, 20, seed=3)
    ]
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_major_class_as_published(ratio):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    parts = partition.major_class(labels, 1000, 500, ratio, seed=1)
    assert all(len(np.unique(part)) == 500 for part in parts)
    counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    share = round(ratio * 500)
    if ratio == 0.5:
        major = counts.argmax(axis=1)
        assert (counts.max(axis=1) == share).all()
        # The major class is uniform over the classes, and the rest uniform over the nine others.
        assert stats.chisquare(np.bincount(major, minlength=10)).pvalue > 1e-3
        rest = np.zeros((10, 10))
        for row, own in zip(counts, major, strict=True):
            rest[own] += np.where(np.arange(10) == own, 0, row)
        for own in range(10):
            assert stats.chisquare(np.delete(rest[own], own)).pvalue > 1e-4
    else:
        # A tenth from one of ten classes and the rest from the others: every class alike on
        # average.
        assert (counts == share).any(axis=1).all()
        np.testing.assert_allclose(counts.mean(axis=0), 50, rtol=0.02)
    # No sample is favoured: each is held by 1000 * 500 / 50,000 = 10 devices on average, like a
    # Poisson count.
    held = np.bincount(np.concatenate(parts), minlength=50_000)
    assert held.mean() == 10
    assert abs(held.var() - 10) < 1


def test_major_class_does_not_depend_on_how_many_clients_there_are():
    labels = np.arange(300) % 3
    few, many = (partition.major_class(labels, n, 20, 0.5, seed=7) for n in (3, 9))
    assert all((a == b).all() for a, b in zip(few, many[:3], strict=True))


def test_major_class_refuses_what_it_cannot_give():
    with pytest.raises(ValueError, match="samples must leave 30"):
        partition.major_class(np.arange(100) % 10, 2, 60, 0.5)


@given(
    clients=st.integers(1, 30),
    concentration=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    least=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_dirichlet_is_a_partition_with_enough_for_everyone(clients, concentration, least, seed):
    labels = np.arange(100) % 7
    parts = partition.dirichlet(labels, clients, concentration, min_samples=least, seed=seed)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts)) == list(range(100))
    assert min(map(len, parts)) >= least


def test_dirichlet_shares_follow_the_law():
    labels = np.zeros(10_000, int)
    shares = np.concatenate(
        [
            [len(p) / 10_000 for p in partition.dirichlet(labels, 4, 2.0, min_samples=0, seed=s)]
            for s in range(200)
        ]
    )
    # The marginals of a Dirichlet(2, 2, 2, 2) are Beta(2, 6); the four of one draw are dependent,
    # so one of each.
    assert stats.kstest(shares[::4], stats.beta(2, 6).cdf).pvalue > 1e-3


def test_by_column_and_split():
    parts = partition.by_column(["b", "a", "b", "c", "b"])
    assert [part.tolist() for part in parts] == [[1], [0, 2, 4], [3]]
    kept, aside = partition.split(partition.equal(100, 7), 0.2, seed=1)
    for a, b in zip(kept, aside, strict=True):
        assert not set(a) & set(b)
        assert len(b) == round(0.2 * (len(a) + len(b)))
    assert sorted(np.concatenate(kept + aside)) == list(range(100))


@given(names=st.lists(st.integers(0, 10**6), unique=True, min_size=2, max_size=60), data=st.data())
def test_one_sample_more_or_less_moves_no_other(names, data):
    gone = data.draw(st.sampled_from(names))
    left = [name for name in names if name != gone]
    before = [[names[i] for i in part] for part in partition.by_hash(names, 7, seed=1)]
    after = [[left[i] for i in part] for part in partition.by_hash(left, 7, seed=1)]
    assert after == [[name for name in part if name != gone] for part in before]


def test_hashed_shards_are_even_and_names_of_different_kinds_differ():
    for names in (
        range(7000),
        map(str, range(7000)),
        (bytes([i % 251, i // 251]) for i in range(7000)),
    ):
        sizes = [len(part) for part in partition.by_hash(list(names), 7)]
        assert sum(sizes) == 7000
        assert stats.chisquare(sizes).pvalue > 1e-4
    kinds = [partition.by_hash(names, 1000) for names in ([1], ["1"], [b"1"], ["31"])]
    where = [next(i for i, part in enumerate(parts) if len(part)) for parts in kinds]
    assert len(set(where)) == 4
    with pytest.raises(ValueError, match="names must be one a sample"):
        partition.by_hash([], 3)
    with pytest.raises(ValueError, match=r"names must be whole, got 1\.5"):
        partition.by_hash([1.5], 3)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: partition.equal(0, 1), "samples"),
        (lambda: partition.dirichlet([0, 1], 3, 1.0), "min_samples"),
        (lambda: partition.dirichlet([0, 1], 1, 0.0), "concentration"),
        (lambda: partition.dirichlet([[0]], 1, 1.0), "labels"),
        (lambda: partition.major_class([0, 1], 1, 1, 1.5), "ratio"),
        (lambda: partition.by_column([]), "values"),
        (lambda: partition.split([np.array([3])], 0.5), "parts"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_client_without_samples_is_left_out_by_hand():
    x, y, parts = torch.rand(3, 2), torch.tensor([0, 1, 1]), [[0], [], [1, 2]]
    with pytest.raises(
        ValueError, match=r"got none for client 8: leave it out .* \[fed\.Client\(7 \+"
    ):
        fed.clients(x, y, parts, first=7)
    kept = [fed.Client(7 + k, x, y, indices=part) for k, part in enumerate(parts) if len(part)]
    assert [one.id for one in kept] == [7, 9]
