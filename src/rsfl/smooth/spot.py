"""Whether a model is one function of a single input, as far as a few questions tell."""

from math import inf

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rsfl._models import answered, as_given, evaluating, widened
from rsfl.smooth.inputs import Inputs, joined
from rsfl.smooth.votes import checked_logits, explain

__all__ = ["asked_twice", "disagreement", "probed", "probes", "unanswered"]

_COMPANY = 7
"""Rows that stand beside the one that is asked about: the majority of their batch."""


def probes(x: Tensor) -> Tensor:
    """A few inputs (R, ...) made of one input (1, ...): itself first, then others that a classifier
    is likely to call otherwise. Whole numbers may be the names of things, so these stay as they
    are."""
    if not x.is_floating_point():
        return x
    turned = x.flatten(1).flip(1).view_as(x)
    rolled = x.flatten(1).roll(x[0].numel() // 2, dims=1).view_as(x)
    spread = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype, device=x.device).view_as(x)
    extreme = 1 + x.abs().amax()
    return torch.cat(
        [x, -x, turned, rolled, x + spread * extreme, extreme + 0 * x, -extreme - 0 * x]
    )


def probed(model: nn.Module, x: Tensor | Inputs) -> Tensor | Inputs:
    """The probes of the first of some inputs, as the model gets them. Where a part goes along that
    is not touched, each probe is in the company of the first input's, and then come other inputs
    as they are."""
    if isinstance(x, Tensor):
        return as_given(model, probes(widened(x[:1])))
    rows = as_given(model, probes(widened(x.touched[:1])))
    first = x.under(rows, torch.zeros(len(rows), dtype=torch.int64, device=x.device))
    others = x[torch.arange(1, min(len(x), _COMPANY), device=x.device)]
    return joined([first, others.holding(as_given(model, widened(others.touched)))])


def asked_twice(model: nn.Module, x: Tensor | Inputs, num_classes: int) -> None:
    """Ask about the same input twice, alone, and again in the company of others.

    Args:
        model: Gives logits.
        x: Inputs (R, ...) as the model gets them. The first one is asked about, each other one
            makes the rest of a batch.
        num_classes: Width of the logits.

    Raises:
        ValueError: Answers differ by more than rounding explains.
    """

    def ask(*numbers: int) -> Tensor:
        rows = x[torch.tensor(numbers, device=x.device)]
        try:
            return checked_logits(model(rows), len(rows), num_classes)
        except Exception as error:
            explain(error, x, len(rows))
            raise

    devices = [x.device] if x.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        first = ask(0)
        _compare(first, ask(0), "asked twice about one input")
        for place in range(len(x)):
            company = [place] * _COMPANY
            answer = ask(*company, 0)[-1:] if place % 2 else ask(0, *company)[:1]
            _compare(first, answer, "asked about one input alone and in a batch of others")


def _compare(first: Tensor, second: Tensor, how: str) -> None:
    if (apart := disagreement(first, second)) is not None:
        raise ValueError(
            f"model must be one function of a single input: {how}, it gave logits that differ by "
            f"{apart:.3g}. Chance (dropout), batch statistics or train() inside forward would void "
            f"every certificate; spot_check=False switches this check off"
        )


def disagreement(first: Tensor, second: Tensor) -> float | None:
    """By how much two answers differ, if that is more than rounding explains."""
    both = torch.stack([first.double(), second.double()])
    finite = both.isfinite()
    if not bool((finite[0] == finite[1]).all()):
        return inf
    both = torch.where(finite, both, 0.0)
    difference = (both[0] - both[1]).abs()
    explained = bool((difference <= _rounding(first) * _size(both)).all())
    return None if explained else float(difference.amax())


def _size(both: Tensor) -> Tensor:
    """What the rounding of each logit is a share of: itself, or the two logits that decide. A class
    that is masked by -1e9 excuses no other's differences."""
    leading = both.topk(min(2, both.shape[-1]), dim=-1).values.abs().amax(dim=(0, -1))
    return torch.maximum(both.abs().amax(dim=0), leading[..., None])


def _rounding(logits: Tensor) -> float:
    """What share of a logit's size sums in another order may cost, generously; a GPU may
    multiply float32 with ten bits."""
    if logits.is_cuda and logits.dtype == torch.float32:
        return 0.01
    return float(torch.finfo(logits.dtype).eps ** 0.5) if logits.is_floating_point() else 0.0


def unanswered(model: nn.Module, x: Tensor, names: tuple[str, ...], sigma: float) -> list[str]:
    """The parameters among ``names`` that no logit answers to, each moved alone by noise of sigma
    and of more."""
    values = {name: p.detach() for name, p in model.named_parameters() if name in names}
    draws = torch.Generator().manual_seed(0)
    silent = []
    with evaluating(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
        still = answered(model(x.clone()))
        for name, value in values.items():
            noise = torch.randn(value.shape, generator=draws, dtype=torch.float32)
            noise = noise.to(value.device, value.dtype)
            if not any(
                _differ(still, answered(_moved(model, name, value + scale * noise, x)))
                for scale in (sigma, 1.0, 100.0)
            ):
                silent.append(name)
    return silent


def _moved(model: nn.Module, name: str, value: Tensor, x: Tensor) -> object:
    return functional_call(model, {name: value}, (x.clone(),))


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether some logit is another. NaN, which equals nothing, is no answer."""
    return bool(((one != other) & ~(one.isnan() & other.isnan())).any())
