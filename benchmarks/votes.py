"""Votes under noise beside a loop written from the algorithm's text, and beside nothing but the
model's forward calls.

The plain loop is Cohen et al.'s (2019, figure 1 and section 4): one input at a time, batches of 400
in float32, one transfer a batch, counts kept in Python.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.apart import apart
from benchmarks.networks import resnet, small_cnn
from benchmarks.row import Row, ratio, turns
from rsfl import _heap
from rsfl.noise import Gaussian, Law, RoundedGaussian
from rsfl.smooth import GaussianSmoother, Smoother

SIGMA, BATCH = 0.25, 400


def plain_votes(model: nn.Module, x: Tensor, n: int, classes: int = 10) -> np.ndarray:
    """The votes of n noisy copies of one input."""
    counts = np.zeros(classes, dtype=int)
    with torch.no_grad():
        while n > 0:
            size = min(BATCH, n)
            n -= size
            batch = x.repeat((size, 1, 1, 1))
            labels = model(batch + torch.randn_like(batch) * SIGMA).argmax(dim=1).cpu().numpy()
            for label in labels:
                counts[label] += 1
    return counts


def plain_votes_of_all(
    model: nn.Module,
    x: Tensor,
    n: int,
    surroundings: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    with surroundings():
        for one in x:
            plain_votes(model, one, n)


def bfloat16_is_fast() -> bool:
    """Whether the processor multiplies bfloat16 by itself."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def forward_calls(
    model: nn.Module, x: Tensor, rows: int, batch: int, draw: Law | None
) -> Callable[[], None]:
    """As many forward calls as the votes take, the same memory kept; with ``draw``, noise is drawn
    but goes nowhere."""
    shape = (batch, *x.shape[1:])
    inputs = x[:1].expand(shape).clone()
    generator = torch.Generator(x.device)

    def call() -> None:
        with torch.no_grad(), _heap.kept():
            for _ in range(rows // batch):
                if draw is not None:
                    draw.sample(shape, generator=generator, device=x.device)
                model(inputs)

    return call


def rows() -> Iterator[Row]:
    bfloat16 = bfloat16_is_fast()
    for name, network, shape, n, batch, repeats in (
        ("ResNet-20, 3 x 32 x 32", resnet(20), (3, 32, 32), 400, 100, 5),
        ("small CNN, 1 x 28 x 28", small_cnn(), (1, 28, 28), 10_000, 400, 5),
    ):
        model = network.eval()
        x = torch.rand(2, *shape)
        calls: dict[str, Callable[[], object]] = {}
        for dtype in (torch.float32, torch.bfloat16)[: 1 + bfloat16]:
            kind = str(dtype).removeprefix("torch.")
            cast = model
            if dtype == torch.bfloat16:
                cast = copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last)
            smoother, inputs = GaussianSmoother(cast, SIGMA, 10), x.to(dtype)
            calls[kind] = lambda smoother=smoother, x=x, n=n: smoother.votes(x, n)
            calls[f"{kind} forward"] = forward_calls(cast, inputs, 2 * n, batch, None)
            calls[f"{kind} noise"] = forward_calls(cast, inputs, 2 * n, batch, Gaussian(SIGMA))
        with (
            apart(partial(plain_votes_of_all, model, x, n)) as plain,
            apart(partial(plain_votes_of_all, model, x, n, _heap.kept)) as kept,
        ):
            times = turns({"plain": plain, "kept": kept, **calls}, repeats=repeats)
        gain = ratio(times["plain"], times["kept"])
        yield Row(f"{name}: the plain loop, with the heap kept / as it is", gain, "times")
        for kind in ("float32", "bfloat16")[: 1 + bfloat16]:
            target = 2.0 if kind == "float32" else 3.0
            ours, plain = (2 * n / median(times[which]) for which in (kind, "plain"))
            detail = f"{ours:.0f} votes/s, plain {plain:.0f}"
            gain = ratio(times["plain"], times[kind])
            yield Row(
                f"{name}, {kind}: times the plain float32 loop",
                gain,
                "times",
                target,
                detail=detail,
            )
            small = "CNN" in name
            for floor, aimed in (("forward", not small), ("noise", small)):
                over = 100 * (ratio(times[kind], times[f"{kind} {floor}"]) - 1)
                beyond = "the forward calls" if floor == "forward" else "forward calls and drawing"
                yield Row(
                    f"{name}, {kind}: beyond {beyond}",
                    over,
                    "%",
                    5 if aimed else None,
                    at_least=False,
                )

    model, x = resnet(110).eval(), torch.rand(1, 3, 32, 32).mul(255).round().div(255)
    calls = {
        law.__class__.__name__: lambda law=law: Smoother(model, law, 10).votes(x, 200)
        for law in (Gaussian(SIGMA), RoundedGaussian(SIGMA))
    }
    times = turns(calls, repeats=3)
    slower = ratio(times["RoundedGaussian"], times["Gaussian"])
    yield Row(
        "ResNet-110: RoundedGaussian, time over Gaussian's", slower, "times", 2, at_least=False
    )

    tiny, one = GaussianSmoother(nn.Linear(4, 3), SIGMA, 3), torch.rand(1, 4)
    fixed = median(turns({"": lambda: tiny.certify(one, n=1000)}, repeats=100)[""])
    yield Row("one certificate of a linear model of 4 inputs, n = 1000", 1e3 * fixed, "ms")
