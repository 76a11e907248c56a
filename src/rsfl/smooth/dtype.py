"""The dtypes of smoothing: noise is added with many digits, and the model takes the sum with as many as it has.

The model's own dtype may have few. Rounded before the noise, an input is another one: its certificate is for a ball
around the rounded input, and a perturbed input would be rounded by itself. Rounded after it, the rounding is a part of
the classifier, and the certificate is for the input as it was given.
"""

import torch
from torch import Tensor, nn

__all__ = ["input_dtype", "widened"]


def input_dtype(model: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype of a model's inputs: that of its first floating point parameter, or that of x if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)


def widened(x: Tensor) -> Tensor:
    """``x`` in the dtype in which noise is added to it: float32, or its own if that has more digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
