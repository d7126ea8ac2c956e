"""Exchangeable ways from free numbers to Gaussians."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ua
from kernels.bilateral import torch as blocks
from kernels.geometry import Factors, Support
from ua import plugins
from ua.parameterisations import Parameterisation
from ua.parameterisations.log_covariance import Kernels as LogCovariance
from ua.rendering import to_grid

ALL = list(plugins.names("ua.parameterisations"))
LEARNT = [name for name in ALL if name != "fixed"]
SHAPE = (2, 3, 4)


def make(name: str, sigma_x: float = 5.0, sigma_y: float = 3.0, sigma_r: float = 0.2, **options) -> Parameterisation:
    return plugins.find("ua.parameterisations", name).Kernels(options.get("shape", SHAPE), sigma_x, sigma_y, sigma_r)


def diagonal_stripes(size: int = 24) -> Tensor:
    """(1, 3, size, size): a picture whose edges run down-left, so that tilted Gaussians are better ones."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    stripes = ((x + y) % 12 < 6).float()
    return (0.2 + 0.6 * stripes).expand(1, 3, size, size) + 0.02 * torch.rand(
        1, 3, size, size, generator=torch.Generator().manual_seed(0)
    )


def precision(factors: Factors) -> Tensor:
    """The half-precision matrices, (3, B, h, w): a, b, c."""
    ux, uy, vx, vy, _ = factors
    return torch.stack([ux**2 + vx**2, ux * uy + vx * vy, uy**2 + vy**2])


def randomise(kernels: Parameterisation, spread: float, seed: int = 0) -> Parameterisation:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in kernels.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=random)
    return kernels


def loss_of(kernels: Parameterisation, image: Tensor, grid: tuple[int, int]) -> Tensor:
    source = to_grid(image, grid, "bilinear")
    return blocks.reconstruction_l1(source, image, source, kernels.factors(), support=Support(2, "clamp"))


# --- all of them


@pytest.mark.parametrize("name", ALL)
def test_the_first_gaussians_are_those_asked_for(name: str) -> None:
    kernels = make(name)
    gaussians = kernels.gaussians()
    assert isinstance(gaussians, ua.Gaussians) and all(lr_map.shape == SHAPE for lr_map in gaussians)
    assert all(lr_map.dtype == torch.float32 for lr_map in gaussians)
    torch.testing.assert_close(gaussians.sigma_x, torch.full(SHAPE, 5.0))
    torch.testing.assert_close(gaussians.sigma_y, torch.full(SHAPE, 3.0))
    assert not gaussians.theta.any()
    expected = math.inf if name == "no_range" else 0.2
    torch.testing.assert_close(gaussians.sigma_r, torch.full(SHAPE, expected))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("sigma_x", "sigma_y"), [(5.0, 3.0), (3.0, 5.0), (4.0, 4.0)], ids=["wide", "high", "round"])
