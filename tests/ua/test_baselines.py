"""Baselines: what any upsampler must do, closed forms, and naive references for the guided ones."""

import math
from fractions import Fraction

import pytest
import torch

from ua import baselines, plugins
from ua.degrade import area

UNGUIDED = ["nearest", "bilinear", "bicubic"]
ALL = [*UNGUIDED, "bicubic_back_projected", "jbu", "guided_filter"]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def upsample(name: str, image: torch.Tensor, signal: torch.Tensor, valid=None, **options) -> torch.Tensor:
    if name == "jbu":
        options.setdefault("backend", "torch")  # spares this module the compilation of the fused one
    return plugins.find("ua.baselines", name).upsample(image, signal, valid, **options)


def test_every_module_is_here() -> None:
    assert set(plugins.names("ua.baselines")) == set(ALL)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("guide", [1, 3, 4])
@pytest.mark.parametrize("grid", [(1, 1), (4, 3), (5, 7)])
def test_a_constant_stays_itself_on_any_grid(name: str, guide: int, grid: tuple[int, int]) -> None:
    image = rand(2, guide, 23, 31)
    signal = torch.tensor([3.0, -2.0]).reshape(2, 1, 1, 1).expand(2, 5, *grid).contiguous()
    result = upsample(name, image, signal)
    torch.testing.assert_close(result, signal[..., :1, :1].expand(2, 5, 23, 31), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_linear_in_the_signal_and_channels_apart(name: str) -> None:
    image = rand(1, 3, 24, 32)
    a, b = rand(1, 2, 6, 8, seed=1), rand(1, 2, 6, 8, seed=2)
    mixed = upsample(name, image, 2 * a - 3 * b)
    torch.testing.assert_close(mixed, 2 * upsample(name, image, a) - 3 * upsample(name, image, b), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(upsample(name, image, a)[:, :1], upsample(name, image, a[:, :1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_items_of_a_batch_never_mix(name: str) -> None:
    image, signal = rand(2, 3, 24, 32), rand(2, 2, 6, 8, seed=1)
    valid = rand(2, 6, 8, seed=2) > 0.3
    for mask in (None, valid):
        both = upsample(name, image, signal, mask)
        for i in range(2):
            one = upsample(name, image[i : i + 1], signal[i : i + 1], None if mask is None else mask[i : i + 1])
            torch.testing.assert_close(both[i : i + 1], one, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_an_invalid_cell_is_never_read(name: str) -> None:
    image, signal = rand(1, 3, 24, 32), rand(1, 2, 6, 8, seed=1)
    valid = rand(1, 6, 8, seed=2) > 0.5
    valid[0, :, :4] = False  # a hole wider than any window
    valid[0, 3, 6] = True
    clean = upsample(name, image, signal, valid)
    assert clean.isfinite().all()
    for poison in (1e6, math.nan, math.inf):
        torch.testing.assert_close(upsample(name, image, torch.where(valid[:, None], signal, poison), valid), clean)
    constant = upsample(name, image, torch.where(valid[:, None], 7.0, math.nan).expand_as(signal), valid)
    torch.testing.assert_close(constant, torch.full_like(constant, 7), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_a_mask_that_holds_everywhere_changes_nothing(name: str) -> None:
    image, signal = rand(1, 3, 24, 32), rand(1, 2, 6, 8, seed=1)
    everywhere = torch.ones(1, 6, 8, dtype=torch.bool)
    torch.testing.assert_close(
        upsample(name, image, signal, everywhere), upsample(name, image, signal), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_has_the_dtype_of_the_signal(name: str, dtype: torch.dtype) -> None:
    image, signal = rand(1, 3, 12, 16), rand(1, 2, 3, 4, seed=1)
    expected = upsample(name, image, signal)
    result = upsample(name, image, signal.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, atol=2e-2, rtol=2e-2)


# --- unguided


def owner(pixel: int, size: int, cells: int) -> int:
    """The cell with the nearest centre (i + .5) s - .5; of two equally near ones the latter."""
    distances = [abs(Fraction(2 * i + 1, 2) * Fraction(size, cells) - Fraction(2 * pixel + 1, 2)) for i in range(cells)]
    return min(range(cells), key=lambda i: (distances[i], -i))


def test_nearest_is_the_owner_cell() -> None:
    signal = rand(1, 2, 4, 5)
    result = upsample("nearest", rand(1, 3, 14, 13), signal)
    for y in range(14):
        for x in range(13):
            assert torch.equal(result[0, :, y, x], signal[0, :, owner(y, 14, 4), owner(x, 13, 5)])


def test_bilinear_reproduces_a_ramp_inside() -> None:
    """Cell centres lie at (i + .5) s - .5: half a pixel off, and a ramp would be shifted."""
    centres = (torch.arange(10.0) + 0.5) * 4.5 - 0.5
    result = upsample("bilinear", rand(1, 3, 9, 45), centres.expand(1, 1, 2, 10).contiguous())
    torch.testing.assert_close(result[0, 0, 4, 12:33], torch.arange(12.0, 33.0), atol=1e-4, rtol=0)


def test_bicubic_keeps_the_value_at_a_cell_centre_and_overshoots_a_step() -> None:
    signal = rand(1, 2, 4, 6)
    result = upsample("bicubic", rand(1, 3, 20, 18), signal)
    torch.testing.assert_close(result[..., 2::5, 1::3], signal)
    step = (torch.arange(8) > 3).float().expand(1, 1, 2, 8).contiguous()
    assert upsample("bicubic", rand(1, 3, 8, 32), step).max() > 1.01


def test_masked_bilinear_is_normalised_convolution() -> None:
    signal, valid = rand(1, 1, 5, 6), rand(1, 5, 6, seed=3) > 0.3
    result = upsample("bilinear", rand(1, 3, 20, 24), signal, valid)
    for y in range(20):
        for x in range(24):
            total = weight = 0.0
            v, u = (y + 0.5) / 4 - 0.5, (x + 0.5) / 4 - 0.5
            for i in range(-1, 6):
                for j in range(-1, 7):
                    w = max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j))
                    a, b = min(max(i, 0), 4), min(max(j, 0), 5)
                    if valid[0, a, b]:
                        total += w * signal[0, 0, a, b].item()
                        weight += w
            if weight > 1e-6:
                assert result[0, 0, y, x].item() == pytest.approx(total / weight, abs=1e-4)


def test_fill_goes_ring_by_ring() -> None:
    signal, valid = torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 6, dtype=torch.bool)
    signal[..., 0], signal[..., 5] = 1.0, 4.0
    valid[..., 0] = valid[..., 5] = True
    assert baselines.fill(signal, valid)[0, 0, 0].tolist() == [1, 1, 1, 4, 4, 4]


# --- joint bilateral upsampling


def test_jbu_agrees_with_a_naive_loop() -> None:
    image, signal = rand(1, 3, 20, 21), rand(1, 2, 4, 3, seed=1)
    valid = torch.ones(1, 4, 3, dtype=torch.bool)
    valid[0, 1, 1] = False
    sigma, sigma_r, radius = 0.6, 0.2, 2
    small, (tall, wide) = area(image, (4, 3))[0], (5.0, 7.0)
    expected = torch.zeros(1, 2, 20, 21)
    for y in range(20):
        for x in range(21):
            weights, values = [], []
            v, u = (y + 0.5) / tall - 0.5, (x + 0.5) / wide - 0.5
            for i in range(4):
                for j in range(3):
                    inside = (i - y // 5) ** 2 + (j - x // 7) ** 2 <= radius**2
                    if inside and valid[0, i, j]:
                        space = ((v - i) ** 2 + (u - j) ** 2) / (2 * sigma**2)
                        colour = (image[0, :, y, x] - small[0, :, i, j]).square().sum() / (2 * sigma_r**2)
                        weights.append(torch.exp(-space - colour))
                        values.append(signal[0, :, i, j])
            stacked = torch.stack(weights)
            expected[0, :, y, x] = (stacked[:, None] * torch.stack(values)).sum(0) / stacked.sum()
    result = upsample("jbu", image, signal, valid, sigma=sigma, sigma_r=sigma_r, radius=radius)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


# --- guided filter


def test_guided_filter_agrees_with_a_naive_loop() -> None:
    image, signal = rand(1, 3, 15, 12, dtype=torch.float64), rand(1, 2, 5, 4, seed=1, dtype=torch.float64)
    valid = rand(1, 5, 4, seed=2) > 0.3
    eps = 0.01
    small = area(image, (5, 4))[0][0]
    slopes, offsets = {}, {}
    near = {
        (i, j): [(a, b) for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if 0 <= a < 5 and 0 <= b < 4]
        for i in range(5)
        for j in range(4)
    }
    for cell, window in near.items():
        known = [(a, b) for a, b in window if valid[0, a, b]]
        if not known:
            continue
        guide = torch.stack([small[:, a, b] for a, b in known])
        values = torch.stack([signal[0, :, a, b] for a, b in known])
        centred = guide - guide.mean(0)
        covariance = centred.T @ (values - values.mean(0)) / len(known)
        variance = centred.T @ centred / len(known) + eps * torch.eye(3)
        slopes[cell] = torch.linalg.inv(variance) @ covariance  # (3, 2)
        offsets[cell] = values.mean(0) - guide.mean(0) @ slopes[cell]
    a_map, b_map = torch.zeros(1, 6, 5, 4).double(), torch.zeros(1, 2, 5, 4).double()
    has = torch.zeros(1, 5, 4, dtype=torch.bool)
    for (i, j), window in near.items():
        models = [cell for cell in window if cell in slopes]
        if models:
            has[0, i, j] = True
            a_map[0, :, i, j] = torch.stack([slopes[cell] for cell in models]).mean(0).flatten()
            b_map[0, :, i, j] = torch.stack([offsets[cell] for cell in models]).mean(0)
    assert has.all()
    a_full = baselines.interpolate(a_map, (15, 12), "bilinear").reshape(1, 3, 2, 15, 12)
    expected = (a_full * image[:, :, None]).sum(1) + baselines.interpolate(b_map, (15, 12), "bilinear")
    torch.testing.assert_close(upsample("guided_filter", image, signal, valid, eps=eps), expected)


def test_guided_filter_recovers_an_affine_function_of_the_guide() -> None:
    """Where the signal is affine in the colour, full detail comes back: no unguided method can do this."""
    image = rand(1, 3, 32, 32, dtype=torch.float64)
    matrix = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    truth = torch.einsum("cg,bghw->bchw", matrix, image) + 3
    signal = area(truth, (8, 8))[0]
    result = upsample("guided_filter", image, signal, eps=1e-12)
    assert (result - truth).abs().max() < 1e-5
    assert (upsample("bilinear", image, signal) - truth).abs().max() > 0.5


# --- errors


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("image", "signal", "valid", "error", "match"),
    [
        (rand(1, 3, 8, 8).byte(), rand(1, 1, 2, 2), None, TypeError, "image"),
        (rand(1, 3, 8, 8), rand(1, 1, 2, 2).long(), None, TypeError, "signal"),
        (rand(3, 8, 8), rand(1, 1, 2, 2), None, ValueError, "image"),
        (rand(1, 3, 8, 8), rand(1, 0, 2, 2), None, ValueError, "signal"),
        (rand(2, 3, 8, 8), rand(1, 1, 2, 2), None, ValueError, "batch"),
        (rand(1, 3, 8, 8), rand(1, 1, 9, 2), None, ValueError, "exceed"),
        (rand(1, 3, 8, 8), rand(1, 1, 2, 2), rand(1, 2, 2), TypeError, "valid"),
        (rand(1, 3, 8, 8), rand(1, 1, 2, 2), rand(2, 2) > 0, ValueError, "valid"),
        (rand(1, 3, 8, 8), rand(1, 1, 2, 2), rand(1, 2, 2) > 2, ValueError, "valid"),
    ],
)
def test_bad_input_is_named(name: str, image, signal, valid, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        upsample(name, image, signal, valid)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("guided_filter", {"eps": 0}, "eps"),
        ("guided_filter", {"eps": float("nan")}, "eps"),
        ("guided_filter", {"radius": 0}, "radius"),
        ("jbu", {"sigma": -1}, "sigma must be a positive number"),
        ("jbu", {"sgima": 1}, "did you mean 'sigma'"),
        ("bicubic_back_projected", {"times": -1}, "times"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        upsample(name, rand(1, 3, 8, 8), rand(1, 1, 2, 2), **options)
