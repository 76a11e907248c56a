"""Diffusion models as denoisers: one step of one, in front of a classifier that never saw noise."""

from typing import Any

import torch
from torch import Tensor, nn

from rsfl._checks import choice, number

__all__ = ["DiffusionDenoiser"]


class DiffusionDenoiser(nn.Module):
    r"""One step of a diffusion model that takes noise of one sigma off pixels in [0, 1].

    The model knows :math:`z_t = \sqrt{\bar\alpha_t}\, z + \sqrt{1 - \bar\alpha_t}\, \epsilon` of
    pixels z in [-1, 1]. Noise of sigma on [0, 1] is noise of :math:`2 \sigma` there, so the step is
    the t whose :math:`\sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}` is nearest to that. What the model
    makes of the scaled input is one guess at z, clipped to [-1, 1].

    This is a deterministic function of the noisy input. In front of a classifier the two are one
    model, ``nn.Sequential(denoiser, classifier)``, and what is certified is the two together,
    however well the noise is guessed.

    Args:
        network: Called as ``network(z, t)`` with t (B,) int64. Returns a tensor, or an object with
            ``sample``: (B, C, H, W), or twice as many channels where variances are learned, too.
        alphas: (T,) the products :math:`\bar\alpha_t`, falling, as ``scheduler.alphas_cumprod``.
        sigma: Standard deviation of the noise on pixels in [0, 1].
        predicts: What the network returns: the noise ``epsilon``, the picture ``sample``, or
            ``v_prediction``, :math:`\sqrt{\bar\alpha} \epsilon - \sqrt{1 - \bar\alpha} z`.

    Raises:
        ValueError: alphas are no such products, or hold no noise as large as sigma.

    References:
        Carlini, Tramer, Dvijotham, Rice, Sun and Kolter, (Certified!!) adversarial robustness for
        free!, 2023, section 3.
    """

    alpha: Tensor

    def __init__(
        self, network: nn.Module, alphas: Tensor, sigma: float, *, predicts: str = "epsilon"
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {network!r}")
        self.network = network
        self.sigma = number("sigma", sigma, 0, open_low=True)
        self.predicts = choice("predicts", predicts, ("epsilon", "sample", "v_prediction"))
        products = torch.as_tensor(alphas, dtype=torch.float64)
        falling = products.ndim == 1 and len(products) and bool((products.diff() < 0).all())
        if not falling or not bool(((products > 0) & (products < 1)).all()):
            raise ValueError(
                f"alphas must be falling products in (0, 1), as scheduler.alphas_cumprod, got "
                f"{alphas!r}"
            )
        noise = ((1 - products) / products).sqrt()
        if 2 * self.sigma > 1.05 * float(noise[-1]):
            raise ValueError(
                f"sigma must be at most {float(noise[-1]) / 2:.4g}, half the largest noise of the "
                f"diffusion model, got {self.sigma!r}"
            )
        self.step = int((noise / (2 * self.sigma)).log().abs().argmin())
        self.register_buffer("alpha", products[self.step].float())

    def extra_repr(self) -> str:
        """Which step it is."""
        return f"sigma={self.sigma}, step={self.step}, predicts={self.predicts!r}"

    def forward(self, x: Tensor) -> Tensor:
        """The denoised pixels, in [0, 1]."""
        alpha = self.alpha.to(x.dtype)
        z = alpha.sqrt() * (2 * x - 1)
        steps = torch.full((len(x),), self.step, dtype=torch.int64, device=x.device)
        answer: Any = self.network(z, steps)
        found = answer if isinstance(answer, Tensor) else answer.sample
        wide = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
        if found.shape not in (x.shape, wide):
            raise ValueError(
                f"network must return {tuple(x.shape)}, or {wide} with variances, got "
                f"{tuple(found.shape)}"
            )
        found = found[:, : x.shape[1]]
        if self.predicts == "epsilon":
            clean = (z - (1 - alpha).sqrt() * found) / alpha.sqrt()
        elif self.predicts == "sample":
            clean = found
        else:
            clean = alpha.sqrt() * z - (1 - alpha).sqrt() * found
        return (clean.clamp(-1, 1) + 1) / 2
