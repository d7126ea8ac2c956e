"""The public face: every accepted form of image and signal, what comes out, and what may be done with it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ua
from ua.rendering import to_grid

PRESETS = list(ua.PRESETS)
RANDOM = torch.Generator().manual_seed(0)
PICTURE = torch.randint(0, 256, (3, 20, 24), generator=RANDOM).to(torch.uint8)
SIGNAL = torch.randn(1, 5, 4, 6, generator=RANDOM)
FEW_STEPS = {"preset": "released", "steps": 3}

IMAGES: dict[str, Any] = {
    "uint8": PICTURE,
    "uint8-batch": PICTURE[None],
    "float": PICTURE / 255,
    "float-batch": PICTURE[None] / 255,
    "numpy-uint8": PICTURE.permute(1, 2, 0).numpy(),
    "numpy-float": (PICTURE / 255).permute(1, 2, 0).numpy(),
    "numpy-strided": np.ascontiguousarray(PICTURE.permute(1, 2, 0).numpy()[::-1])[::-1],
    "pil": Image.fromarray(PICTURE.permute(1, 2, 0).numpy()),
}
SIGNALS: dict[str, Any] = {
    "4d": SIGNAL,
    "3d": SIGNAL[0],
    "2d": SIGNAL[0, 0],
    "numpy-4d": SIGNAL.numpy(),
    "numpy-3d": SIGNAL[0].numpy(),
    "numpy-2d": SIGNAL[0, 0].numpy(),
}


def random_maps(batch: int, grid: tuple[int, int], sigma: float, seed: int = 0) -> ua.Gaussians:
    random = torch.Generator().manual_seed(seed)
    maps = torch.rand(4, batch, *grid, generator=random)
    return ua.Gaussians(sigma * (0.5 + maps[0]), sigma * (0.5 + maps[1]), 6 * maps[2] - 3, 0.05 + 0.2 * maps[3])


# --- forms of input


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_every_form_of_an_image_is_the_same_image(image: Any) -> None:
    assert torch.equal(ua.upsample(image, SIGNAL, **FEW_STEPS), ua.upsample(PICTURE, SIGNAL, **FEW_STEPS))


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_every_form_of_a_signal_becomes_four_dimensional(signal: Any) -> None:
    out = ua.upsample(PICTURE, signal, **FEW_STEPS)
    channels = 1 if signal.ndim == 2 else 5
    assert out.shape == (1, channels, 20, 24) and out.dtype == torch.float32
    torch.testing.assert_close(out, ua.upsample(PICTURE, SIGNAL, **FEW_STEPS)[:, :channels], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(PICTURE[0].numpy()),
        PICTURE[0].numpy(),
        PICTURE[0].numpy()[..., None],
        PICTURE[:1],
        PICTURE[None, :1] / 255,
    ],
    ids=["pil", "numpy-2d", "numpy-3d", "uint8", "float-batch"],
)
def test_grey_images(picture: Any) -> None:
    assert torch.equal(ua.upsample(picture, SIGNAL, **FEW_STEPS), ua.upsample(PICTURE[:1], SIGNAL, **FEW_STEPS))


def test_other_pil_modes_become_rgb() -> None:
    picture = Image.fromarray(PICTURE.permute(1, 2, 0).numpy())
    expected = ua.upsample(PICTURE, SIGNAL)
    assert torch.equal(ua.upsample(picture.convert("RGBA"), SIGNAL), expected)
    palette = picture.quantize(16)
    assert torch.equal(ua.upsample(palette, SIGNAL), ua.upsample(palette.convert("RGB"), SIGNAL))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("guide_channels", [1, 2, 4, 7])
def test_any_number_of_guide_channels(preset: str, guide_channels: int) -> None:
    image = torch.rand(guide_channels, 16, 20, generator=torch.Generator().manual_seed(1))
    out = ua.upsample(image, SIGNAL[..., :4], preset=preset, steps=2)
    assert out.shape == (1, 5, 16, 20) and out.isfinite().all()


SIZES = {
    "scale-1": ((6, 7), (6, 7)),
    "one-cell": ((1, 1), (9, 8)),
    "one-pixel": ((1, 1), (1, 1)),
    "one-row": ((1, 5), (4, 20)),
    "unequal": ((3, 10), (30, 20)),
    "real": ((5, 7), (23, 31)),
    "barely-above-1": ((9, 9), (10, 11)),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("grid", "size"), SIZES.values(), ids=SIZES)
def test_any_size(grid: tuple[int, int], size: tuple[int, int], preset: str) -> None:
    random = torch.Generator().manual_seed(2)
    image, signal = torch.rand(2, 3, *size, generator=random), torch.randn(2, 2, *grid, generator=random)
    out = ua.upsample(image, signal, preset=preset, steps=2)
    assert out.shape == (2, 2, *size) and out.isfinite().all()


def test_any_number_of_channels() -> None:
    for channels in (1, 2, 21, 1000):
        signal = torch.randn(channels, 4, 6, generator=torch.Generator().manual_seed(3))
        assert ua.upsample(PICTURE, signal).shape == (1, channels, 20, 24)


# --- what comes out


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_output_has_the_signals_dtype(dtype: torch.dtype, preset: str) -> None:
    out = ua.upsample(PICTURE, SIGNAL.to(dtype), preset=preset, steps=1)
    assert out.dtype == dtype and out.device == SIGNAL.device and out.is_contiguous()
    exact = ua.upsample(PICTURE, SIGNAL.to(dtype).float(), preset=preset, steps=1)
    # One rounding of the result, and with back-projection one more each time.
    largest = float(exact.abs().max())
    bound = (1 + ua.preset(preset).back_projections) * torch.finfo(dtype).eps * largest + 1e-5 * max(1, largest)
    assert (out.double() - exact.double()).abs().max() < bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_images_of_other_precision(dtype: torch.dtype) -> None:
    image = (PICTURE / 255).to(dtype)
    out = ua.upsample(image, SIGNAL)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, ua.upsample(image.float(), SIGNAL), rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_upsample_is_fit_then_render(preset: str) -> None:
    fit = ua.fit(PICTURE, (4, 6), preset=preset, steps=2)
    assert torch.equal(ua.upsample(PICTURE, SIGNAL, preset=preset, steps=2), fit.render(SIGNAL))
    given = ua.fit(PICTURE, (4, 6), preset=preset, steps=2, leave_one_out=0)  # `ua.render` takes Gaussians as given
    rendered = ua.render(SIGNAL, PICTURE, given.gaussians, config=given.config)
    assert torch.equal(given.render(SIGNAL), rendered)
    alone = {"signal_is": "average", "leave_one_out": 0, "regression": False}  # looks at no other channel
    told = ua.fit(PICTURE, (4, 6), preset=preset, steps=2, **alone)
    assert torch.equal(told.render(SIGNAL[:, :2]), told.render(SIGNAL)[:, :2])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_module_is_the_function(preset: str) -> None:
    module = ua.UpsampleAnything(preset=preset, steps=2)
    assert torch.equal(module(PICTURE, SIGNAL), ua.upsample(PICTURE, SIGNAL, preset=preset, steps=2))
    assert module.config == ua.preset(preset).replace(steps=2)
    assert not list(module.parameters()) and not module.state_dict()
    assert preset in repr(module) and "steps=2" in repr(module)


def test_the_module_inside_a_model() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Conv2d(3, 8, kernel_size=4, stride=4)
            self.upsampler = ua.UpsampleAnything(radius=2)
            self.head = torch.nn.Conv2d(8, 2, kernel_size=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.upsampler(image, self.backbone(image)))

    model, image = Model(), torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(4))
    model(image).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("preset", PRESETS)
def test_overrides_change_the_result_and_presets_differ(preset: str) -> None:
    few = {"steps": 2, "signal_is": "average"}
    base = ua.upsample(PICTURE, SIGNAL, preset=preset, **few)
    for overrides in ({"sigma": 3.0}, {"sigma_r": 0.01}, {"radius": 1}, {"back_projections": 2}, {"diffusions": 3}):
        assert not torch.equal(ua.upsample(PICTURE, SIGNAL, preset=preset, **few | overrides), base), overrides
    for other in set(PRESETS) - {preset}:
        assert not torch.equal(ua.upsample(PICTURE, SIGNAL, preset=other, **few), base)


# --- batches


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_batch_is_its_items(backend: str, preset: str) -> None:
    random = torch.Generator().manual_seed(5)
    images, signals = torch.rand(3, 3, 20, 24, generator=random), torch.randn(3, 2, 4, 6, generator=random)
    options = {"preset": preset, "backend": backend, "steps": 2}
    together = ua.upsample(images, signals, **options)
    for i in range(3):
        alone = ua.upsample(images[i], signals[i], **options)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-5)
    # Neither the other images nor the other signals matter, not in the last bit.
    order = [2, 1, 0]
    mixed = ua.upsample(images[order], signals[order], **options)
    assert torch.equal(mixed[1], together[1]) and not torch.equal(mixed[0], together[0])


def test_each_image_of_a_batch_may_have_its_own_holes() -> None:
    random = torch.Generator().manual_seed(6)
    images, signals = torch.rand(2, 3, 20, 24, generator=random), torch.randn(2, 2, 4, 6, generator=random)
    valid = torch.rand(2, 4, 6, generator=random) < 0.5
    together = ua.upsample(images, signals, valid=valid)
    for i in range(2):
        alone = ua.upsample(images[i], signals[i], valid=valid[i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-5, equal_nan=True)
    shared = ua.upsample(images, signals, valid=valid[0])
    assert torch.equal(shared, ua.upsample(images, signals, valid=valid[:1].expand(2, -1, -1)))


# --- missing values


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_invalid_cells_never_bleed_in(dtype: torch.dtype, backend: str, preset: str) -> None:
    valid = torch.rand(4, 6, generator=torch.Generator().manual_seed(7)) < 0.6
    options = {"valid": valid, "preset": preset, "backend": backend, "steps": 1, "radius": 1}
    clean = ua.upsample(PICTURE, SIGNAL.to(dtype), **options)
    for junk in (0.0, -1e30, math.inf, -math.inf, math.nan):
        dirty = SIGNAL.to(dtype).masked_fill(~valid, junk)
        found = ua.upsample(PICTURE, dirty, **options)
        assert torch.equal(found.isnan(), clean.isnan()) and torch.equal(found.nan_to_num(), clean.nan_to_num()), junk


def test_pixels_without_a_valid_candidate_are_nan_and_no_others() -> None:
    valid = torch.zeros(4, 6, dtype=torch.bool)
    valid[1, 2] = True
    out = ua.upsample(PICTURE, SIGNAL, valid=valid, radius=1)
    near = torch.zeros(4, 6, dtype=torch.bool)
    for row, col in ((1, 2), (0, 2), (2, 2), (1, 1), (1, 3)):
        near[row, col] = True
    expected = ~near.repeat_interleave(5, 0).repeat_interleave(4, 1)
    assert torch.equal(out.isnan(), expected.expand_as(out))
    value = SIGNAL[0, :, 1, 2].view(1, 5, 1, 1)
    torch.testing.assert_close(out[:, :, ~expected], value.expand(1, 5, 20, 24)[:, :, ~expected], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_forms_of_valid(form: Any) -> None:
    valid = torch.rand(4, 6, generator=torch.Generator().manual_seed(8)) < 0.8
    expected = ua.upsample(PICTURE, SIGNAL, valid=valid)
    assert torch.equal(ua.upsample(PICTURE, SIGNAL, valid=form(valid)), expected)
    assert torch.equal(ua.upsample(PICTURE, SIGNAL, valid=form(valid[None])), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_everything_valid_is_no_mask(preset: str) -> None:
    everything = torch.ones(4, 6, dtype=torch.bool)
    found = ua.upsample(PICTURE, SIGNAL, valid=everything, preset=preset, steps=2)
    expected = ua.upsample(PICTURE, SIGNAL, preset=preset, steps=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_gradients_are_finite_beside_unreached_pixels(backend: str, preset: str) -> None:
    valid = torch.zeros(4, 6, dtype=torch.bool)
    valid[1, 1:3] = True
    signal = SIGNAL.clone().requires_grad_()
    out = ua.upsample(PICTURE, signal, valid=valid, preset=preset, backend=backend, steps=1, radius=1)
    known = ~out.isnan()
    assert known.any() and not known.all()
    out[known].square().sum().backward()
    assert signal.grad.isfinite().all() and signal.grad[..., valid].all()
    assert not signal.grad[..., ~valid].any()


# --- gradients and modes of PyTorch


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_differentiable_to_the_signal(backend: str, preset: str) -> None:
    # The render is linear in the signal, so its derivative is the render (where nothing is adapted to the signal).
    signal, direction = (
        SIGNAL.clone().requires_grad_(),
        torch.randn(SIGNAL.shape, generator=torch.Generator().manual_seed(9)),
    )
    alone = {"leave_one_out": 0, "regression": False, "signal_is": "average"}
    fit = ua.fit(PICTURE, (4, 6), preset=preset, backend=backend, steps=2, **alone)
    coefficients = torch.randn(1, 5, 20, 24, generator=torch.Generator().manual_seed(10))
    (gradient,) = torch.autograd.grad((fit.render(signal) * coefficients).sum(), signal)
    expected = float((fit.render(direction) * coefficients).sum())
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("preset", PRESETS)
def test_gradcheck_of_the_maps_and_the_signal(preset: str, backend: str) -> None:
    random = torch.Generator().manual_seed(11)
    image = torch.rand(1, 3, 7, 6, generator=random, dtype=torch.float64)
    signal = torch.randn(1, 2, 3, 2, generator=random, dtype=torch.float64)
    maps = [lr_map.double().requires_grad_() for lr_map in random_maps(1, (3, 2), 3.0)]
    config = ua.preset(preset).replace(radius=2)

    def render(signal: Tensor, *maps: Tensor) -> Tensor:
        return ua.render(signal, image, ua.Gaussians(*maps), config=config, backend=backend)

    assert torch.autograd.gradcheck(render, (signal.requires_grad_(), *maps), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_of_the_maps_agree_on_the_cpu(preset: str) -> None:
    maps = random_maps(2, (4, 6), 4.0)
    images, signals = (
        torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(12)),
        SIGNAL.expand(2, -1, -1, -1),
    )

    def gradients(dtype: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        leaves = ua.Gaussians(*(lr_map.to(dtype).requires_grad_() for lr_map in maps))
        out = ua.render(signals.to(dtype), images.to(dtype), leaves, config=ua.preset(preset), backend=backend)
        return torch.autograd.grad(out.square().mean(), tuple(leaves))

    found, expected = gradients(torch.float32, "cpu"), gradients(torch.float64, "reference")
    for name, a, b in zip(ua.Gaussians._fields, found, expected, strict=True):
        assert (a - b).abs().max() < 2e-5 * b.abs().max(), name


@pytest.mark.parametrize("backend", ["torch", "reference", "auto"])
def test_differentiable_to_the_image(backend: str) -> None:
    image = (PICTURE / 255).requires_grad_()
    ua.render(SIGNAL, image, random_maps(1, (4, 6), 4.0), backend=backend).square().mean().backward()
    assert image.grad.isfinite().all() and image.grad.any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_under_no_grad_and_inference_mode(preset: str, backend: str, mode: Any) -> None:
    expected = ua.upsample(PICTURE, SIGNAL, preset=preset, backend=backend, steps=2)
    with mode():
        image, signal = PICTURE / 255, SIGNAL.clone()  # tensors of that mode
        out = ua.upsample(image, signal, preset=preset, backend=backend, steps=2)
        fit = ua.fit(image, (4, 6), preset=preset, backend=backend, steps=2)
        assert not out.requires_grad
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(fit.render(SIGNAL), expected, rtol=0, atol=1e-6)
    fit.render(SIGNAL.clone().requires_grad_()).sum().backward()  # a fit is an ordinary one, wherever it was made


def test_a_probe_can_be_trained_on_the_output() -> None:
    features = ua.upsample(PICTURE, SIGNAL, **FEW_STEPS)
    labels = (PICTURE[0] > 127).long()[None]
    probe = torch.nn.Conv2d(5, 2, kernel_size=1)
    adam = torch.optim.Adam(probe.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(probe(features), labels)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_nothing_is_changed_in_place() -> None:
    image, signal, valid = PICTURE / 255, SIGNAL.clone(), torch.rand(4, 6) < 2
    ua.upsample(image, signal, valid=valid, **FEW_STEPS)
    assert torch.equal(image, PICTURE / 255) and torch.equal(signal, SIGNAL) and valid.all()


# --- the formula


def render_by_loops(signal: Tensor, image: Tensor, gaussians: ua.Gaussians, config: ua.FitConfig) -> Tensor:
    """DESIGN section 1 in Python floats, for one image and a fixed radius or one by rule."""
    channels, (rows, cols), (height, width) = signal.shape[1], signal.shape[-2:], image.shape[-2:]
    guide_lr = to_grid(image, (rows, cols), config.guide_lr)
    scale_y, scale_x = height / rows, width / cols
    out = torch.empty(1, channels, height, width, dtype=torch.float64)
    reach = radius_by_rule(gaussians, (height, width), config)
    for y in range(height):
        for x in range(width):
            scores, values = [], []
            owner = math.floor((y + 0.5) / scale_y), math.floor((x + 0.5) / scale_x)
            for dy in range(-config.radius, config.radius + 1):
                for dx in range(-config.radius, config.radius + 1):
                    i, j = owner[0] + dy, owner[1] + dx
                    if dy**2 + dx**2 > int(reach[y, x]) ** 2:
                        continue
                    if config.border == "clamp":
                        i, j = min(max(i, 0), rows - 1), min(max(j, 0), cols - 1)
                    elif not (0 <= i < rows and 0 <= j < cols):
                        continue
                    sigma_x, sigma_y, theta, sigma_r = (float(lr_map[0, i, j]) for lr_map in gaussians)
                    away_x = x - ((j + 0.5) * scale_x - 0.5)
                    away_y = y - ((i + 0.5) * scale_y - 0.5)
                    along = away_x * math.cos(theta) + away_y * math.sin(theta)
                    across = -away_x * math.sin(theta) + away_y * math.cos(theta)
                    colour = float((image[0, :, y, x] - guide_lr[0, :, i, j]).square().sum())
                    scores.append(
                        -(along**2) / (2 * sigma_x**2 + 1e-8)
                        - across**2 / (2 * sigma_y**2 + 1e-8)
                        - colour / (2 * sigma_r**2 + 1e-8)
                    )
                    values.append(signal[0, :, i, j])
            weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
            out[0, :, y, x] = (weights[:, None] * torch.stack(values)).sum(0)
    return out


def radius_by_rule(gaussians: ua.Gaussians, size: tuple[int, int], config: ua.FitConfig) -> Tensor:
    """PAPER section 2: clamp(ceil(2 sigma_eff(p)), 1, radius), sigma_eff bilinear of max(sigma_x, sigma_y); (H, W)."""
    if config.radius_rule == "fixed":
        return torch.full(size, config.radius)
    largest = torch.maximum(gaussians.sigma_x, gaussians.sigma_y)
    if config.radius_rule == "cell":
        largest = largest / math.sqrt(size[0] / largest.shape[-2] * size[1] / largest.shape[-1])
    at_pixels = torch.nn.functional.interpolate(largest[None], size, mode="bilinear", align_corners=False)[0, 0]
    return (2 * at_pixels).ceil().clamp(1, config.radius)


FORMULA_CASES = {
    "released": ("released", {"radius": 3}, 4.0),
    "released-with-small-discs": ("released", {"radius": 3}, 0.9),
    "paper": ("paper", {"radius": 3}, 4.0),
    "paper-with-small-discs": ("paper", {"radius": 3}, 2.0),
    "default-mixture": ("default", {"guide": "identity", "back_projections": 0, "diffusions": 0}, 3.0),
}


@pytest.mark.parametrize(("preset", "overrides", "sigma"), FORMULA_CASES.values(), ids=FORMULA_CASES)
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_render_is_its_formula(backend: str, preset: str, overrides: dict, sigma: float) -> None:
    random = torch.Generator().manual_seed(13)
    image, signal = torch.rand(1, 3, 11, 13, generator=random), torch.randn(1, 2, 3, 4, generator=random)
    gaussians, config = random_maps(1, (3, 4), sigma), ua.preset(preset).replace(**overrides)
    if "small-discs" in preset:
        assert radius_by_rule(gaussians, (11, 13), config).unique().numel() > 1
    expected = render_by_loops(
        signal.double(), image.double(), ua.Gaussians(*(lr_map.double() for lr_map in gaussians)), config
    )
    dtype = torch.float32 if backend == "cpu" else torch.float64
    maps = ua.Gaussians(*(lr_map.to(dtype) for lr_map in gaussians))
    found = ua.render(signal.to(dtype), image.to(dtype), maps, config=config, backend=backend)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if backend == "cpu" else 1e-12)


def test_theta_turns_from_right_to_down() -> None:
    # A long Gaussian at 45 degrees down-right prefers pixels on that diagonal; the other cell is round.
    image, signal = torch.zeros(1, 1, 9, 18), torch.tensor([[[[1.0, 0.0]]]])
    long = ua.Gaussians(
        torch.tensor([[[20.0, 5.0]]]),
        torch.tensor([[[1.0, 5.0]]]),
        torch.tensor([[[math.pi / 4, 0.0]]]),
        torch.ones(1, 1, 2),
    )
    config = ua.preset("paper").replace(radius=1)
    out = ua.render(signal, image, long, config=config)[0, 0]
    assert out[7, 7] > 0.8 and out[1, 1] > 0.8 and out[1, 7] < 0.1 and out[7, 1] < 0.1


def test_back_projection_repairs_the_averages() -> None:
    from ua.degrade import area

    alone = {"diffusions": 0, "signal_is": "average"}
    plain = ua.upsample(PICTURE, SIGNAL, back_projections=0, **alone)
    errors = []
    for n in (0, 1, 3, 10):
        out = ua.upsample(PICTURE, SIGNAL, back_projections=n, **alone)
        errors.append(float((area(out, (4, 6))[0] - SIGNAL).abs().max()))
    assert errors[0] > 0.1 and errors == sorted(errors, reverse=True) and errors[-1] < 0.05
    lacking = torch.nn.functional.interpolate(SIGNAL - area(plain, (4, 6))[0], (20, 24), mode="bicubic")
    once = ua.upsample(PICTURE, SIGNAL, back_projections=1, **alone)
    torch.testing.assert_close(once, plain + lacking, rtol=0, atol=1e-5)


def test_constants_stay_constant() -> None:
    for preset in PRESETS:
        out = ua.upsample(PICTURE, torch.full((1, 4, 6), 3.5), preset=preset, steps=2)
        torch.testing.assert_close(out, torch.full_like(out, 3.5), rtol=1e-5, atol=0)


def test_an_edge_of_the_image_becomes_an_edge_of_the_signal() -> None:
    # The point of it all: a black and a white half whose border lies inside a column of cells.
    image = torch.zeros(3, 32, 32)
    image[..., 18:] = 1.0
    truth = (image[0] > 0.5).float()
    signal = truth.view(4, 8, 4, 8).mean((1, 3))
    bilinear = torch.nn.functional.interpolate(signal[None, None], (32, 32), mode="bilinear", align_corners=False)
    for preset in PRESETS:
        out = ua.upsample(image, signal, preset=preset)
        error, before = ((v - truth).abs().mean() for v in (out, bilinear))
        # `reconstruction` is for colours: it mixes the border's cells (signal .75) with all others of their colour.
        assert error < (1 if preset == "reconstruction" else 0.5) * before, preset
