"""What the checks let through is what it was; what they do not, they name and quote."""

import numpy as np
import pytest
import torch

from rsfl import _checks, bounds


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: bounds.cohen_radius([[0.9], [0.9, 0.8]], sigma=1.0),
            TypeError,
            r"p_a must be a real .*, got \[\[0.9\]",
        ),
        (
            lambda: bounds.cohen_radius(torch.tensor(0.9).bfloat16(), sigma=1.0),
            TypeError,
            "p_a must be .*bfloat16",
        ),
        (
            lambda: bounds.cohen_radius(torch.tensor(0.9, requires_grad=True), sigma=1.0),
            TypeError,
            "p_a must .*True",
        ),
        (
            lambda: bounds.clopper_pearson_lower("10", 10, 0.1),
            TypeError,
            "successes must be a whole number .*, got '10'",
        ),
        (
            lambda: _checks.count("seed", 2**64),
            ValueError,
            r"seed must be a count .* \(and at most 2\*\*53\), got 18446744073709551616",
        ),
        (
            lambda: _checks.count("seed", True),
            TypeError,
            "seed must be a whole number or an array of them, got True",
        ),
        (
            lambda: _checks.number("p", 10**400),
            TypeError,
            "p must be a real number or an array of them, got 1000",
        ),
    ],
)
def test_what_is_refused_is_named_and_quoted(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is float64 here")
def test_nothing_wider_than_float64_is_rounded_in_silence():
    almost = np.longdouble(1) - np.longdouble(2) ** -60
    for call in (
        lambda: bounds.cohen_radius(almost, sigma=1.0),
        lambda: _checks.count("n", almost),
    ):
        with pytest.raises(TypeError, match="must be no wider than float64, which would round it"):
            call()


def test_narrow_and_whole_floats_are_taken():
    assert _checks.counts("n", np.array([1, 60000], dtype=np.float16)).tolist() == [1, 60000]
    assert type(_checks.count("n", np.int16(3))) is type(_checks.count("n", 3.0)) is int
    assert (
        type(_checks.number("p", np.float32(0.25)))
        is type(_checks.number("p", torch.tensor(1)))
        is float
    )
    assert _checks.number("p", 10**30) == 1e30
