import math
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from rsfl import deform, orbit
from rsfl.orbit import Exposures, Mesh, Rotations, RotationScalings, Scalings, Translations

PADDINGS = ["zeros", "border", "reflection"]


def noise(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(1, *shape, generator=draws, dtype=torch.float64)


def checkerboard(*shape):
    channels, height, width = shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows + columns) % 2).double().expand(1, channels, height, width).clone()


def single(*shape):
    image = torch.zeros(1, *shape, dtype=torch.float64)
    image[..., shape[1] // 3, shape[2] // 4] = 1
    return image


def digit(number):
    """One of scikit-learn's digits, as large as MNIST's."""
    image = torch.tensor(load_digits().images[number] / 16)[None, None]
    large = functional.interpolate(image, scale_factor=2.5, mode="bilinear")
    return functional.pad(large, (4, 4, 4, 4))


IMAGES = {
    "noise": noise(2, 9, 13),
    "signed": noise(1, 12, 7, seed=1) * 200 - 100,
    "checkerboard": checkerboard(1, 10, 11),
    "single": single(1, 9, 9),
    "digit": digit(3),
    "smallest": noise(1, 2, 3),
}
FAMILIES = [
    lambda padding: Rotations((0.2, 0.5), padding=padding),
    lambda padding: Rotations((-0.05, 0.04), padding=padding),  # where all points stand on pixels
    lambda padding: Rotations((3.0, math.pi), padding=padding),
    lambda padding: Scalings((-0.3, 0.1), padding=padding),
    lambda padding: Scalings((2.0, 2.2), padding=padding),  # reads far outside
    lambda padding: Translations((-0.1, 0.1), (1.9, 2.2), padding=padding),
    lambda padding: RotationScalings((0.7, 0.9), (-0.1, 0.05), padding=padding),
]


def worst(mesh, *, fine=50, cells=8, seed=0):
    """The largest share of its bound that a picture takes: of the distance from the mixture of its
    cell's corners, and of the distance from a member of the family, over a finer grid."""
    draws = torch.Generator().manual_seed(seed)
    family, x = mesh.orbit, mesh.x
    each = fine if family.dim == 1 else round(math.sqrt(10 * fine))
    steps = torch.cartesian_prod(
        *[torch.linspace(0, 1, each + 1, dtype=torch.float64)] * family.dim
    )
    steps = steps.view(-1, family.dim)
    centre = family(x, mesh.nodes[torch.randint(len(mesh.nodes), (1,), generator=draws)])
    bound = mesh.distances(centre)
    bent, apart = 0.0, 0.0
    for cell in torch.randint(len(mesh), (cells,), generator=draws).tolist():
        params = mesh.low[cell] + steps * (mesh.high[cell] - mesh.low[cell])
        pictures = family(x, params).double().flatten(1)
        corners = family.pictures(x, mesh.nodes[mesh.corners[cell]]).flatten(1)
        ends = torch.tensor(list(product((0.0, 1.0), repeat=family.dim)))
        weights = (1 - (steps[:, None] - ends).abs()).prod(dim=2)
        away = (pictures - weights @ corners).norm(dim=1).max()
        bent = max(bent, float(away / mesh.excess[cell]))
        away = (pictures - centre.double().flatten(1)).norm(dim=1).max()
        apart = max(apart, float(away / bound[cell]))
    return bent, apart


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_no_picture_of_a_finer_grid_is_farther_than_the_bound(number, name, padding):
    family, x = FAMILIES[number](padding), IMAGES[name]
    for cells in (family.resolution(x, 1 / 2), family.resolution(x)):
        bent, apart = worst(Mesh.of(family, x, cells))
        assert bent <= 1
        assert apart <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pictures_rounded_to_the_dtype_of_the_image_are_within_the_bound(dtype):
    x = noise(3, 8, 8).to(dtype)
    family = Rotations((0.3, 0.3 + 1e-9))  # a cell so small that rounding is all there is
    mesh = Mesh.of(family, x, 1)
    bent, apart = worst(mesh)
    assert bent <= 1
    assert apart <= 1
    smallest = {torch.float32: 1e-8, torch.float64: 0, torch.bfloat16: 1e-3}[dtype]
    assert float(mesh.excess) > smallest


def test_a_picture_of_a_batch_may_be_rounded_otherwise_than_alone():
    x = noise(3, 8, 8).float()
    for family in (Rotations(0.3), RotationScalings(0.2, 0.1), Exposures(9.0, 9.0, clamp=False)):
        params = family.sample(50, generator=torch.Generator().manual_seed(0)).double()
        together = family(x, params)
        alone = torch.cat([family(x, one[None]) for one in params])
        exact = family(x.double(), params)
        rounding = float(Mesh.of(family, x, 200).excess.min())
        for one, other in ((together, alone), (together, exact)):
            assert float((one.double() - other).flatten(1).norm(dim=1).max()) <= rounding / 2


@pytest.mark.parametrize("clamp", [True, False])
def test_exposures_are_exact_where_nothing_saturates(clamp):
    x = noise(1, 6, 5)
    family = Exposures(0.4, 0.3, clamp=clamp)
    mesh = Mesh.of(family, x, 5)
    bent, apart = worst(mesh, cells=25)
    assert bent <= 1
    assert 0.5 < apart <= 1
    middle = Mesh.of(Exposures(0.1, 0.1), x * 0.2 + 0.4, 3)
    assert float(middle.excess.max()) < 1e-9
    if not clamp:
        assert float(mesh.excess.max()) < 1e-9
        assert float(family(x, torch.tensor([[0.4, 0.3]])).max()) > 1


def test_the_bound_is_close():
    """A cell's pictures take a good part of their bound, and cells of half the width are far less
    than half as bent."""
    x = digit(5)
    shares, excess = [], []
    for cells in (150, 300, 600):
        mesh = Mesh.of(Rotations(0.8), x, cells)
        shares.append(worst(mesh, cells=40))
        excess.append(float(mesh.excess.median()))
    assert max(bent for bent, _ in shares) > 0.3
    assert max(apart for _, apart in shares) > 0.98
    assert excess[1] < 0.4 * excess[0]
    assert excess[2] < 0.4 * excess[1]


def test_a_bound_half_as_large_would_be_broken():
    bent, _ = worst(Mesh.of(Translations((0.24, 0.26), (0.0, 0.02)), single(1, 9, 9), 1), cells=1)
    assert 0.5 < bent <= 1


@pytest.mark.parametrize(
    ("family", "warp"),
    [
        (Rotations(0.7, padding="border"), deform.Rotation(0.7, padding="border")),
        (Scalings(0.3), deform.Scaling(0.3)),
        (
            Translations(0.3, 0.2, padding="reflection"),
            deform.Translation(1.0, padding="reflection"),
        ),
    ],
)
def test_pictures_are_those_of_the_library_s_warp(family, warp):
    x, params = noise(2, 6, 9).float(), family.sample(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(family(x, params), warp(x, params), rtol=0, atol=0)
    for column, (low, high) in zip(params.T, family.box, strict=True):
        assert ((column >= low) & (column <= high)).all()


def test_turning_and_scaling_at_once_is_one_interpolation():
    x = noise(1, 7, 12)
    both = RotationScalings(1.0, 0.5)
    angle, scale = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[0.2]])
    for params, alone in (
        (torch.tensor([[0.4, 0.0]], dtype=torch.float64), Rotations(1.0)(x, angle)),
        (torch.tensor([[0.0, 0.2]]), Scalings(0.5)(x, scale)),
    ):
        torch.testing.assert_close(both(x, params), alone, rtol=0, atol=1e-7)


