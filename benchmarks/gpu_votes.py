"""Votes on a GPU: ``python -m benchmarks.gpu_votes``, a few minutes; needs CUDA.

ResNet-110 on CIFAR-10 shapes in bfloat16, channels last, n = 100,000 votes an image: images a
second, the share of the bare forward pass of the same dtype, layout and batch, and how many times
the plain loop (one input at a time, batches of 400 in float32, one transfer a batch). The forward
pass runs as written, compiled, and captured as a graph; votes are compared with the bare pass of
the same kind. A small network on 28 x 28 beside it: one input, eight, and a thousand with 100 votes
each. Prints the GPU's name and writes JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.networks import resnet, small_cnn
from benchmarks.row import Row, ratio, turns
from benchmarks.votes import SIGMA, plain_votes
from rsfl.noise import Gaussian, RoundedGaussian
from rsfl.smooth import GaussianSmoother, Smoother
from rsfl.smooth.votes import count_votes


class Captured(nn.Module):
    """A model whose forward pass for one shape is captured as a CUDA graph; other shapes run as
    they are."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.model, self.input = model, example.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):
                model(self.input)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.output = model(self.input)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self.input.shape:
            logits: Tensor = self.model(x)
            return logits
        self.input.copy_(x)
        self.graph.replay()
        return self.output


def finished(call: Callable[[], object]) -> Callable[[], None]:
    """The call, until the device is done with it."""

    def waits() -> None:
        call()
        torch.cuda.synchronize()

    return waits


def host_waits(smoother: Smoother, x: Tensor, batch: int) -> bool:
    """Whether counting votes makes the host wait for the device, once the first call has set
    everything up."""
    smoother.votes(x, 2 * batch, batch_size=batch)
    index = torch.arange(len(x))
    torch.cuda.set_sync_debug_mode("error")
    try:
        count_votes(
            smoother.model,
            smoother.law,
            x,
            smoother.num_classes,
            start=0,
            stop=2 * batch,
            seed=1,
            index=index,
            batch_size=batch,
        )
    except RuntimeError as error:
        print(f"the host waits: {error}")
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def measured(batch: int, n: int) -> list[Row]:
    torch.manual_seed(0)
    plain = resnet(110).cuda().eval()
    model = resnet(110).cuda().eval()
    model.load_state_dict(plain.state_dict())
    model = model.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    image = torch.rand(1, 3, 32, 32, device="cuda").mul(255).round().div(255)
    example = (
        image.bfloat16().expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    )
    forwards: dict[str, nn.Module] = {
        "as written": model,
        "compiled": torch.compile(model),
        "captured": Captured(model, example),
    }
    rows_a_call = max(1, n // batch) * batch
    calls: dict[str, Callable[[], None]] = {
        "plain": finished(lambda: plain_votes(plain, image[0], 4000))
    }
    for kind, forward in forwards.items():

        def bare(forward: nn.Module = forward) -> None:
            with torch.no_grad():
                for _ in range(rows_a_call // batch):
                    forward(example)

        smoother = GaussianSmoother(forward, SIGMA, 10)
        calls[f"bare {kind}"] = finished(bare)
        calls[f"votes {kind}"] = finished(
            lambda smoother=smoother: smoother.votes(image, rows_a_call, batch_size=batch)
        )
    pair = {
        law.__class__.__name__: finished(
            lambda law=law: Smoother(plain, law, 10).votes(
                image, rows_a_call // 4, batch_size=batch
            )
        )
        for law in (Gaussian(SIGMA), RoundedGaussian(SIGMA))
    }
    torch.cuda.reset_peak_memory_stats()
    times = turns(calls, repeats=3)
    peak = torch.cuda.max_memory_allocated() / 2**30
    found = []
    for kind in forwards:
        taken = times[f"votes {kind}"]
        images = 1 / median(taken) * rows_a_call / 100_000
        detail = f"{rows_a_call / median(taken):.0f} votes/s"
        found.append(
            Row(f"{kind}: images a second at n = 100,000", images, "images/s", detail=detail)
        )
        share = ratio(times[f"bare {kind}"], taken)
        found.append(Row(f"{kind}: throughput over the bare forward pass", share, "times", 0.95))
        found.append(
            Row(
                f"{kind}: times the plain loop",
                ratio(times["plain"], taken) * rows_a_call / 4000,
                "times",
                8,
            )
        )
    laws = turns(pair, repeats=3)
    slower = ratio(laws["RoundedGaussian"], laws["Gaussian"])
    found.append(
        Row("RoundedGaussian, float32: time over Gaussian's", slower, "times", 2, at_least=False)
    )
    waits = float(host_waits(GaussianSmoother(model, SIGMA, 10), image, 200))
    found.append(Row("host waits inside the loop", waits, "(0 or 1)", 0, at_least=False))
    found.append(Row("peak memory", peak, "GiB"))
    return found


def measured_small(n: int) -> list[Row]:
    """A network of two small convolutions on 28 x 28, in float32: what the host has to launch for
    each block of votes is the likely limit."""
    torch.manual_seed(0)
    model = small_cnn().cuda().eval()
    x = torch.rand(8, 1, 28, 28, device="cuda")
    smoother = GaussianSmoother(model, SIGMA, 10)
    batch = 50_000
    example = x[:1].expand(batch, -1, -1, -1).contiguous()

    def bare() -> None:
        with torch.no_grad():
            for _ in range(max(1, n * len(x) // batch)):
                model(example)

    few, many = x[:1], torch.rand(1000, 1, 28, 28, device="cuda")
    times = turns(
        {
            "plain": finished(lambda: plain_votes(model, few[0], n // 10)),
            "bare": finished(bare),
            "eight": finished(lambda: smoother.votes(x, n)),
            "one": finished(lambda: smoother.votes(few, n)),
            "many": finished(lambda: smoother.votes(many, 100)),
        },
        repeats=3,
    )
    speed = {"eight": n * len(x), "one": n, "many": 100 * len(many)}
    found = []
    for name, votes in speed.items():
        taken = median(times[name])
        found.append(Row(f"small network, {name}: votes", votes / taken, "votes/s"))
        found.append(
            Row(
                f"small network, {name}: times the plain loop",
                votes / taken / (n // 10 / median(times["plain"])),
                "times",
                8,
            )
        )
    share = ratio(times["bare"], times["eight"])
    found.append(Row("small network, eight: throughput over the bare forward pass", share, "times"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_votes", description=__doc__)
    parser.add_argument("--batch", type=int, default=20_000, help="noisy images per forward call")
    parser.add_argument("--small", action="store_true", help="the small network alone")
    parser.add_argument("--n", type=int, default=100_000, help="votes timed")
    parser.add_argument(
        "--out", type=Path, default=Path("build/benchmarks-gpu.json"), help="JSON file to write"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("python -m benchmarks.gpu_votes needs a CUDA device, and PyTorch sees none here.")
    here = machine()
    print(f"{here['gpu']}, torch {here['torch']}, {here['date']}, batches of {options.batch}")
    found = measured_small(options.n)
    if not options.small:
        found += measured(options.batch, options.n)
    for row in found:
        print(row, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"machine": here, "rows": [asdict(row) | {"met": row.met} for row in found]})
    )
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
