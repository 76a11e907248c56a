r"""Deformations: laws of noise over a warp's parameters, so that certificates hold for rotations,
shifts and similar.

A deformation moves the point that each output pixel reads: with parameters :math:`\phi`, the pixel
at :math:`p` shows the input at :math:`p + \nu_\phi(p)`, by one bilinear interpolation. Coordinates
are *half images*: the centres of the corner pixels lie at -1 and 1 on either axis, x to the right
and y down. Zero parameters are the identity.

Smoothing draws noise for the parameters, and a certificate is a distance between parameters. It
speaks of the original input, deformed once (:data:`rsfl.assumptions.ORIGINAL_INPUT`);
:func:`composition_gap` measures what that leaves out, :func:`rsfl.attacks.grid_attack` searches for
parameters that change a prediction.
"""

from rsfl.deform.affine import Affine, Rotation, Scaling, Translation
from rsfl.deform.composition import composition_gap
from rsfl.deform.deformation import Deformation
from rsfl.deform.flow import DCT, PixelFlow

__all__ = [
    "DCT",
    "Affine",
    "Deformation",
    "PixelFlow",
    "Rotation",
    "Scaling",
    "Translation",
    "composition_gap",
]