def test_motion_holds_the_points_that_the_warp_reads():
    """Against the warp's own grid, at random parameters of random cells."""
    height, width = 6, 9
    draws = np.random.default_rng(0)
    for family in (
        Rotations(math.pi),
        Scalings(0.9),
        Translations(2.0, 1.0),
        RotationScalings(math.pi, 0.5),
    ):
        low, high = np.array(family.box).T
        middle = torch.tensor(draws.uniform(low, high), dtype=torch.float64)
        half = torch.tensor(draws.uniform(0, 0.1, family.dim), dtype=torch.float64)
        right = torch.arange(width, dtype=torch.float64)[None, None] - (width - 1) / 2
        down = torch.arange(height, dtype=torch.float64)[None, :, None] - (height - 1) / 2
        found = family.motion(middle[:, None, None, None], half[:, None, None, None], right, down)
        params = middle + (2 * torch.rand(200, family.dim, dtype=torch.float64) - 1) * half
        params.requires_grad_()
        grid = family.warp.grid(family.coefficients(params, height, width), height, width)
        sides = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
        for axis, (at, reach) in enumerate((found.x, found.y)):
            place = grid[..., axis] * sides[axis]
            assert ((place - at).abs() <= reach + 1e-12).all()
            pixel = place[:, 1, 2]
            rates = torch.autograd.grad(pixel.sum(), params, retain_graph=True)[0]
            for number in range(family.dim):
                rate, change = (
                    value.expand(1, height, width)[0, 1, 2] for value in found.rates[number][axis]
                )
                assert ((rates[:, number] - rate).abs() <= change + 1e-9).all()


def test_the_cells_cover_the_box():
    mesh = Mesh.of(RotationScalings((-0.1, 0.3), (0.0, 0.2)), noise(1, 5, 5), (7, 3))
    assert len(mesh) == 21
    low, high = torch.tensor(mesh.orbit.box, dtype=torch.float64).T
    assert mesh.low.min(0).values.tolist() == low.tolist()
    assert mesh.high.max(0).values.tolist() == high.tolist()
    inside = torch.rand(500, 2, dtype=torch.float64) * (high - low) + low
    held = ((inside[:, None] >= mesh.low) & (inside[:, None] <= mesh.high)).all(2)
    assert held.any(1).all()
    corners = mesh.nodes[mesh.corners]
    assert (corners.amin(1) == mesh.low).all()
    assert (corners.amax(1) == mesh.high).all()


