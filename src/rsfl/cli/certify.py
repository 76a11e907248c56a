"""``rsfl certify``: a data set, certified and logged."""

import argparse
import math
import os
import sys
from typing import Any

import torch

from rsfl import runs
from rsfl._models import input_dtype
from rsfl.cli.callables import DTYPES, calling, made, model_on_device
from rsfl.cli.laws import add_law, given_law
from rsfl.orbit import Orbit, Rotations, RotationScalings, Scalings
from rsfl.smooth import OrbitPlan, Smoother, evaluating, floored

__all__ = ["add_to"]


def _certify(args: argparse.Namespace) -> None:
    law = given_law(args)
    model = model_on_device(args)
    first, dataset = runs.peeked(made("data", args.data))
    x, _ = runs.example(first, model)
    one = x[None].to(input_dtype(model, x), copy=True)  # the model may write into it
    with evaluating(model):
        logits = calling(
            f"--model {args.model!r} on an input of shape {tuple(x.shape)}", lambda: model(one)
        )
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(
            f"--model {args.model!r} must give logits (1, K) for one input, got {shape}"
        )
    smoother = Smoother(model, law, logits.shape[1])
    if args.orbit:
        _certify_orbits(args, smoother, dataset)
        return
    rank = int(os.environ.get("RANK", "0"))
    certificate, labels = runs.certify(
        smoother,
        dataset,
        out=args.out,
        n0=args.n0,
        n=args.n,
        alpha=args.alpha,
        radius=args.at_radius,
        seed=args.seed,
        skip=args.skip,
        limit=args.limit,
        batch_size=args.batch_size,
        on_bad=args.on_bad,
        rank=rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        progress=not args.quiet and rank == 0,
    )
    if not args.quiet and len(labels):
        at = args.at_radius or 0
        share = floored(runs.certified_accuracy(certificate, labels, at), 3)
        print(
            f"{len(labels)} inputs in {args.out}, certified accuracy {share} at radius {at}",
            file=sys.stderr,
        )


def _family(args: argparse.Namespace) -> Orbit:
    """The orbit that the options describe."""
    needed = {"rotation": ["angle"], "scaling": ["change"], "rotation-scaling": ["angle", "change"]}
    for name in ("angle", "change"):
        if (getattr(args, name) is not None) != (name in needed[args.orbit]):
            verb = "needs" if name in needed[args.orbit] else "has no"
            raise ValueError(f"--orbit {args.orbit} {verb} --{name}")
    angle = 0.0 if args.angle is None else math.radians(args.angle)
    if args.orbit == "rotation":
        return Rotations(angle)
    if args.orbit == "scaling":
        return Scalings(args.change)
    return RotationScalings(angle, args.change)


def _certify_orbits(args: argparse.Namespace, smoother: Smoother, dataset: Any) -> None:
    """Certify every picture of an orbit, for each input."""
    if args.at_radius is not None or args.n is not None:
        raise ValueError("--orbit spends as many votes as it needs: it has no --n, no --at-radius")
    family = _family(args)
    run = runs.OrbitRun(
        family,
        args.allowance,
        args.alpha,
        OrbitPlan(batch_size=args.batch_size),
        args.seed,
        args.skip,
    )
    certificate, labels = runs.certify_orbits(
        smoother, dataset, run, out=args.out, limit=args.limit, progress=not args.quiet
    )
    if not args.quiet:
        right = (certificate.label.numpy() == labels).mean()
        votes = certificate.votes.double().mean()
        print(
            f"{len(labels)} inputs in {args.out}, certified accuracy {floored(float(right), 3)} "
            f"over {family}, {votes:.0f} votes an input",
            file=sys.stderr,
        )


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, among the others."""
    parser = commands.add_parser(
        "certify",
        help="certify a data set; run again to resume",
        description="Certify a data set and log the votes. Run the same command again to resume. "
        "Under "
        "torchrun (torchrun --nproc-per-node K -m rsfl certify ...) the ranks share the work; "
        "write -n there, torchrun "
        "takes --n for an option of its own.",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="pkg.mod:callable",
        help="returns the model, a torch.nn.Module giving logits",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="pkg.mod:callable",
        help="returns or yields pairs (x, y) of one input each, or returns two tensors of all x "
        "and all y",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the run")
    add_law(parser, "the noise")
    parser.add_argument(
        "-n",
        "--n",
        type=int,
        help=f"votes that bound the probability (default: {Smoother.default_n})",
    )
    parser.add_argument(
        "--n0", type=int, default=100, help="votes that select the class (default: 100)"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.001, help="failure probability per input (default: 0.001)"
    )
    parser.add_argument(
        "--at-radius",
        type=float,
        metavar="R",
        help="ask only whether the radius is at least R, with at most n votes",
    )
    parser.add_argument(
        "--orbit",
        choices=("rotation", "scaling", "rotation-scaling"),
        help="certify every picture of a family, handed in by anybody, with pixel noise",
    )
    parser.add_argument("--angle", type=float, help="largest angle of the orbit, in degrees")
    parser.add_argument("--change", type=float, help="largest change of scale of the orbit")
    parser.add_argument(
        "--allowance",
        type=float,
        default=0.0,
        help="l2 distance that a picture may be from one of the orbit (default: 0)",
    )
    parser.add_argument(
        "--skip", type=int, default=1, metavar="K", help="certify every K-th input (default: 1)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="certify at most N inputs, counted after skipping"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="convert the model, which gets noisy inputs in this type: that is certified",
    )
    parser.add_argument(
        "--device", help="such as cpu, cuda, cuda:1 (default: cuda if there is one)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help="noisy inputs per forward call (default: fitting)",
    )
    parser.add_argument(
        "--on-bad",
        default="raise",
        choices=("raise", "record"),
        help="what to do about an input that cannot be certified: stop, or record why and go on "
        "(default: raise)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_certify)