def test_factors_are_those_of_the_gaussians(name: str, sigma_x: float, sigma_y: float) -> None:
    for spread in (0.0, 0.3):
        kernels = randomise(make(name, sigma_x, sigma_y), spread).double()
        found, expected = kernels.factors(), kernels.gaussians().factors()
        torch.testing.assert_close(precision(found), precision(expected), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.r, expected.r, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("spread", [0.0, 0.2], ids=["at-the-start", "on-the-way"])
def test_gradients_are_finite_and_reach_every_parameter(name: str, spread: float) -> None:
    kernels = randomise(make(name, 6.0, 6.0, 0.3, shape=(1, 4, 4)), spread)
    loss_of(kernels, diagonal_stripes(), (4, 4)).sum().backward()
    for label, parameter in kernels.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label
        if spread or label != "raw_theta":
            assert parameter.grad.abs().max() > 1e-7, label


@pytest.mark.parametrize("name", LEARNT)
def test_gradients_of_the_factors_against_finite_differences(name: str) -> None:
    kernels = randomise(make(name, 2.0, 2.0, 0.5, shape=(1, 1, 2)), 0.3).double()
    names, values = zip(*kernels.named_parameters(), strict=True)

    def factors(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.func.functional_call(
                Wrapped(kernels), dict(zip([f"kernels.{n}" for n in names], values, strict=True)), ()
            )
        )

    leaves = tuple(value.detach().clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(factors, leaves, eps=1e-6, atol=1e-7)


class Wrapped(torch.nn.Module):
    """`forward` is `factors`, for `functional_call`."""

    def __init__(self, kernels: Parameterisation) -> None:
        super().__init__()
        self.kernels = kernels

    def forward(self) -> Factors:
        return self.kernels.factors()


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("name", LEARNT)
def test_a_few_steps_reduce_the_loss(name: str, backend: str) -> None:
    fit = ua.fit(
        diagonal_stripes(),
        (4, 4),
        preset="released",
        parameterisation=name,
        backend=backend,
        steps=8,
        sigma=6.0,
        radius=2,
    )
    assert fit.losses.shape == (8, 1)
    assert fit.losses[-1, 0] < 0.99 * fit.losses[0, 0]
    assert fit.render(torch.randn(1, 4, 4)).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_sigmas_stay_positive_whatever_the_numbers(name: str) -> None:
    kernels = make(name)
    for value in (-1e4, -50.0, 20.0):
        with torch.no_grad():
            for parameter in kernels.parameters():
                parameter.fill_(value)
        gaussians = kernels.gaussians()
        for sigma in (gaussians.sigma_x, gaussians.sigma_y, gaussians.sigma_r):
            assert (sigma > 0).all() and not sigma.isnan().any(), value


@pytest.mark.parametrize("name", ALL)
def test_images_of_a_batch_have_numbers_of_their_own(name: str) -> None:
    random = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    options = {"preset": "released", "parameterisation": name, "backend": "cpu", "steps": 4, "sigma": 6.0, "radius": 2}
    fit = ua.fit(torch.cat([diagonal_stripes(), random[:1]]), (4, 4), **options)
    other = ua.fit(torch.cat([diagonal_stripes(), random[1:]]), (4, 4), **options)
    assert torch.equal(fit.losses[:, 0], other.losses[:, 0])
    for a, b in zip(fit.gaussians, other.gaussians, strict=True):
        assert torch.equal(a[0], b[0])
        assert name in ("fixed", "no_range") or a.isinf().all() or not a.any() or not torch.equal(a[1], b[1])


# --- each


def test_fixed_has_nothing_to_learn() -> None:
    fit = ua.fit(diagonal_stripes(), (4, 4), preset="released", parameterisation="fixed")
    assert fit.losses.shape == (0, 1) and not list(make("fixed").parameters())
    start = ua.fit(diagonal_stripes(), (4, 4), preset="released", steps=0)
    signal = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fit.render(signal), start.render(signal), rtol=0, atol=1e-5)


def test_isotropic_keeps_the_ratio_of_the_scales() -> None:
    gaussians = randomise(make("isotropic"), 0.5).gaussians()
    torch.testing.assert_close(gaussians.sigma_y, 0.6 * gaussians.sigma_x)
    assert not gaussians.theta.any() and gaussians.sigma_x.unique().numel() > 1


def test_shared_range_has_one_sigma_r_for_an_image() -> None:
    sigma_r = randomise(make("shared_range"), 0.5).gaussians().sigma_r
    assert (sigma_r == sigma_r[:, :1, :1]).all() and sigma_r[0, 0, 0] != sigma_r[1, 0, 0]


def test_no_range_does_not_look_at_colours() -> None:
    fit = ua.fit(diagonal_stripes(), (4, 4), preset="released", parameterisation="no_range", steps=3)
    assert fit.gaussians.sigma_r.isinf().all() and not any(
        "sigma_r" in n for n, _ in make("no_range").named_parameters()
    )
    signal = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    other = ua.render(signal, torch.rand(1, 3, 24, 24), fit.gaussians, config=fit.config)
    torch.testing.assert_close(fit.render(signal), other, rtol=0, atol=1e-6)


def test_theta_of_anisotropic_is_pi_tanh() -> None:
    kernels = make("anisotropic")
    with torch.no_grad():
        kernels.raw_theta.copy_(torch.linspace(-3, 3, 24).view(SHAPE))
    torch.testing.assert_close(kernels.gaussians().theta, math.pi * torch.linspace(-3, 3, 24).tanh().view(SHAPE))


def test_parameters_of_anisotropic_are_in_the_order_of_fused_steps() -> None:
    # `cpu.fit_anisotropic` takes log sigma_x, log sigma_y, raw theta, log sigma_r.
    assert [name for name, _ in make("anisotropic").named_parameters()] == [
        "log_sigma_x",
        "log_sigma_y",
        "raw_theta",
        "log_sigma_r",
    ]


# --- the saddle: where sigma_x = sigma_y an angle means nothing


def test_log_covariance_can_tilt_a_round_gaussian_and_angles_cannot() -> None:
    image = diagonal_stripes().double()
    tilted, angled = (make(name, 6.0, 6.0, 0.3, shape=(1, 4, 4)).double() for name in ("log_covariance", "anisotropic"))
    loss_of(tilted, image, (4, 4)).sum().backward()
    loss_of(angled, image, (4, 4)).sum().backward()
    size = angled.log_sigma_x.grad.abs().max()
    assert angled.raw_theta.grad.abs().max() < 1e-9 * size
    assert tilted.off_diagonal.grad.abs().max() > 0.05 * size
    # The stripes run down-left: stretching along them is a negative off-diagonal, so the loss rises with it.
    assert tilted.off_diagonal.grad.mean() > 0


def test_log_covariance_is_the_exponential_of_its_matrix() -> None:
    kernels = randomise(make("log_covariance"), 0.7).double()
    mean, difference, off_diagonal = kernels.mean, kernels.difference, kernels.off_diagonal
    root = torch.stack([mean + difference, off_diagonal, off_diagonal, mean - difference], -1).unflatten(-1, (2, 2))
    covariance = torch.linalg.matrix_exp(2 * root)
    half_precision = torch.linalg.inv(2 * covariance)
    expected = torch.stack([half_precision[..., 0, 0], half_precision[..., 0, 1], half_precision[..., 1, 1]])
    torch.testing.assert_close(precision(kernels.factors()), expected, rtol=1e-9, atol=1e-12)


def test_log_covariance_is_smooth_where_its_series_ends() -> None:
    # Power series below rho^2 = 0.01, cosh and sinh above: values and slopes must meet.
    def factors_at(rho: float) -> tuple[list[float], list[float]]:
        kernels = LogCovariance((1, 1, 1), 1.0, 1.0, 1.0).double()
        with torch.no_grad():
            kernels.difference.fill_(0.6 * rho)
            kernels.off_diagonal.fill_(0.8 * rho)
        factors = kernels.factors()
        values, slopes = [], []
        for value in factors[:4]:
            gradients = torch.autograd.grad(value.sum(), (kernels.difference, kernels.off_diagonal), retain_graph=True)
            values.append(float(value.detach()))
            slopes += [float(gradient) for gradient in gradients]
        return values, slopes

    below, above = factors_at(0.1 - 1e-9), factors_at(0.1 + 1e-9)
    assert below[0] == pytest.approx(above[0], abs=1e-8) and below[1] == pytest.approx(above[1], abs=1e-8)
    for rho in (0.0, 1e-12, 1e-6, 1e-3):
        values, slopes = factors_at(rho)
        assert all(map(math.isfinite, values + slopes))
        assert values == pytest.approx(
            [math.sqrt(0.5) * math.exp(-0.6 * rho), -math.sqrt(0.5) * 0.8 * rho] * 1 + values[2:], abs=2e-6
        )


def test_log_covariance_reports_its_gaussians_with_the_longer_axis_first() -> None:
    kernels = make("log_covariance", 3.0, 5.0)  # higher than wide: the long axis points down
    with torch.no_grad():
        kernels.off_diagonal += 1e-3
    gaussians = kernels.gaussians()
    torch.testing.assert_close(gaussians.sigma_x, torch.full(SHAPE, 5.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(gaussians.theta, torch.full(SHAPE, math.pi / 2), rtol=0, atol=0.01)


# --- one's own

OWN = """
from torch import nn, zeros

from ua.gaussians import Gaussians
from ua.parameterisations import Parameterisation, log_parameter, positive


class Kernels(Parameterisation):
    '''Round Gaussians of one size for the whole image.'''

    def __init__(self, shape, sigma_x, sigma_y, sigma_r):
        super().__init__(shape, sigma_x, sigma_y, sigma_r)
        self.shape = shape
        self.log_sigma = log_parameter((shape[0], 1, 1), sigma_x)
        self.log_sigma_r = log_parameter((shape[0], 1, 1), sigma_r)

    def gaussians(self):
        sigma, sigma_r = (positive(raw).expand(self.shape) for raw in (self.log_sigma, self.log_sigma_r))
        return Gaussians(sigma, sigma, zeros(self.shape), sigma_r)
"""


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_ones_own_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    (tmp_path / "own_kernels").mkdir()
    (tmp_path / "own_kernels" / "one_size.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"preset": "released", "parameterisation": "own_kernels.one_size", "steps": 5, "sigma": 6.0, "radius": 2}
    fit = ua.fit(diagonal_stripes(), (4, 4), backend=backend, **options)
    assert fit.losses[-1] < fit.losses[0]
    assert fit.gaussians.sigma_x.unique().numel() == 1 and fit.gaussians.sigma_x[0, 0, 0] != 6.0
    path = tmp_path / "fit.safetensors"
    fit.save(path)
    assert ua.Fit.load(path).config.parameterisation == "own_kernels.one_size"