@pytest.mark.parametrize("family", [Rotations(0.5), RotationScalings(0.2, 0.1)])
def test_a_cover_holds_every_cell(family):
    x = digit(2).float()
    mesh = Mesh.of(family, x)
    radius = torch.full((len(mesh.nodes),), 0.5)
    cover = mesh.cover(radius)
    assert cover.cells.tolist() == list(range(len(mesh)))
    assert sorted(set(cover.owner.tolist())) == list(range(len(cover)))
    for number, centre in enumerate(cover.centres):
        own = cover.cells[cover.owner == number]
        far = mesh.distances(family(x, centre[None]), own)
        assert float(far.max()) == float(cover.reach[number])
    assert (cover.reach <= 0.5 + 1e-3).all()  # the plan is made in float32
    # none is idle: the length of the family is more than half of what the balls could hold
    if family.dim == 1:
        pictures = family.pictures(x, mesh.nodes).flatten(1)
        length = float((pictures[1:] - pictures[:-1]).norm(dim=1).sum())
        assert len(cover) < 2 * length


def test_a_cover_of_some_cells_and_of_cells_that_no_ball_holds():
    x = digit(2)
    mesh = Mesh.of(Rotations(0.5), x)
    cells = torch.arange(5, 40)
    cover = mesh.cover(torch.zeros(len(mesh.nodes)), cells)
    assert cover.cells.tolist() == cells.tolist()
    assert (cover.reach > 0).all()


def test_large_images_are_bounded_without_all_their_pictures(monkeypatch):
    x = noise(3, 40, 30)
    whole = Mesh.of(Rotations(0.1), x)
    centre = x + 0.01
    before = whole.distances(centre), whole.cover(torch.full((len(whole.nodes),), 5.0))
    monkeypatch.setattr("rsfl.orbit.mesh._KEPT", 0)
    after = Mesh.of(Rotations(0.1), x)
    torch.testing.assert_close(after.distances(centre), before[0], rtol=1e-12, atol=0)
    cover = after.cover(torch.full((len(whole.nodes),), 5.0))
    assert cover.centres.tolist() == before[1].centres.tolist()


def test_eight_bits():
    x = noise(3, 5, 7)
    moved = ((x * 255).round() / 255 - x).norm()
    assert float(moved) <= orbit.eight_bit_allowance((3, 5, 7))
    half = torch.full((1, 3, 5, 7), 0.5 / 255, dtype=torch.float64)  # each coordinate moves most
    assert float(half.norm()) <= orbit.eight_bit_allowance((3, 5, 7)) < float(half.norm()) * 1.001


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Rotations(20), r"angle must lie in \[-3.14159, 3.14159\], got 20"),
        (lambda: Rotations(0), "angle must be positive"),
        (lambda: Rotations((1, 0)), r"pair \(low, high\), got \(1, 0\)"),
        (lambda: Scalings(-1.5), "change must lie in"),
        (lambda: Rotations(1, padding="mirror"), "padding must be one of"),
        (lambda: Mesh.of(Rotations(1), torch.rand(2, 1, 5, 5)), "x must be one image"),
        (lambda: Mesh.of(Rotations(1), torch.rand(5, 5)), "batch of images"),
        (lambda: Mesh.of(Rotations(1), torch.rand(1, 1, 28, 28), 10), "cells must be at least"),
        (lambda: Mesh.of(Rotations(1), torch.rand(1, 1, 5, 5), (9, 9)), "cells must be one number"),
        (lambda: orbit.from_document({"name": "Shears"}), "orbit must be one of"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_cells_too_wide_for_the_bound_are_refused():
    with pytest.raises(ValueError, match="no point moves by a pixel"):
        Rotations(1).deviation(
            noise(1, 9, 9),
            torch.tensor([[0.0]], dtype=torch.float64),
            torch.tensor([[0.9]], dtype=torch.float64),
        )


@pytest.mark.parametrize(
    "family",
    [
        Rotations(0.5, padding="border"),
        Scalings((-0.1, 0.4)),
        Translations(0.1, 0.2),
        RotationScalings(0.1, 0.2),
        Exposures(0.1, 0.2, clamp=False),
    ],
)
def test_families_by_name(family):
    assert orbit.from_document(orbit.to_document(family)) == family


@pytest.mark.slow
@pytest.mark.parametrize("padding", PADDINGS)
def test_two_hundred_images(padding):
    """All families, a grid of fifty times as many parameters, images up to 224 x 224."""
    shapes = [(1, 28, 28)] * 40 + [(3, 32, 32)] * 20 + [(3, 224, 224)] * 2 + [(2, 11, 29)] * 4
    for number, shape in enumerate(shapes):
        draw = [noise(*shape, seed=number), checkerboard(*shape), single(*shape)][number % 3]
        for make in FAMILIES:
            family = make(padding)
            bent, apart = worst(Mesh.of(family, draw, family.resolution(draw, 1 / 2)), cells=4)
            assert bent <= 1
            assert apart <= 1
