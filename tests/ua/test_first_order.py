"""The first-order correction: a naive dense formula, ramps, holes, and that all backends agree."""

import pytest
import torch
from torch import Tensor

import ua
from ua.first_order import RIDGE

CONFIG = ua.FitConfig(radius=2, first_order=True, guide_lr="area")
ODD = ((17, 13), (4, 3))  # image and grid: scales that are no integers, and unequal
BACKENDS = ["reference", "torch", "cpu", "triton"]


def problem(size: tuple[int, int], grid: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, ua.Gaussians]:
    """Image (2, 3, H, W), signal (2, 2, h, w) and Gaussians, in float32."""
    random = torch.Generator().manual_seed(seed)
    shape = (2, *grid)
    cell = (size[0] / grid[0] * size[1] / grid[1]) ** 0.5
    gaussians = ua.Gaussians(
        cell * (0.5 + torch.rand(shape, generator=random)),
        cell * (0.5 + torch.rand(shape, generator=random)),
        3 * torch.randn(shape, generator=random),
        0.2 + 0.3 * torch.rand(shape, generator=random),
    )
    return torch.rand(2, 3, *size, generator=random), torch.randn(2, 2, *grid, generator=random), gaussians


def weights(image: Tensor, gaussians: ua.Gaussians, config: ua.FitConfig, valid: Tensor | None = None) -> Tensor:
    """(h, w, B, H, W): the plain weight of every cell, each from the render of a signal that is 1 there alone."""
    grid = gaussians.theta.shape[-2:]
    planes = torch.eye(grid.numel(), dtype=image.dtype).view(1, -1, *grid).expand(len(image), -1, -1, -1)
    plain = config.replace(first_order=False)
    out = ua.render(planes, image, gaussians, valid=valid, config=plain, backend="reference")
    return out.movedim(1, 0).unflatten(0, grid)


def dense(signal: Tensor, image: Tensor, gaussians: ua.Gaussians, config: ua.FitConfig, valid: Tensor | None) -> Tensor:
    """The formula as it reads, positions counted in cells from the first one."""
    w = weights(image, gaussians, config, valid)
    (rows, cols), (height, width) = w.shape[:2], image.shape[-2:]
    at_cell = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).to(image).view(rows, cols, 2)
    y, x = ((torch.arange(n, dtype=image.dtype) + 0.5) * k / n - 0.5 for n, k in ((height, rows), (width, cols)))
    at_pixel = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)
    mean = torch.einsum("ijbyx,ijd->byxd", w, at_cell)
    away = at_cell[:, :, None, None, None] - mean  # [h, w, B, H, W, 2]
    covariance = torch.einsum("ijbyx,ijbyxd,ijbyxe->byxde", w, away, away)
    inverse = torch.linalg.inv(covariance + RIDGE * torch.eye(2, dtype=image.dtype))
    factor = 1 + torch.einsum("byxd,byxde,ijbyxe->ijbyx", at_pixel - mean, inverse, away)
    return torch.einsum("ijbyx,bcij->bcyx", w * factor, signal)


