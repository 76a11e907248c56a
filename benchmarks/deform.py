"""Votes per second under deformations, against Gaussian noise through the same loop: python -m benchmarks.deform"""

import argparse
import math
import time

import torch

from benchmarks.networks import resnet, small_cnn
from rsfl import deform, noise, smooth

LAWS = (
    noise.Gaussian(0.25),
    deform.Rotation(0.1 * math.pi),
    deform.Translation(0.1),
    deform.Scaling(0.1),
    deform.Affine(0.1),
    deform.DCT(0.1, bases=2),
    deform.PixelFlow(0.1),
)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(smoothers: list[smooth.Smoother], x: torch.Tensor, n: int, repeats: int) -> list[float]:
    """Each smoother's best votes per second; the turns alternate, so that a busy machine disturbs all alike."""
    best = [math.inf] * len(smoothers)
    for turn in range(repeats + 1):  # the first warms up
        for i, smoother in enumerate(smoothers):
            synchronize(x.device)
            start = time.perf_counter()
            smoother.votes(x, n)
            synchronize(x.device)
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return [len(x) * n / seconds for seconds in best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--inputs", type=int, default=2)
    parser.add_argument("--n", type=int, help="votes for each input; 500 on a CPU, 100000 elsewhere")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    n = args.n or (500 if device.type == "cpu" else 100_000)
    torch.manual_seed(0)
    networks = {
        "ResNet-20, 3 x 32 x 32": (resnet(20), (3, 32, 32)),
        "ResNet-8, 3 x 32 x 32": (resnet(8), (3, 32, 32)),
        "small CNN, 1 x 28 x 28": (small_cnn(), (1, 28, 28)),
    }
    print(f"{device}, {torch.get_num_threads()} CPU threads, best of {args.repeats}, {args.inputs} inputs x {n} votes")
    for name, (network, shape) in networks.items():
        network.to(device)
        smoothers = [smooth.Smoother(network, law, 10) for law in LAWS]
        measured = rates(smoothers, torch.rand(args.inputs, *shape, device=device), n, args.repeats)
        print(f"\n{name}\n{'law':<14}{'votes / s':>12}{'ratio':>8}")
        for law, rate in zip(LAWS, measured, strict=True):
            print(f"{type(law).__name__:<14}{rate:>12.0f}{rate / measured[0]:>8.2f}")


if __name__ == "__main__":
    main()
