"""An orbit's box in cells: bounds on distances, and covers by balls."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from rsfl._checks import counts
from rsfl.orbit.deviation import CHUNK
from rsfl.orbit.family import Orbit

__all__ = ["Cover", "Mesh", "eight_bit_allowance"]

_KEPT = 2**28  # bytes of a mesh's pictures that are kept in memory
_CANDIDATES = 2000  # nodes that may become the centre of a ball
_PIXELS = 1024  # up to which a plan looks at whole pictures


def eight_bit_allowance(shape: Sequence[int]) -> float:
    """How far rounding to 8 bits can move a picture with values in [0, 1]: half a step of 1/255 in
    every coordinate, in l2, rounded up.

    Args:
        shape: The shape of one image, such as (1, 28, 28).

    Example:
        >>> eight_bit_allowance((1, 28, 28))
        0.0549...
    """
    dim = math.prod(counts("shape", shape, 1).tolist())
    return float(np.nextafter(math.sqrt(dim) / 510, 1) * (1 + 2.0**-50))


@dataclass(frozen=True, eq=False)
class Mesh:
    """An orbit's box in cells: how far no picture of a cell exceeds from a given picture.

    Args:
        orbit: The family of pictures.
        x: The image (1, C, H, W).
        axes: Along each parameter, the ends of its cells: increasing, float64, from one end of the
            box to the other.

    Example:
        >>> from rsfl.orbit import Rotations
        >>> image = torch.eye(9)[None, None]
        >>> mesh = Mesh.of(Rotations(0.1), image, cells=100)
        >>> far = mesh.distances(image)  # from the image itself, which stands at angle 0
        >>> len(far), bool(far[0] > far[50])
        (100, True)
    """

    orbit: Orbit
    x: Tensor
    axes: tuple[Tensor, ...]

    @classmethod
    def of(cls, orbit: Orbit, x: Tensor, cells: int | Sequence[int] | None = None) -> Self:
        """The box in equal cells.

        Args:
            orbit: The family of pictures.
            x: One image (1, C, H, W).
            cells: How many along each parameter; from :meth:`Orbit.resolution` if None.

        Raises:
            ValueError: x is no single image, or cells are so few that a point moves by more than
                half a pixel within one.
        """
        orbit.check(x)
        if len(x) != 1:
            raise ValueError(f"x must be one image (1, C, H, W), got shape {tuple(x.shape)}")
        asked = counts("cells", orbit.resolution(x) if cells is None else cells, 1)
        if asked.ndim == 0:
            asked = np.repeat(asked, orbit.dim)
        if asked.shape != (orbit.dim,):
            raise ValueError(
                f"cells must be one number, or one for each of {', '.join(orbit.parameters)}, got "
                f"{cells!r}"
            )
        least = orbit.resolution(x, 1 / 2)
        if (asked < least).any():
            raise ValueError(
                f"cells must be at least {least} for {orbit} and images of shape "
                f"{tuple(x.shape[1:])}, so that no point moves by half a pixel within one, got "
                f"{cells!r}"
            )
        axes = tuple(
            torch.from_numpy(np.linspace(low, high, number + 1)).to(x.device)
            for (low, high), number in zip(orbit.box, asked.tolist(), strict=True)
        )
        return cls(orbit, x.detach(), axes)

    def __len__(self) -> int:
        return math.prod(len(axis) - 1 for axis in self.axes)

    @cached_property
    def nodes(self) -> Tensor:
        """The corners of the cells, (nodes, dim), the last parameter fastest."""
        return torch.cartesian_prod(*self.axes).view(-1, len(self.axes))

    @cached_property
    def low(self) -> Tensor:
        """The least parameters of each cell, (cells, dim)."""
        return torch.cartesian_prod(*(axis[:-1] for axis in self.axes)).view(-1, len(self.axes))

    @cached_property
    def high(self) -> Tensor:
        """The largest parameters of each cell, (cells, dim)."""
        return torch.cartesian_prod(*(axis[1:] for axis in self.axes)).view(-1, len(self.axes))

    @cached_property
    def corners(self) -> Tensor:
        """The places in ``nodes`` of each cell's corners, (cells, 2^dim)."""
        shape = [len(axis) for axis in self.axes]
        places = torch.arange(len(self.nodes), device=self.x.device).view(shape)
        cut = [slice(None, -1), slice(1, None)]
        return torch.stack(
            [places[ends].flatten() for ends in product(cut, repeat=len(shape))], dim=1
        )

    @cached_property
    def excess(self) -> Tensor:
        """(cells,) how far a picture of the cell, as computed in the dtype of x or on real numbers,
        may be from mixtures of the corner pictures that were computed here; rounded up."""
        pixels = self.x[0].numel()
        largest = self.orbit.largest(self.x)
        cast = torch.finfo(self.x.dtype)
        # Off from real numbers are the picture that is meant, the corners', and the centre's twice,
        # since a batch may be rounded otherwise than a picture alone: each by the rounding of
        # float64, and by half an eps of its dtype where it was stored.
        stored = math.sqrt(pixels) * (largest + cast.smallest_normal) * cast.eps
        rounding = 4 * self.orbit.rounding(self.x) + 2 * stored
        return self.orbit.deviation(self.x, self.low, self.high) + rounding

    @cached_property
    def _kept(self) -> Tensor | None:
        """All node pictures, flat, unless they are too many."""
        few = len(self.nodes) * self.x[0].numel() * 8 <= _KEPT
        return torch.cat(list(self._chunks(self.nodes))) if few else None

    def _chunks(self, params: Tensor) -> Iterator[Tensor]:
        for part in torch.split(params, max(1, CHUNK // self.x[0].numel())):
            yield self.orbit.pictures(self.x, part).flatten(1)

    def to_nodes(self, picture: Tensor, places: Tensor | None = None) -> Tensor:
        """l2 distances from a picture (1, C, H, W) to the node pictures at some places, or to all;
        rounded up."""
        flat = picture.double().flatten(1)
        found = []
        if self._kept is not None:
            pictures = self._kept if places is None else self._kept[places]
            parts: Iterator[Tensor] = iter(torch.split(pictures, max(1, CHUNK // flat.shape[1])))
        else:
            parts = self._chunks(self.nodes if places is None else self.nodes[places])
        for part in parts:
            found.append(torch.linalg.vector_norm(part - flat, dim=1))
        # a sum of n squares errs by at most (n + 2) 2^-53 of itself, and its root by half of that
        return torch.cat(found) * (1 + (flat.shape[1] + 8) * 2.0**-53)

    def distances(self, picture: Tensor, cells: Tensor | None = None) -> Tensor:
        """How far any picture of each cell can be from a given picture, at most.

        Args:
            picture: (1, C, H, W), of the dtype of x: that of an orbit's member, or any other.
            cells: Places of the cells that are asked for; all of them if None.

        Returns:
            (cells,) float64 l2 distances, rounded up. They hold for pictures on real numbers and
            for those that the orbit computes in the dtype of x.
        """
        corners = self.corners if cells is None else self.corners[cells]
        excess = self.excess if cells is None else self.excess[cells]
        places, back = torch.unique(corners, return_inverse=True)
        far = self.to_nodes(picture, places)[back].amax(dim=1)
        return (far + excess) * (1 + 2.0**-51)

    def cover(self, radius: Tensor, cells: Tensor | None = None) -> "Cover":
        """Few balls about members of the orbit that hold all pictures of the cells.

        The first cell that is still open takes, of all balls that hold it, the one that holds most
        others that are open: along one parameter no choice needs fewer. A cell that no ball holds
        gets the ball that comes nearest. Which balls are chosen is a matter of cost alone; how far
        each has to reach is bounded afterwards, for the pictures that it was given.

        Args:
            radius: (nodes,) how large a ball about each of ``nodes`` should be.
            cells: Places of the cells to cover; all of them if None.
        """
        wanted = torch.arange(len(self), device=self.x.device) if cells is None else cells
        step = -(-len(self.nodes) // _CANDIDATES)
        candidates = torch.arange(0, len(self.nodes), step, device=self.x.device)
        features = self._features
        corners, excess = self.corners[wanted].T, self.excess[wanted].float()
        far = torch.cat(
            [
                torch.cdist(features[part], features)[:, corners].amax(dim=1) + excess
                for part in torch.split(candidates, 200)
            ]
        )
        room = radius[candidates].float()
        held = far <= room[:, None]
        open_, chosen = torch.ones(len(wanted), dtype=torch.bool, device=self.x.device), []
        while bool(open_.any()):
            first = int(open_.byte().argmax())
            able = held[:, first].nonzero()[:, 0]
            if len(able):
                best = int(able[(held[able] & open_).sum(dim=1).argmax()])
                open_ &= ~held[best]
            else:
                best = int((far[:, first] - room).argmin())
                open_[first] = False
            chosen.append(best)
        chosen = sorted(set(chosen))
        owner = (far[chosen] - room[chosen, None]).argmin(dim=0)
        used, owner = torch.unique(owner, return_inverse=True)
        centres = self.nodes[candidates[torch.tensor(chosen, device=self.x.device)[used]]]
        reach = torch.stack(
            [
                self.distances(self.orbit(self.x, centre[None]), wanted[owner == number]).amax()
                for number, centre in enumerate(centres)
            ]
        )
        return Cover(centres, reach, wanted, owner)

    @cached_property
    def _features(self) -> Tensor:
        """The node pictures as a plan sees them: float32, and at random projected to fewer numbers
        where they are large."""
        pixels = self.x[0].numel()
        if pixels <= _PIXELS:
            return torch.cat([part.float() for part in self._chunks(self.nodes)])
        draws = torch.Generator().manual_seed(0)
        onto = torch.randn(pixels, _PIXELS // 4, generator=draws).to(self.x.device)
        parts = [part.float() @ onto for part in self._chunks(self.nodes)]
        return torch.cat(parts) / math.sqrt(_PIXELS // 4)


@dataclass(frozen=True, eq=False)
class Cover:
    """Balls that hold the pictures of some cells.

    Attributes:
        centres: (N, dim) float64, the parameters of their centres.
        reach: (N,) float64, how far each must reach, rounded up.
        cells: (M,) which cells of the mesh are held.
        owner: (M,) which ball holds each.
    """

    centres: Tensor
    reach: Tensor
    cells: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.centres)
