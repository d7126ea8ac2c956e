"""Bad input: the right type of exception, and a message that names the argument, what came and what is accepted."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from torch import Tensor

import ua
from ua import inputs

IMAGE = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
SIGNAL = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
VALID = torch.ones(2, 3, dtype=torch.bool)
GAUSSIANS = ua.fit(IMAGE, (2, 3), backend="torch").gaussians


def with_value(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


def wide(array: Any, dtype: Any) -> np.ndarray:
    return np.asarray(array).astype(dtype)


# --- images

BAD_IMAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "nan": (with_value(IMAGE, math.nan), ValueError, "image must be finite"),
    "inf": (with_value(IMAGE, math.inf), ValueError, "image must be finite"),
    "minus-inf": (with_value(IMAGE, -math.inf), ValueError, "image must be finite"),
    "255": (IMAGE * 255, ValueError, r"image must be .* in \[0, 1\]"),
    "negative": (IMAGE - 0.5, ValueError, r"image must be .* in \[0, 1\]"),
    "barely-outside": (with_value(IMAGE, 1.001), ValueError, "in .0, 1., got values from .* to 1.001"),
    "numpy-nan": (np.full((8, 12, 3), np.nan, np.float32), ValueError, "image must be finite"),
    "int64": ((IMAGE * 255).long(), TypeError, "image must be float .* got torch.int64"),
    "int8": (IMAGE.to(torch.int8), TypeError, "image must be float .* got torch.int8"),
    "bool": (IMAGE > 0.5, TypeError, "image must be float .* got torch.bool"),
    "complex": (IMAGE.to(torch.complex64), TypeError, "image must be float .* got torch.complex64"),
    "numpy-int": (np.zeros((8, 12, 3), int), TypeError, "image must be float .* got int64"),
    "numpy-uint16": (np.zeros((8, 12, 3), np.uint16), TypeError, "image must be .*uint16"),
    "numpy-bool": (np.zeros((8, 12, 3), bool), TypeError, "image must be .* got .*bool"),
    "numpy-text": (np.array([["a"]]), TypeError, "image must be"),
    "numpy-object": (np.array([[None]]), TypeError, "image must be"),
    "fp8": (IMAGE.to(torch.float8_e4m3fn), TypeError, "image must be float .* got torch.float8_e4m3fn"),
    "sparse": (IMAGE.to_sparse(), TypeError, "image must be a dense tensor with values, got torch.sparse_coo on cpu"),
    "meta": (IMAGE.to("meta"), TypeError, "image must be a dense tensor with values, got torch.strided on meta"),
    "list": (IMAGE.tolist(), TypeError, "image must be a tensor, a NumPy array or a PIL image, got list"),
    "path": ("photo.jpg", TypeError, "image must be .* got str"),
    "none": (None, TypeError, "image must be .* got NoneType"),
    "scalar": (torch.tensor(0.5), ValueError, r"image must be \(B, G, H, W\)"),
    "two-dimensional": (IMAGE[0], ValueError, r"image must be \(B, G, H, W\).*got shape \(8, 12\)"),
    "five-dimensional": (IMAGE[None, None], ValueError, r"image must be \(B, G, H, W\)"),
    "numpy-batch": (np.zeros((1, 8, 12, 3), np.float32), ValueError, r"image as a NumPy array must be \(H, W, G\)"),
    "numpy-one-dimensional": (np.zeros(8, np.float32), ValueError, r"image as a NumPy array must be \(H, W, G\)"),
    "no-images": (torch.zeros(0, 3, 8, 12), ValueError, "image must be .* not empty"),
    "no-channels": (torch.zeros(0, 8, 12), ValueError, "image must be .* not empty"),
    "no-rows": (torch.zeros(3, 0, 12), ValueError, "image must be .* not empty"),
    "no-columns": (torch.zeros(3, 8, 0), ValueError, "image must be .* not empty"),
    "numpy-empty": (np.zeros((0, 12, 3), np.float32), ValueError, "image must be .* not empty"),
    # Modes that PIL's own conversion to RGB clips to white or to black.
    "pil-16-bit": (Image.fromarray(np.full((8, 12), 30_000, np.uint16)), ValueError, "image.*I;16"),
    "pil-32-bit": (Image.fromarray(np.full((8, 12), 30_000, np.int32)), ValueError, "image.*I"),
    "pil-float": (Image.fromarray(np.full((8, 12), 0.5, np.float32)), ValueError, "image.*F"),
}


@pytest.mark.parametrize(("image", "exception", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images(image: Any, exception: type[Exception], message: str) -> None:
    for call in (
        lambda: ua.upsample(image, SIGNAL),
        lambda: ua.fit(image, (2, 3)),
        lambda: ua.render(SIGNAL, image, GAUSSIANS),
        lambda: ua.UpsampleAnything()(image, SIGNAL),
    ):
        with pytest.raises(exception, match=message):
            call()


@pytest.mark.parametrize("dtype", [np.longdouble, ">f4", ">f8"], ids=["longdouble", "big-endian", "big-endian-double"])
def test_floats_that_torch_does_not_know_are_converted_or_named(dtype: Any) -> None:
    values = wide(IMAGE.permute(1, 2, 0).numpy(), dtype)
    try:
        found = inputs.as_image(values)
    except TypeError as error:
        assert "image must be" in str(error)
    else:
        torch.testing.assert_close(found.float(), IMAGE[None])


def test_rounding_beyond_the_range_is_no_other_range() -> None:
    assert ua.upsample(with_value(IMAGE, 1.00005), SIGNAL).isfinite().all()
    assert ua.upsample(with_value(IMAGE, -0.00005), SIGNAL).isfinite().all()


# --- signals

BAD_SIGNALS: dict[str, tuple[Any, type[Exception], str]] = {
    "nan": (with_value(SIGNAL, math.nan), ValueError, "signal must be finite.*valid="),
    "inf": (with_value(SIGNAL, math.inf), ValueError, "signal must be finite"),
    "numpy-nan": (np.full((2, 3), np.nan), ValueError, "signal must be finite"),
    "labels": (
        torch.zeros(2, 3, dtype=torch.long),
        TypeError,
        "signal must be floating point, got torch.int64.*one-hot",
    ),
    "uint8": (torch.zeros(2, 3, dtype=torch.uint8), TypeError, "signal must be floating point"),
    "bool": (VALID, TypeError, "signal must be floating point"),
    "complex": (SIGNAL.to(torch.complex64), TypeError, "signal must be floating point"),
    "numpy-int": (np.zeros((2, 3), int), TypeError, "signal must be floating point"),
    "numpy-text": (np.full((2, 3), "a"), TypeError, "signal must be"),
    "numpy-object": (np.full((2, 3), None), TypeError, "signal must be"),
    "fp8": (SIGNAL.to(torch.float8_e4m3fn), TypeError, "signal must be floating point, got torch.float8_e4m3fn"),
    "sparse": (SIGNAL.to_sparse(), TypeError, "signal must be a dense tensor"),
    "list": ([[1.0, 2.0]], TypeError, "signal must be a tensor or a NumPy array, got list"),
    "none": (None, TypeError, "signal must be .* got NoneType"),
    "pil": (Image.new("L", (3, 2)), TypeError, "signal must be .* got Image"),
    "scalar": (torch.tensor(1.0), ValueError, r"signal must be \(B, C, h, w\)"),
    "one-dimensional": (torch.zeros(3), ValueError, r"signal must be \(B, C, h, w\).*got shape \(3,\)"),
    "five-dimensional": (torch.zeros(1, 1, 1, 2, 3), ValueError, r"signal must be \(B, C, h, w\)"),
    "no-channels": (torch.zeros(1, 0, 2, 3), ValueError, "signal must be .* not empty"),
    "no-cells": (torch.zeros(1, 2, 0, 3), ValueError, "signal must be .* not empty"),
    "two-for-one-image": (
        torch.zeros(2, 1, 2, 3),
        ValueError,
        "signal and image must have the same batch size, got 2 and 1",
    ),
    "higher-than-the-image": (torch.zeros(9, 3), ValueError, "the grid of signal .* the image's 8 x 12, got 9 x 3"),
    "wider-than-the-image": (torch.zeros(2, 13), ValueError, "grid .* got 2 x 13"),
    "other-device": (
        torch.zeros(2, 3, device="meta"),
        ValueError,
        "signal and image must be on one device, got meta and cpu",
    ),
}


@pytest.mark.parametrize(("signal", "exception", "message"), BAD_SIGNALS.values(), ids=BAD_SIGNALS)
def test_bad_signals(signal: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        ua.upsample(IMAGE, signal)
    with pytest.raises(exception, match=message):
        ua.render(signal, IMAGE, GAUSSIANS)
    with pytest.raises(exception, match=r"signal|grid"):
        ua.fit(IMAGE, (2, 3)).render(signal)


@pytest.mark.parametrize("dtype", [np.longdouble, ">f4"], ids=["longdouble", "big-endian"])
def test_signals_that_torch_does_not_know_are_converted_or_named(dtype: Any) -> None:
    try:
        found, _ = inputs.as_signal(wide(SIGNAL, dtype), None, IMAGE[None])
    except TypeError as error:
        assert "signal must be" in str(error)
    else:
        torch.testing.assert_close(found.float(), SIGNAL[None])


def test_a_bad_signal_costs_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fit(*arguments: Any, **options: Any) -> None:
        raise AssertionError("fitted before the signal was checked")

    monkeypatch.setattr("ua.upsampling.fit", no_fit)
    with pytest.raises(ValueError, match=r"signal must be finite"):
        ua.upsample(IMAGE, with_value(SIGNAL, math.nan))


def test_a_signal_on_another_grid_than_the_fits() -> None:
    with pytest.raises(ValueError, match=r"signal must lie on the grid of the fit, \(2, 3\), got shape \(1, 4, 3\)"):
        ua.fit(IMAGE, (2, 3)).render(torch.zeros(1, 4, 3))


# --- masks

BAD_MASKS: dict[str, tuple[Any, type[Exception], str]] = {
    "float": (VALID.float(), TypeError, "valid must be a boolean .* got torch.float32"),
    "int": (VALID.long(), TypeError, "valid must be a boolean"),
    "numpy-float": (np.ones((2, 3)), TypeError, "valid must be a boolean"),
    "numpy-object": (np.array([[None]]), TypeError, "valid must be a boolean"),
    "list": (VALID.tolist(), TypeError, "valid must be a boolean .* got list"),
    "number": (True, TypeError, "valid must be a boolean .* got bool"),
    "transposed": (VALID.T, ValueError, r"valid must be on the grid .* or \(2, 3\), got shape \(3, 2\)"),
    "at-high-resolution": (torch.ones(8, 12, dtype=torch.bool), ValueError, r"valid must be .* got shape \(8, 12\)"),
    "two-channels": (VALID.expand(1, 2, 2, 3), ValueError, "valid must be"),
    "of-two-images": (VALID.expand(2, 2, 3), ValueError, "valid must be"),
    "one-dimensional": (VALID[0], ValueError, "valid must be"),
    "empty": (torch.ones(0, 3, dtype=torch.bool), ValueError, "valid must be"),
    "nothing-valid": (~VALID, ValueError, "valid must mark at least one cell"),
}


@pytest.mark.parametrize(("valid", "exception", "message"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_bad_masks(valid: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        ua.upsample(IMAGE, SIGNAL, valid=valid)
    with pytest.raises(exception, match=message):
        ua.fit(IMAGE, (2, 3)).render(SIGNAL, valid)


def test_every_image_of_a_batch_needs_a_valid_cell() -> None:
    valid = torch.stack([VALID, ~VALID])
    with pytest.raises(ValueError, match=r"valid must mark at least one cell of every image"):
        ua.upsample(IMAGE.expand(2, -1, -1, -1), SIGNAL.expand(2, -1, -1, -1), valid=valid)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite_where_valid(value: float) -> None:
    valid = VALID.clone()
    valid[0, 0] = False
    with pytest.raises(ValueError, match=r"signal must be finite where valid is True"):
        ua.upsample(IMAGE, with_value(SIGNAL, value), valid=valid)


# --- grids

BAD_GRIDS: dict[str, tuple[Any, type[Exception], str]] = {
    "zero": ((0, 3), ValueError, "grid .* got 0 x 3"),
    "negative": ((2, -3), ValueError, "grid .* got 2 x -3"),
    "larger-than-the-image": ((9, 3), ValueError, "grid .* between 1 x 1 and the image's 8 x 12, got 9 x 3"),
    "one-number": ((2,), TypeError, "grid must be a pair"),
    "three-numbers": ((2, 3, 4), TypeError, "grid must be a pair"),
    "number": (2, TypeError, "grid must be a pair"),
    "text": ("23", TypeError, "grid must be a pair"),
    "none": (None, TypeError, "grid must be a pair"),
    "floats": ((2.0, 3.0), TypeError, "grid must be two integers"),
    "bools": ((True, True), TypeError, "grid must be two integers"),
    "tensor": (torch.tensor([2, 3]), TypeError, "grid must be a pair"),
}


@pytest.mark.parametrize(("grid", "exception", "message"), BAD_GRIDS.values(), ids=BAD_GRIDS)
def test_bad_grids(grid: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        ua.fit(IMAGE, grid)


@pytest.mark.parametrize("grid", [(2, 3), [2, 3], torch.Size([2, 3])], ids=["tuple", "list", "size"])
def test_forms_of_a_grid(grid: Any) -> None:
    assert ua.fit(IMAGE, grid).gaussians.theta.shape == (1, 2, 3)


# --- Gaussians

POSITIVE = ("sigma_x", "sigma_y", "sigma_r")


def gaussians_with(name: str, value: Any) -> ua.Gaussians:
    return GAUSSIANS._replace(**{name: value})


BAD_GAUSSIANS: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, TypeError, "gaussians must be ua.Gaussians, got NoneType"),
    "list": (list(GAUSSIANS), TypeError, "gaussians must be ua.Gaussians, got list"),
    "tensor": (torch.ones(4, 1, 2, 3), TypeError, "gaussians must be ua.Gaussians, got Tensor"),
    "three-maps": (tuple(GAUSSIANS[:3]), TypeError, "gaussians must be ua.Gaussians"),
    "a-fit": (ua.fit(IMAGE, (2, 3)), TypeError, "gaussians must be ua.Gaussians, got Fit"),
    **{
        f"{name}-a-number": (gaussians_with(name, 3.0), TypeError, f"gaussians.{name} must be a floating-point tensor")
        for name in ua.Gaussians._fields
    },
    "integers": (gaussians_with("sigma_x", torch.ones(1, 2, 3, dtype=torch.long)), TypeError, "gaussians.sigma_x"),
    "other-grid": (
        gaussians_with("theta", torch.zeros(1, 3, 2)),
        ValueError,
        r"gaussians.theta must be \(B, h, w\) = \(1, 2, 3\)",
    ),
    "no-batch": (gaussians_with("sigma_y", torch.ones(2, 3)), ValueError, "gaussians.sigma_y must be"),
    "other-batch": (gaussians_with("sigma_r", torch.ones(2, 2, 3)), ValueError, "gaussians.sigma_r must be"),
    "nan-theta": (
        gaussians_with("theta", torch.full((1, 2, 3), math.nan)),
        ValueError,
        "gaussians.theta must be finite",
    ),
    "inf-sigma": (
        gaussians_with("sigma_x", torch.full((1, 2, 3), math.inf)),
        ValueError,
        "gaussians.sigma_x must be finite",
    ),
    **{
        f"{name}-{label}": (
            gaussians_with(name, with_value(getattr(GAUSSIANS, name), value)),
            ValueError,
            f"gaussians.{name} must be positive",
        )
        for name in POSITIVE
        for label, value in {"zero": 0.0, "negative": -1.0, "nan": math.nan}.items()
    },
}


@pytest.mark.parametrize(("gaussians", "exception", "message"), BAD_GAUSSIANS.values(), ids=BAD_GAUSSIANS)
def test_bad_gaussians(gaussians: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        ua.render(SIGNAL, IMAGE, gaussians)


@pytest.mark.parametrize(
    "gaussians",
    [
        None,
        list(GAUSSIANS),
        gaussians_with("theta", torch.zeros(1, 3, 2)),
        gaussians_with("sigma_x", -GAUSSIANS.sigma_x),
    ],
    ids=["none", "list", "other-grid", "negative"],
)
def test_bad_gaussians_do_not_enter_a_fit(gaussians: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"gaussians"):
        ua.fit(IMAGE, (2, 3)).with_gaussians(gaussians).render(SIGNAL)


def test_an_infinite_sigma_r_is_no_range_term() -> None:
    config = ua.preset("default")
    found = ua.render(SIGNAL, IMAGE, gaussians_with("sigma_r", torch.full((1, 2, 3), math.inf)), config=config)
    huge = ua.render(SIGNAL, IMAGE, gaussians_with("sigma_r", torch.full((1, 2, 3), 1e6)), config=config)
    torch.testing.assert_close(found, huge, rtol=0, atol=1e-5)


# --- names and settings

UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "preset": ({"preset": "relesed"}, "unknown preset 'relesed'; did you mean 'released'.*paper.*default"),
    "preset-none": ({"preset": None}, "unknown preset None"),
    "backend": ({"backend": "torhc"}, "unknown backend 'torhc'; did you mean 'torch'.*auto, cpu, reference"),
    "field": ({"step": 3}, "unknown FitConfig field 'step'; did you mean 'steps'"),
    "parameterisation": (
        {"parameterisation": "anisotropc"},
        "unknown parameterisations? 'anisotropc'; did you mean 'anisotropic'",
    ),
    "guide": ({"guide": "labb"}, "unknown guides? 'labb'; did you mean 'lab'"),
    "border": ({"border": "clamped"}, "unknown border 'clamped'; did you mean 'clamp'"),
    "guide_lr": ({"guide_lr": "bilinar"}, "unknown guide_lr 'bilinar'; did you mean 'bilinear'"),
    "image_lr": ({"image_lr": "cubic"}, "unknown image_lr 'cubic'; did you mean 'bicubic'"),
    "sigma_unit": ({"sigma_unit": "pixels"}, "unknown sigma_unit 'pixels'; did you mean 'pixel'"),
    "radius_rule": ({"radius_rule": "cells"}, "unknown radius_rule 'cells'; did you mean 'cell'"),
    "module": ({"parameterisation": "no_such_package.kernels"}, "no module 'no_such_package.kernels'"),
    "backend-module": ({"backend": "no_such_package.kernels"}, "no module 'no_such_package.kernels'"),
}


@pytest.mark.parametrize(("options", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_names_raise_with_the_nearest_one(options: dict[str, Any], message: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ua.upsample(IMAGE, SIGNAL, **options),
        lambda: ua.fit(IMAGE, (2, 3), **options),
    ]
    if "backend" not in options or "." not in options["backend"]:
        calls.append(lambda: ua.UpsampleAnything(**options))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", ["preset", "backend", "parameterisation", "guide"])
@pytest.mark.parametrize("value", [None, 3, ["a"], ".", ".cpu", ""], ids=repr)
def test_names_that_are_no_names(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        ua.upsample(IMAGE, SIGNAL, **{name: value})


@pytest.mark.parametrize("name", ["backend", "parameterisation", "guide"])
def test_modules_that_are_no_such_part(name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{name}.*os.path"):
        ua.upsample(IMAGE, SIGNAL, **{name: "os.path"})


def test_a_config_must_be_one() -> None:
    for config in ("released", {"radius": 3}, ua.Gaussians):
        with pytest.raises(TypeError, match=r"config must be .*FitConfig"):
            ua.render(SIGNAL, IMAGE, GAUSSIANS, config=config)


def test_a_callback_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"callback must be"):
        ua.fit(IMAGE, (2, 3), steps=1, callback=3)


def test_a_backend_that_cannot_says_why_and_what_can() -> None:
    with pytest.raises(ValueError, match=r"backend='cpu' cannot .*float64.*torch"):
        ua.upsample(IMAGE.double(), SIGNAL, backend="cpu")
    with pytest.raises(ValueError, match=r"backend='cpu' cannot .*gradient with respect to the image"):
        ua.render(SIGNAL, IMAGE.clone().requires_grad_(), GAUSSIANS, backend="cpu")


# --- properties

SIDE = st.integers(1, 7)


@settings(deadline=None, max_examples=60)
@given(
    grid=st.tuples(SIDE, SIDE),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    guide_channels=st.integers(1, 4),
    preset=st.sampled_from(list(ua.PRESETS)),
    seed=st.integers(0, 99),
)
def test_any_shape_works_or_is_refused(
    grid: tuple[int, int],
    size: tuple[int, int],
    batch: int,
    channels: int,
    guide_channels: int,
    preset: str,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, guide_channels, *size, generator=random)
    signal = torch.randn(batch, channels, *grid, generator=random)
    if grid[0] > size[0] or grid[1] > size[1]:
        with pytest.raises(ValueError, match=r"grid"):
            ua.upsample(image, signal, preset=preset)
        return
    out = ua.upsample(image, signal, preset=preset, steps=1)
    assert out.shape == (batch, channels, *size) and out.isfinite().all()
    if ua.preset(preset).back_projections == 0:  # mixing alone invents no values
        assert (out <= signal.amax((2, 3), keepdim=True) + 1e-5).all()
        assert (out >= signal.amin((2, 3), keepdim=True) - 1e-5).all()


FINITE = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None, max_examples=60)
@given(values=npst.arrays(np.float32, (2, 2, 3), elements=FINITE), pixels=npst.arrays(np.uint8, (8, 12, 3)))
def test_any_finite_values_give_finite_values_within_their_range(values: np.ndarray, pixels: np.ndarray) -> None:
    out = ua.upsample(pixels, values, preset="released", steps=1)
    slack = 1e-5 * max(1.0, float(np.abs(values).max()))
    low, high = (torch.from_numpy(f(values, axis=(1, 2))).view(1, 2, 1, 1) for f in (np.min, np.max))
    assert (out >= low - slack).all() and (out <= high + slack).all()


ANYTHING = st.one_of(st.floats(width=32), st.sampled_from([math.nan, math.inf, -math.inf]))


@settings(deadline=None, max_examples=60)
@given(
    values=npst.arrays(np.float32, (1, 2, 3), elements=ANYTHING),
    valid=st.one_of(st.none(), npst.arrays(bool, (2, 3))),
)
def test_signals_are_taken_exactly_if_they_are_finite_where_valid(values: np.ndarray, valid: np.ndarray | None) -> None:
    good = bool(np.isfinite(values[:, np.ones((2, 3), bool) if valid is None else valid]).all())
    good = good and (valid is None or bool(valid.any()))
    if good:
        taken, _ = inputs.as_signal(values, valid, IMAGE[None])
        assert taken.isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"signal must be finite|valid must mark"):
            inputs.as_signal(values, valid, IMAGE[None])


@settings(deadline=None, max_examples=60)
@given(pixels=npst.arrays(np.float32, (3, 2, 2), elements=st.one_of(ANYTHING, st.floats(0, 1, width=32))))
def test_images_are_taken_exactly_if_they_are_in_range(pixels: np.ndarray) -> None:
    if ((pixels >= 0) & (pixels <= 1)).all():
        assert torch.equal(inputs.as_image(torch.from_numpy(pixels)), torch.from_numpy(pixels)[None])
    elif not ((pixels >= -inputs.RANGE_SLACK) & (pixels <= 1 + inputs.RANGE_SLACK)).all():
        with pytest.raises(ValueError, match=r"image must be finite and in"):
            inputs.as_image(torch.from_numpy(pixels))


def test_an_array_in_the_order_of_a_tensor_is_refused():
    with pytest.raises(ValueError, match=r"channels last, got shape \(3, 8, 12\)"):
        inputs.as_image(np.zeros((3, 8, 12), np.float32))
    assert inputs.as_image(np.zeros((3, 8, 4), np.float32)).shape == (1, 4, 3, 8)  # three rows of RGBA


@pytest.mark.parametrize("shape", [(32, 48, 3), (2, 32, 48, 4)], ids=str)
def test_a_tensor_in_the_order_of_an_array_is_refused(shape: tuple[int, ...]):
    image = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"image as a tensor .* channels first, got shape .*movedim\(-1, -3\)"):
        inputs.as_image(image)
    assert inputs.as_image(image.movedim(-1, -3)).shape[-2:] == (32, 48)
    assert inputs.as_image(torch.zeros(4, 32, 3)).shape == (1, 4, 32, 3)


def test_channels_taken_for_columns_are_warned_of():
    guide = torch.zeros(1, 3, 28, 56)
    with pytest.warns(UserWarning, match=r"shape \(2, 4, 48\) has cells of 7 x 1.17 pixels; .* channels first"):
        inputs.as_signal(torch.zeros(2, 4, 48), None, guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs.as_signal(torch.zeros(48, 2, 4), None, guide)
        inputs.as_signal(torch.zeros(2, 2, 2), None, guide)


@pytest.mark.parametrize("channels", [8, 10, 21, 32, 64])
def test_few_channels_taken_for_columns_are_warned_of(channels: int):
    """Cells that are not three times as long as wide, but would be square if the channels came last."""
    guide = torch.zeros(1, 3, 224, 224)
    with pytest.warns(UserWarning, match="channels first"):
        inputs.as_signal(torch.zeros(14, 14, channels), None, guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs.as_signal(torch.zeros(channels, 14, 14), None, guide)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((375, 500), (21, 28, 28)), ((480, 640), (12, 16, 16)), ((256, 512), (19, 37, 37)), ((180, 320), (21, 37, 37))],
    ids=str,
)
def test_a_grid_of_a_squashed_image_is_not_warned_of(size: tuple[int, int], shape: tuple[int, int, int]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs.as_signal(torch.zeros(shape), None, torch.zeros(1, 3, *size))
