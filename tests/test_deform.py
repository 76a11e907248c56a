import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rsfl import attacks, bounds, deform, noise, smooth
from rsfl.assumptions import IDEAL_NOISE, ORIGINAL_INPUT
from rsfl.demo import digits

LAWS = {
    "rotation": deform.Rotation(0.4),
    "translation": deform.Translation(0.3),
    "scaling": deform.Scaling(0.3),
    "affine": deform.Affine(0.2),
    "dct": deform.DCT(0.15, bases=3),
    "flow": deform.PixelFlow(0.2),
}
SIZES = [(8, 8), (5, 9), (32, 32), (224, 130)]


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]


def draws(law, shape, n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return law.sample((n, *law.noise_shape(torch.Size(shape))), generator=generator).to(dtype)


def images(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- the law is that of the parameters -------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "base", "unit"),
    [
        (deform.Rotation(0.4), noise.Uniform(0.4), "radians"),
        (deform.Scaling(0.4), noise.Uniform(0.4), "scale"),
        (deform.Translation(0.4), noise.Gaussian(0.4), "half images"),
        (deform.Affine(0.4), noise.Gaussian(0.4), "affine coefficients"),
        (deform.DCT(0.4, 2), noise.Gaussian(0.4), "DCT coefficients"),
        (deform.PixelFlow(0.4), noise.Gaussian(0.4), "half images"),
    ],
)
def test_norm_radius_and_draws_are_those_of_the_base(law, base, unit):
    assert (law.base, law.norm, law.unit, law.space) == (base, base.norm, unit, "parametric")
    assert law.assumptions == (ORIGINAL_INPUT, IDEAL_NOISE)
    p = np.array([0.3, 0.6, 0.99, 1.0])
    np.testing.assert_array_equal(law.radius(p), base.radius(p))
    np.testing.assert_array_equal(law.radius(p, 0.1), base.radius(p, 0.1))
    assert law.probability(0.25) == base.probability(0.25)
    drawn, expected = (
        some.sample((7, 2), generator=torch.Generator().manual_seed(3)) for some in (law, base)
    )
    assert torch.equal(drawn, expected)


def test_number_of_parameters():
    shape = torch.Size([3, 6, 10])
    dims = {name: tuple(law.noise_shape(shape)) for name, law in LAWS.items()}
    assert dims == {
        "rotation": (1,),
        "translation": (2,),
        "scaling": (1,),
        "affine": (6,),
        "dct": (18,),
        "flow": (120,),
    }


def test_there_is_no_composition():
    with pytest.raises(TypeError):
        deform.Rotation(0.1) @ deform.Translation(0.1)


# -- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_zero_parameters_are_the_identity(law, size, dtype, padding):
    law = replace(law, padding=padding)
    x = images(2, 3, *size, dtype=torch.float32).to(dtype)
    still = law(x, torch.zeros(2, *law.noise_shape(x.shape[1:])))
    assert still.dtype == dtype
    torch.testing.assert_close(still, x, rtol=0, atol=1e-12 if dtype == torch.float64 else 0)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (-1, 0), (0, 3), (-2, -1), (0, 0), (9, 0)])
