r"""Orbits: all pictures that a transformation makes of one image, and how far apart two of them can
be.

An orbit is a family of pictures :math:`T(x, t)`, with :math:`t` in a box of one or two parameters:
the image turned by every angle of an interval, say. A certificate for all of them
(:meth:`rsfl.smooth.Smoother.certify_orbit`) needs one number that no sampling gives: between the
parameters that were looked at lie infinitely many others, and none of their pictures may be farther
away than is said. A :class:`Mesh` cuts the box into cells and bounds that, without votes and
without chance.

The picture meant is one bilinear interpolation of the original, by the warp of :mod:`rsfl.deform`,
on real numbers or as the library computes it: what its rounding may change is in the bound.

The bound: along one parameter, a pixel's value is a curve with a slope between a and b, and no such
curve leaves the straight line between its ends by more than (b - a) / 4 times the cell's width.
Inside one square of four pixels the slope hardly changes; where the point that is read crosses into
the next one it jumps, and few do so in a small cell. So a picture of the cell lies this little away
from a mixture of the pictures at its corners, and no mixture is farther from anything than the
farthest of them.
"""

from rsfl.orbit.deviation import Motion
from rsfl.orbit.documents import from_document, to_document
from rsfl.orbit.exposure import Exposures
from rsfl.orbit.family import Orbit, WarpOrbit
from rsfl.orbit.mesh import Cover, Mesh, eight_bit_allowance
from rsfl.orbit.warps import Rotations, RotationScalings, Scalings, Translations

__all__ = [
    "Cover",
    "Exposures",
    "Mesh",
    "Motion",
    "Orbit",
    "RotationScalings",
    "Rotations",
    "Scalings",
    "Translations",
    "WarpOrbit",
    "eight_bit_allowance",
    "from_document",
    "to_document",
]
