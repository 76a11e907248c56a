"""Votes under noise beside a loop written from the algorithm's text, and beside nothing but the
model's forward calls.

The plain loop is Cohen et al.'s (2019, figure 1 and section 4): one input at a time, batches of 400
in float32, one transfer a batch, counts kept in Python.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.apart import PEERS, apart, elsewhere
from benchmarks.networks import resnet, small_cnn
from benchmarks.row import Row, ratio, turns
from rsfl import _heap
from rsfl.noise import Gaussian, Law, RoundedGaussian
from rsfl.smooth import GaussianSmoother, Smoother, prepared

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
    kinds = ("float32", "bfloat16")[: 1 + bfloat16_is_fast()]
    for name, told, network, shape, n, batch, last, targets in (
        ("ResNet-20, 3 x 32 x 32", "resnet20", resnet(20), (3, 32, 32), 400, 100, True, (2.5, 4)),
        ("small CNN, 1 x 28 x 28", "cnn", small_cnn(), (1, 28, 28), 10_000, 200, False, (2, 3)),
    ):
        model, x = network.eval(), torch.rand(2, *shape)
        forms: dict[str, nn.Module] = {"as written, float32": model}
        for kind in kinds:
            dtype = getattr(torch, kind)
            forms[f"prepared, {kind}"] = prepared(model, x, dtype=dtype, channels_last=last)
        calls: dict[str, Callable[[], object]] = {}
        for form, cast in forms.items():
            smoother, inputs = (
                GaussianSmoother(cast, SIGMA, 10),
                x.to(next(cast.parameters()).dtype),
            )
            calls[form] = lambda smoother=smoother, x=x, n=n: smoother.votes(x, n)
            calls[f"{form} forward"] = forward_calls(cast, inputs, 2 * n, batch, None)
            calls[f"{form} noise"] = forward_calls(cast, inputs, 2 * n, batch, Gaussian(SIGMA))
        with (
            apart(partial(plain_votes_of_all, model, x, n)) as plain,
            apart(partial(plain_votes_of_all, model, x, n, _heap.kept)) as kept,
            elsewhere("benchmarks.art", told, 2 * n, torch.get_num_threads())
            if PEERS.exists()
            else nullcontext() as art,
        ):
            calls |= {"plain": plain, "kept": kept} | ({"art": art} if art else {})
            times = turns(calls, repeats=5)
        pace = {which: 2 * n / median(taken) for which, taken in times.items()}
        yield Row(f"{name}: the plain loop", pace["plain"], "votes/s")
        gain = ratio(times["plain"], times["kept"])
        yield Row(f"{name}: the plain loop, with the heap kept / as it is", gain, "times")
        if art:
            yield Row(f"{name}: IBM ART", pace["art"], "votes/s")
        else:
            print(f"(no {PEERS}: make bench makes it, for the rows of IBM ART)")
        for form in forms:
            yield Row(f"{name}, {form}: votes", pace[form], "votes/s")
            yield Row(f"{name}, {form}: bare forward pass", pace[f"{form} forward"], "votes/s")
            ready = form.startswith("prepared")
            aim = targets[form.endswith("bfloat16")] if ready else None
            gain = ratio(times["plain"], times[form])
            yield Row(f"{name}, {form}: times the plain float32 loop", gain, "times", aim)
            if art:
                gain = ratio(times["art"], times[form])
                yield Row(f"{name}, {form}: times IBM ART", gain, "times")
            for floor, beyond in (
                ("forward", "the forward calls"),
                ("noise", "forward calls and drawing"),
            ):
                over = 100 * (ratio(times[form], times[f"{form} {floor}"]) - 1)
                aim = 15 if (told, floor, ready) == ("cnn", "noise", False) else None
                yield Row(f"{name}, {form}: beyond {beyond}", over, "%", aim, at_least=False)

    model, x = small_cnn().eval(), torch.rand(1000, 1, 28, 28)
    smoother = GaussianSmoother(model, SIGMA, 10)
    for inputs, n in ((1000, 100), (100, 1000), (1, 100_000)):
        calls = {
            "votes": lambda inputs=inputs, n=n: smoother.votes(x[:inputs], n),
            "floor": forward_calls(model, x, 100_000, 200, Gaussian(SIGMA)),
        }
        times = turns(calls, repeats=3)
        over = 100 * (ratio(times["votes"], times["floor"]) - 1)
        name = f"small CNN, {inputs} x {n} votes: beyond forward calls and drawing"
        yield Row(name, over, "%", 15, at_least=False)

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
    name = "one certificate of a linear model of 4 inputs, n = 1000"
    yield Row(name, 1e3 * fixed, "ms", 1, at_least=False)