def test_translation_by_whole_pixels_shifts_the_array(right, down):
    x = images(2, 3, 7, 9)
    expected = torch.zeros_like(x)
    for row in range(7):
        for column in range(9):
            if 0 <= row + down < 7 and 0 <= column + right < 9:
                expected[:, :, row, column] = x[:, :, row + down, column + right]
    params = torch.tensor([[right / 4, down / 3]])  # half of 9 - 1 and of 7 - 1 pixels
    torch.testing.assert_close(deform.Translation(0.1)(x, params), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quarter", [-2, -1, 1, 2, 3])
def test_rotation_by_right_angles_is_rot90(quarter):
    x = images(2, 1, 6, 6)
    turned = deform.Rotation(0.1)(x, torch.tensor([[quarter * math.pi / 2]], dtype=torch.float64))
    torch.testing.assert_close(turned, torch.rot90(x, quarter, (2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", [0.3, -1.1, math.pi / 2])
@pytest.mark.parametrize("size", [(4, 10), (11, 5)])
def test_rotation_is_rigid_on_any_rectangle(angle, size):
    """A rectangle in a frame of zeros that makes it square, rotated as a square, is the rectangle
    rotated."""
    x = images(1, 2, *size)
    high, wide = ((max(size) - side) // 2 for side in size)
    params = torch.tensor([[angle]], dtype=torch.float64)
    square = deform.Rotation(0.1)(nn.functional.pad(x, (wide, wide, high, high)), params)
    inside = square[:, :, high : high + size[0], wide : wide + size[1]]
    torch.testing.assert_close(deform.Rotation(0.1)(x, params), inside, rtol=0, atol=1e-12)


def test_doubled_scale_reads_every_second_pixel():
    x = images(1, 1, 9, 5)
    expected = torch.zeros_like(x)
    expected[:, :, 2:7, 1:4] = x[:, :, ::2, ::2]
    torch.testing.assert_close(
        deform.Scaling(0.1)(x, torch.tensor([[1.0]])), expected, rtol=0, atol=1e-12
    )


def test_affine_contains_the_others():
    x, zero = images(3, 2, 6, 9), torch.zeros(3, dtype=torch.float64)
    affine = deform.Affine(0.1)
    s = draws(deform.Scaling(0.5), (2, 6, 9), 3)[:, 0]
    same = affine(x, torch.stack([s, zero, zero, zero, s, zero], 1))
    torch.testing.assert_close(deform.Scaling(0.5)(x, s[:, None]), same)
    t = draws(deform.Translation(0.5), (2, 6, 9), 3)
    same = affine(x, torch.stack([zero, zero, t[:, 0], zero, zero, t[:, 1]], 1))
    torch.testing.assert_close(deform.Translation(0.5)(x, t), same)
    square, a = images(3, 2, 6, 6), draws(deform.Rotation(2.0), (2, 6, 6), 3)[:, 0]
    same = affine(square, torch.stack([a.cos() - 1, -a.sin(), zero, a.sin(), a.cos() - 1, zero], 1))
    torch.testing.assert_close(deform.Rotation(2.0)(square, a[:, None]), same)


def test_flows_contain_translation():
    x = images(3, 2, 6, 9)
    t = draws(deform.Translation(0.5), (2, 6, 9), 3)
    expected = deform.Translation(0.5)(x, t)
    torch.testing.assert_close(deform.DCT(0.5, bases=1)(x, t), expected)
    torch.testing.assert_close(deform.PixelFlow(0.5)(x, t.repeat(1, 54)), expected)


def flow_in_pixels(law, params, row, column, height, width):
    """Where the pixel (row, column) reads, as (row, column), by the definitions; one parameter
    vector."""
    up, left = (height - 1) / 2, (width - 1) / 2
    y, x = row - up, column - left
    if isinstance(law, deform.Rotation):
        c, s = math.cos(params[0]), math.sin(params[0])
        x, y = c * x - s * y, s * x + c * y
    elif isinstance(law, deform.Scaling):
        x, y = x * (1 + params[0]), y * (1 + params[0])
    elif isinstance(law, deform.Translation):
        x, y = x + params[0] * left, y + params[1] * up
    elif isinstance(law, deform.Affine):
        a, b, c, d, e, f = params
        u, v = x / left, y / up
        x, y = x + left * (a * u + b * v + c), y + up * (d * u + e * v + f)
    elif isinstance(law, deform.DCT):
        k = law.bases
        waves = [
            math.cos(math.pi * i * (2 * row + 1) / (2 * height))
            * math.cos(math.pi * j * (2 * column + 1) / (2 * width))
            for i in range(k)
            for j in range(k)
        ]
        x += left * math.fsum(p * w for p, w in zip(params[: k * k], waves, strict=True))
        y += up * math.fsum(p * w for p, w in zip(params[k * k :], waves, strict=True))
    else:
        place = 2 * (row * width + column)
        x, y = x + left * params[place], y + up * params[place + 1]
    return y + up, x + left


def read(image, row, column, padding):
    """Bilinear interpolation of one channel at a point."""
    height, width = image.shape
    if padding == "border":
        row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    elif padding == "reflection":
        row, column = (
            abs((at + size - 1) % (2 * size - 2) - (size - 1))
            for at, size in ((row, height), (column, width))
        )
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < height and 0 <= c < width:
                total += image[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return total


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(5, 8), (7, 7)])
def test_every_warp_against_one_pixel_at_a_time(law, size, padding):
    law = replace(law, padding=padding)
    x = images(2, 2, *size)
    params = draws(law, (2, *size), 2) * 2
    warped = law(x, params)
    for i in range(2):
        for row in range(size[0]):
            for column in range(size[1]):
                at = flow_in_pixels(law, params[i].tolist(), row, column, *size)
                for channel in range(2):
                    expected = read(x[i, channel].numpy(), *at, padding)
                    assert warped[i, channel, row, column].item() == pytest.approx(
                        expected, abs=1e-11
                    )


def blob(size, spread):
    at = torch.linspace(-1, 1, size, dtype=torch.float64)
    return torch.exp(-((at - 0.1) ** 2 + (at[:, None] + 0.2) ** 2) / (2 * spread**2))[None, None]


@pytest.mark.parametrize(
    ("law", "params"), [(deform.Rotation(1.0), [0.7]), (deform.Translation(0.1), [0.011, -0.017])]
)
def test_the_inverse_undoes_a_warp_within_the_interpolation_error(law, params):
    """Linear interpolation errs by at most 1/8 of the sum of the second derivatives, once for each
    of two warps."""
    params, spread, errors = torch.tensor(params, dtype=torch.float64), 0.15, []
    for size in (41, 81):
        x = blob(size, spread)
        back = law(law(x, params[None]), -params[None])
        errors.append(float((back - x).abs().max()))
        assert 0 < errors[-1] < 2 * 2 / 8 * (2 / ((size - 1) * spread)) ** 2
        gap = deform.composition_gap(law, x, params, -params)
        torch.testing.assert_close(gap, (back - x).flatten(1).norm(dim=1))
    assert errors[1] < errors[0] / 2.5  # second order, short of 4 because a kink may fall anywhere


def test_composition_gap_of_scalings_stays_without_any_interpolation_error():
    """(1 + a)(1 + b) is not 1 + a + b: the gap of a smooth picture does not vanish with the size of
    the pixels."""
    a, b = torch.tensor([0.2]), torch.tensor([0.3])
    coarse, fine = (
        deform.composition_gap(deform.Scaling(0.5), blob(size, 0.3), a, b) / size
        for size in (61, 241)
    )
    assert fine > 0.01
    assert fine > 0.9 * coarse


def test_composition_gap_takes_parameters_for_each_image():
    x, law = images(3, 1, 9, 9), deform.Rotation(0.4)
    a, b = draws(law, x.shape[1:], 3, seed=1), draws(law, x.shape[1:], 3, seed=2)
    gaps = deform.composition_gap(law, x, a, b)
    assert gaps.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(
            gaps[i : i + 1], deform.composition_gap(law, x[i : i + 1], a[i], b[i])
        )
    torch.testing.assert_close(
        deform.composition_gap(law, x, a, 0 * b), torch.zeros(3, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match=r"params must have shape \(3, 1\)"):
        deform.composition_gap(law, x, a[:, 0], b[:, 0])


# -- derivatives, devices, shapes ------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(5, 5), (4, 7)])
def test_gradients_match_finite_differences(law, size, padding):
    law = replace(law, padding=padding)
    x = images(2, 2, *size).requires_grad_()
    params = draws(law, (2, *size), 2, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(law.perturb, (x, params), eps=1e-7, atol=1e-6)


def test_gradients_reach_a_shift_shared_by_all_draws(law):
    x = images(2, 2, 5, 6)
    drawn = draws(law, x.shape[1:], 6, seed=1).unflatten(0, (3, 2))
    shift = (draws(law, x.shape[1:], 2, seed=2) / 3).requires_grad_()

    def perturbed(shift):
        return law.perturb(x.repeat(3, 1, 1, 1), (drawn + shift).flatten(0, 1))

    assert torch.autograd.gradcheck(perturbed, shift, eps=1e-7, atol=1e-6)


def test_one_image_serves_many_parameters_and_many_images_one(law):
    x = images(4, 3, 6, 5, dtype=torch.float32)
    params = draws(law, x.shape[1:], 4, dtype=torch.float32)
    together = law(x, params)
    for i in range(4):
        assert torch.equal(law(x[:1], params)[i], law(x[:1], params[i : i + 1])[0])
        assert torch.equal(law(x, params[:1])[i], law(x[i : i + 1], params[:1])[0])
        assert torch.equal(together[i], law(x[i : i + 1], params[i : i + 1])[0])


def test_everything_stays_on_the_device_of_x(law):
    """Tensors of two devices do not mix: a grid made on the CPU would fail on this one, which has
    no memory."""
    x = torch.empty(3, 1, 6, 5, device="meta")
    drawn = law.sample((3, *law.noise_shape(x.shape[1:])), device=x.device)
    assert law(x, drawn).device.type == "meta"


@pytest.mark.parametrize(
    "shape", [(8,), (8, 8), (3, 8, 8), (1, 1, 1, 8, 8), (2, 3, 1, 8), (2, 3, 8, 1)]
)
def test_what_is_no_batch_of_images_is_refused(law, shape):
    with pytest.raises(ValueError, match=r"batch of images \(B, C, H, W\)"):
        law(torch.zeros(shape), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"batch of images \(B, C, H, W\)"):
        law.noise_shape(torch.Size(shape[1:]))


@pytest.mark.parametrize("shape", [(2,), (), (4, 2), (3, 3), (0, 2), (3, 2, 1)])
def test_parameters_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"params must have shape \(3, 2\)"):
        deform.Translation(0.1)(torch.zeros(3, 1, 4, 4), torch.zeros(shape))


def test_arguments_are_checked():
    for make in (
        deform.Rotation,
        deform.Translation,
        deform.Scaling,
        deform.Affine,
        deform.PixelFlow,
    ):
        for bad in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=r"(half_width|sigma) must lie in"):
                make(bad)
        with pytest.raises(
            ValueError, match="padding must be one of 'zeros', 'border', 'reflection', got 'wrap'"
        ):
            make(0.1, padding="wrap")
    with pytest.raises(ValueError, match=r"half_width must lie in \(0, 1\), got 1.0"):
        deform.Scaling(1.0)
    with pytest.raises(ValueError, match="bases must be a count of at least 1"):
        deform.DCT(0.1, bases=0)
    with pytest.raises(
        ValueError, match="bases must be at most the sides of the image, 8 x 4, got 5"
    ):
        deform.DCT(0.1, bases=5).noise_shape(torch.Size([1, 8, 4]))
    with pytest.raises(TypeError, match=r"floating point dtype, got torch.uint8"):
        deform.Rotation(0.1)(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1))


@given(st.floats(0, 1e3), st.integers(2, 500), st.integers(2, 500))
def test_a_distance_in_pixels_is_never_rounded_up(distance, height, width):
    across, down = deform.Translation(0.1).pixels(distance, height=height, width=width)
    for pixels, size in ((across, width), (down, height)):
        exact = Fraction(distance) * (size - 1) / 2
        assert 0 <= exact - Fraction(pixels) <= exact / 2**52 + Fraction(5e-324)


# -- the guarantee, against the exactly smoothed classifier ----------------------------------------


class ExactlySmoothed:
    """A model smoothed over all angles of [-half_width, half_width], without sampling.

    Angles are cut into cells, ``across`` of them over the support of the noise, and the model's
    class at the middle of a cell is taken for the whole cell. Of that classifier of angles,
    averages over any interval are exact.
    """

    def __init__(self, model, law, x, across):
        self.cell, self.across, self.size = 2 * law.half_width / across, across, len(x)
        cells = (
            torch.arange(2 * across, dtype=torch.float64) + 0.5 - across
        )  # noise and shift, either way
        with torch.no_grad():
            labels = torch.stack(
                [model(law(x, (self.cell * c).view(1, 1))).argmax(dim=1) for c in cells]
            )
        votes = nn.functional.one_hot(labels, 10).double()
        self.total = nn.functional.pad(
            votes.cumsum(dim=0), (0, 0, 0, 0, 1, 0)
        )  # the integral up to each edge

    def __call__(self, shift):
        middle = shift[:, 0] / self.cell + self.across
        return (
            self.integral(middle + self.across / 2) - self.integral(middle - self.across / 2)
        ) / self.across

    def integral(self, edge):
        cell = edge.floor().clamp(0, 2 * self.across - 1).long()
        rest, rows = (edge - cell)[:, None], torch.arange(self.size)
        return self.total[cell, rows] * (1 - rest) + self.total[cell + 1, rows] * rest


def trained(x, y, law):
    """A small convolutional network, trained on deformed digits with one draw for each example."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    smoother = smooth.DeformationSmoother(model, law, 10)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(300):
        batch = torch.randint(len(x), (128,), generator=generator)
        logits = smoother.logits(x[batch], smoother.noise(x[batch], 1, generator=generator))[0]
        loss = nn.functional.cross_entropy(logits, y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("half_width", [0.1 * math.pi, 0.5 * math.pi])
def test_no_rotation_inside_the_certified_radius_flips_an_exactly_smoothed_digit(half_width):
    x_train, y_train, x, y = digits()
    law = deform.Rotation(half_width)
    model = trained(x_train, y_train, law)
    exact = ExactlySmoothed(model, law, x, across=400)
    p = exact(torch.zeros(len(x), 1, dtype=torch.float64))
    assert (p.argmax(dim=1) == y).double().mean() > 0.85  # the network has learnt something
    top = p.topk(2, dim=1).values.numpy()

    flips = attacks.grid_attack(law, x, exact, radius=half_width, points=400)
    distance = flips.distance.numpy()
    assert np.isfinite(distance).sum() >= 30  # there is something to find
    certified = law.radius(top[:, 0], top[:, 1])
    assert not (distance < certified).any()
    assert not (distance < law.radius(top[:, 0])).any()
    assert (
        distance[certified > 0] / certified[certified > 0]
    ).min() < 1.001  # no larger radius would be true

    # The Gaussian formula on the same votes, with the half width for sigma or with the same
    # standard deviation.
    for sigma in (half_width, half_width / math.sqrt(3)):
        wrong = bounds.cohen_radius(top[:, 0], top[:, 1], sigma=sigma)
        assert (distance < wrong).sum() >= 5
