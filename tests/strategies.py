"""What hypothesis draws: votes, levels, probabilities, scales."""

from hypothesis import strategies as st


def votes(max_trials=100_000):
    """(successes, trials) with every part of the range likely."""
    return st.integers(1, max_trials).flatmap(
        lambda n: st.tuples(
            st.one_of(st.integers(0, n), st.sampled_from([0, 1, n // 2, n - 1, n])), st.just(n)
        )
    )


def alphas():
    return st.floats(-12, -0.4).map(lambda exponent: 10.0**exponent)


def open_probabilities(low=1e-12, high=1 - 1e-12):
    return st.floats(low, high)


def probabilities():
    """All of [0, 1], its ends and their neighbours included."""
    near = st.floats(-16, -1).map(lambda e: 10.0**e)
    return st.one_of(
        st.floats(0, 1), near, near.map(lambda p: 1 - p), st.sampled_from([0.0, 0.5, 1.0])
    )


def scales():
    return st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
