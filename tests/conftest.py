"""One hypothesis profile for all, reproducible and without deadlines; and the fast paths, to switch
off."""

from contextlib import nullcontext

import pytest
from hypothesis import settings

from rsfl import _heap
from rsfl.fed import stacked, training
from rsfl.smooth import ParameterSmoother, preparation, votes

settings.register_profile(
    "rsfl", deadline=None, derandomize=True, max_examples=100, print_blob=True
)
settings.load_profile("rsfl")

FAST = {
    "heap": (_heap, "kept", nullcontext),  # freed memory goes back to the system
    "wide": (ParameterSmoother, "_way", lambda self, x: "loop"),  # noisy linear models one by one
    "added": (votes, "_adds", lambda law, shape: False),  # noisy inputs are copied into the batch
    "together": (votes, "_TALLIED", 0),  # each batch's votes by themselves
    "fused": (preparation, "_by_onednn", lambda *_: False),  # layers that were joined one by one
    "by hand": (stacked, "_by_hand", lambda *_: None),  # gradients by autograd
    "stacked": (training, "_groups", lambda *_: ()),  # clients one by one
}
"""What is faster than the plain way and must give the same results, and what to put in its
place."""


def pytest_addoption(parser):
    parser.addoption(
        "--without",
        action="append",
        default=[],
        choices=[*FAST, "all"],
        help="do without a fast path",
    )


@pytest.fixture(autouse=True, scope="session")
def _plain(request):
    chosen = request.config.getoption("--without")
    with pytest.MonkeyPatch.context() as patch:
        for name, (owner, attribute, plain) in FAST.items():
            if name in chosen or "all" in chosen:
                patch.setattr(owner, attribute, plain)
        yield


def pytest_collection_modifyitems(config, items):
    chosen = config.getoption("--without")
    for item in items:
        for mark in item.iter_markers("fast"):
            if "all" in chosen or mark.args[0] in chosen:
                item.add_marker(
                    pytest.mark.skip(reason=f"tests the fast path {mark.args[0]!r} itself")
                )