@pytest.mark.parametrize("border", ["drop", "clamp"])
@pytest.mark.parametrize(("size", "grid"), [ODD, ((16, 16), (4, 4)), ((12, 30), (6, 3))], ids=str)
@pytest.mark.parametrize("rule", ["fixed", "cell"])
def test_values_and_gradients_are_those_of_the_dense_formula(
    size: tuple[int, int], grid: tuple[int, int], border: str, rule: str
) -> None:
    image, signal, gaussians = problem(size, grid)
    config = CONFIG.replace(border=border, radius_rule=rule)
    found, expected = [], []
    for results in (found, expected):
        leaves = [t.double().requires_grad_() for t in (signal, *gaussians)]
        maps = ua.Gaussians(*leaves[1:])
        if results is found:
            out = ua.render(leaves[0], image.double(), maps, config=config, backend="torch")
        else:
            out = dense(leaves[0], image.double(), maps, config, None)
        coefficients = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        results += [out.detach(), *torch.autograd.grad((coefficients * out).sum(), leaves)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(
        found[0], ua.render(signal, image, gaussians, config=config.replace(first_order=False)).double(), atol=1e-2
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("border", ["drop", "clamp"])
def test_all_backends_agree_with_the_reference(backend: str, border: str) -> None:
    image, signal, gaussians = problem(*ODD)
    valid = torch.rand(2, *ODD[1], generator=torch.Generator().manual_seed(2)) > 0.2
    config = CONFIG.replace(border=border)
    found, expected = [], []
    for results, name, dtype in ((found, backend, torch.float32), (expected, "reference", torch.float64)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (signal, *gaussians)]
        out = ua.render(leaves[0], image.to(dtype), ua.Gaussians(*leaves[1:]), valid=valid, config=config, backend=name)
        coefficients = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results += [out.detach(), *torch.autograd.grad((coefficients * out).sum(), leaves)]
    for a, b in zip(found, expected, strict=True):
        scale = float(b.square().mean().sqrt())
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("border", ["drop", "clamp"])
@pytest.mark.parametrize(("size", "grid"), [((40, 40), (10, 10)), ((33, 50), (8, 10))], ids=str)
def test_a_ramp_renders_to_a_ramp_but_for_the_ridge(size: tuple[int, int], grid: tuple[int, int], border: str) -> None:
    image, _, gaussians = problem(size, grid)
    y, x = ((torch.arange(n) + 0.5) / n for n in grid)
    hr_y, hr_x = ((torch.arange(n) + 0.5) / n for n in size)
    slope_y, slope_x = 3.0 * grid[0], -2.0 * grid[1]  # a step of 3 (and of -2) from cell to cell
    ramp = (5 + slope_y * y[:, None] + slope_x * x).expand(2, 1, -1, -1)
    truth = 5 + slope_y * hr_y[:, None] + slope_x * hr_x
    config = CONFIG.replace(border=border)
    error = ua.render(ramp, image, gaussians, config=config) - truth
    plain = ua.render(ramp, image, gaussians, config=config.replace(first_order=False)) - truth
    # Exactly: the plain error is -g . (p - m), and the ridge leaves (Cov + .1 I)^-1 .1 of it.
    assert error.square().mean() < 0.1 * plain.square().mean()
    w = weights(image.double(), ua.Gaussians(*(lr_map.double() for lr_map in gaussians)), config)
    at = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)).view(*grid, 2)
    mean = torch.einsum("ijbyx,ijd->byxd", w, at)
    away = at[:, :, None, None, None] - mean
    covariance = torch.einsum("ijbyx,ijbyxd,ijbyxe->byxde", w, away, away)
    centre = torch.stack(
        torch.meshgrid(hr_y.double() * grid[0] - 0.5, hr_x.double() * grid[1] - 0.5, indexing="ij"), -1
    )
    ridge = torch.linalg.solve(covariance + RIDGE * torch.eye(2, dtype=torch.float64), RIDGE * (centre - mean))
    left = -(ridge @ torch.tensor([3.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(error[:, 0].double(), left, rtol=0, atol=2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_holes_are_nan_and_their_values_and_gradients_reach_nothing(backend: str) -> None:
    image, signal, gaussians = problem((12, 8), (4, 4))
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0, :3, :3] = False
    valid[1] = False
    valid[1, 3, 3] = True
    config = CONFIG.replace(radius=1)
    signal[~valid[:, None].expand_as(signal)] = torch.nan
    leaves = [t.clone().requires_grad_() for t in (signal, *gaussians)]
    out = ua.render(leaves[0], image, ua.Gaussians(*leaves[1:]), valid=valid, config=config, backend=backend)
    plain = ua.render(
        signal, image, gaussians, valid=valid, config=config.replace(first_order=False), backend="reference"
    )
    assert torch.equal(out.isnan(), plain.isnan()) and out[1, :, :6].isnan().all() and not out[0].isnan().all()
    gradients = torch.autograd.grad(out.nansum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][1, :, :3].any() and gradients[0][0].any()


def test_a_constant_far_from_zero_stays() -> None:
    image, _, gaussians = problem(*ODD)
    out = ua.render(torch.full((2, 1, 4, 3), 30_000.0), image, gaussians, config=CONFIG)
    torch.testing.assert_close(out, torch.full_like(out, 30_000.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_signals_are_computed_in_float32(dtype: torch.dtype) -> None:
    image, signal, gaussians = problem(*ODD)
    low = signal.to(dtype)
    out = ua.render(low, image, gaussians, config=CONFIG)
    assert out.dtype == dtype
    assert torch.equal(out, ua.render(low.float(), image, gaussians, config=CONFIG).to(dtype))


def test_back_projection_follows_the_correction() -> None:
    image, signal, gaussians = problem((16, 16), (4, 4))
    out = ua.render(signal, image, gaussians, config=CONFIG.replace(back_projections=8, signal_is="average"))
    average = torch.nn.functional.avg_pool2d(out, 4)
    corrected = torch.nn.functional.avg_pool2d(ua.render(signal, image, gaussians, config=CONFIG), 4)
    assert (average - signal).square().mean() < 0.2 * (corrected - signal).square().mean()


def test_a_fit_steps_the_plain_weights() -> None:
    image, _, _ = problem((16, 16), (4, 4))
    options = {"preset": "released", "steps": 3, "sigma": 4.0, "radius": 2}
    corrected, plain = (ua.fit(image, (4, 4), first_order=on, **options) for on in (True, False))
    assert torch.equal(corrected.losses, plain.losses)
