"""Initial Gaussians from the structure tensor: angles, stretch, flat cells, and every parameterisation."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ua
from kernels.geometry import Factors
from ua import parameterisations, plugins, structure

CAN_TURN = ["anisotropic", "fixed", "log_covariance", "no_range", "shared_range"]
ANGLES = [0.0, 30.0, 45.0, 90.0, 110.0, 160.0]  # degrees, of the stripes from +x towards +y
OPTIONS = {"preset": "released", "init": "structure_tensor", "sigma": 4.0, "radius": 2}


def stripes(degrees: float, size: tuple[int, int] = (64, 64)) -> Tensor:
    """(1, 3, H, W): a wave whose lines run at this angle."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    angle = math.radians(degrees)
    across = -x * math.sin(angle) + y * math.cos(angle)
    return (0.5 + 0.4 * torch.sin(across * (2 * math.pi / 9))).expand(1, 3, *size).contiguous()


def covariance(gaussians: ua.Gaussians) -> Tensor:
    """(B, h, w, 2, 2)."""
    cos, sin = gaussians.theta.cos(), gaussians.theta.sin()
    turn = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    return turn @ torch.diag_embed(torch.stack([gaussians.sigma_x, gaussians.sigma_y], -1).square()) @ turn.mT


@pytest.mark.parametrize("degrees", ANGLES)
def test_gaussians_lie_along_stripes(degrees: float) -> None:
    sigma_x, sigma_y, theta = structure.along_edges(stripes(degrees), (4, 4), 5.0, 5.0)
    away = (theta - math.radians(degrees)).remainder(math.pi)
    assert torch.minimum(away, math.pi - away).max() < math.radians(3)
    assert theta.abs().max() <= math.pi / 2 + 1e-6
    torch.testing.assert_close(sigma_x, torch.full_like(sigma_x, 5 * math.exp(0.5)), rtol=0.03, atol=0)
    torch.testing.assert_close(sigma_y, torch.full_like(sigma_y, 5.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_flat_image_stays_isotropic(value: float) -> None:
    flat = torch.full((2, 3, 40, 30), value)
    maps = ua.Gaussians(*structure.along_edges(flat, (4, 5), 4.0, 4.0), torch.ones(2, 4, 5))
    torch.testing.assert_close(covariance(maps), 16 * torch.eye(2).expand(2, 4, 5, 2, 2), rtol=1e-5, atol=1e-5)
    uneven = ua.Gaussians(*structure.along_edges(flat, (4, 5), 4.0, 6.0), torch.ones(2, 4, 5))
    expected = torch.diag(torch.tensor([16.0, 36.0])).expand(2, 4, 5, 2, 2)
    torch.testing.assert_close(covariance(uneven), expected, rtol=1e-5, atol=1e-5)


def test_faint_noise_is_no_edge() -> None:
    faint = 0.5 + 0.5 / 255 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sigma_x, sigma_y, _ = structure.along_edges(faint, (8, 8), 4.0, 4.0)
    assert (sigma_x / sigma_y).max() < 1.15


def test_unequal_scales_stretch_along_the_edge_of_the_cell() -> None:
    # Squeezing an image in x and the Gaussians with it gives the squeezed Gaussians.
    square = ua.Gaussians(*structure.along_edges(stripes(45, (96, 96)), (6, 6), 8.0, 8.0), torch.ones(1, 6, 6))
    wide = torch.nn.functional.interpolate(stripes(45, (96, 96)), (96, 192), mode="bicubic", align_corners=False)
    stretched = ua.Gaussians(*structure.along_edges(wide.clamp(0, 1), (6, 6), 16.0, 8.0), torch.ones(1, 6, 6))
    twice = torch.diag(torch.tensor([2.0, 1.0]))
    expected = twice @ covariance(square) @ twice
    torch.testing.assert_close(covariance(stretched), expected, rtol=0.08, atol=8.0)


def test_images_of_a_batch_do_not_mix() -> None:
    both = structure.along_edges(torch.cat([stripes(30), stripes(120)]), (4, 4), 5.0, 5.0)
    one = structure.along_edges(stripes(30), (4, 4), 5.0, 5.0)
    for a, b in zip(both, one, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=0, atol=1e-6)


# --- through the parameterisations


@pytest.mark.parametrize("name", CAN_TURN)
def test_maps_go_round_through_every_parameterisation(name: str) -> None:
    random = torch.Generator().manual_seed(1)
    shape = (2, 3, 4)
    sigma_x, sigma_y = (2 + 4 * torch.rand(shape, generator=random) for _ in range(2))
    theta = math.pi * (torch.rand(shape, generator=random) - 0.5)
    kernels = plugins.find("ua.parameterisations", name).Kernels(shape, sigma_x, sigma_y, 0.2, theta)
    expected = ua.Gaussians(sigma_x, sigma_y, theta, torch.full(shape, math.inf if name == "no_range" else 0.2))
    torch.testing.assert_close(covariance(kernels.gaussians()), covariance(expected), rtol=1e-4, atol=1e-4)
    if name != "log_covariance":  # which gives the longer axis first
        for a, b in zip(kernels.gaussians(), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    found, wanted = (precision(g.factors()) for g in (kernels, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def precision(factors: Factors) -> Tensor:
    ux, uy, vx, vy, _ = factors
    return torch.stack([ux**2 + vx**2, ux * uy + vx * vy, uy**2 + vy**2])


def test_all_but_isotropic_can_turn() -> None:
    able = [
        name
        for name in plugins.names("ua.parameterisations")
        if parameterisations.can_turn(plugins.find("ua.parameterisations", name).Kernels)
    ]
    assert able == CAN_TURN
    with pytest.raises(ValueError, match="init='structure_tensor' needs Gaussians that can turn.*'isotropic'"):
        ua.fit(stripes(30), (4, 4), **OPTIONS, parameterisation="isotropic")


# --- through fits and renders


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("name", CAN_TURN)
def test_zero_steps_are_the_initial_gaussians(name: str, backend: str) -> None:
    fit = ua.fit(stripes(30), (4, 4), **OPTIONS, parameterisation=name, steps=0, backend=backend)
    maps = structure.along_edges(stripes(30), (4, 4), 4.0, 4.0)
    expected = ua.Gaussians(*maps, fit.gaussians.sigma_r)
    torch.testing.assert_close(covariance(fit.gaussians), covariance(expected), rtol=1e-4, atol=1e-4)
    assert fit.render(torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))).isfinite().all()


def test_the_guides_space_and_prefilter_count() -> None:
    image = stripes(30)
    image[:, :, ::5, ::7] = 1.0
    options = OPTIONS | {"steps": 0, "guide": "lab", "prefilter": "median"}
    from ua.guides import lab
    from ua.prefilters import median

    expected = structure.along_edges(lab.transform(median.apply(image)), (4, 4), 4.0, 4.0)
    found = ua.fit(image, (4, 4), **options).gaussians
    for a, b in zip(found, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["anisotropic", "log_covariance", "shared_range"])
def test_fits_start_there_and_the_backends_agree(name: str) -> None:
    image = stripes(30, (32, 32))
    fits = [
        ua.fit(image, (4, 4), **OPTIONS, parameterisation=name, steps=4, backend=backend)
        for backend in ("cpu", "torch")
    ]
    torch.testing.assert_close(fits[0].losses, fits[1].losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(covariance(fits[0].gaussians), covariance(fits[1].gaussians), rtol=1e-2, atol=1e-2)
    start = ua.fit(image, (4, 4), **OPTIONS, parameterisation=name, steps=0, backend="torch")
    error = (start.reconstruct() - image).abs().mean()
    torch.testing.assert_close(fits[0].losses[0, 0], error, rtol=1e-5, atol=1e-7)
    assert fits[0].losses[-1] < fits[0].losses[0]


OLD_STYLE = """
from ua.parameterisations import anisotropic


class Kernels(anisotropic.Kernels):
    '''As people wrote them: four arguments.'''

    def __init__(self, shape, sigma_x, sigma_y, sigma_r):
        assert all(isinstance(value, float) for value in (sigma_x, sigma_y, sigma_r))
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
"""


def test_ones_own_with_four_arguments_goes_on_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_kernels").mkdir()
    (tmp_path / "old_kernels" / "plain.py").write_text(OLD_STYLE)
    monkeypatch.syspath_prepend(tmp_path)
    own = OPTIONS | {"parameterisation": "old_kernels.plain", "steps": 2}
    with pytest.raises(ValueError, match="needs Gaussians that can turn.*'old_kernels.plain'"):
        ua.fit(stripes(30), (4, 4), **own)
    fit = ua.fit(stripes(30), (4, 4), **own | {"init": "isotropic"})
    assert fit.losses.shape == (2, 1)
