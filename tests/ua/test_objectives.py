"""Exchangeable losses of the fit: their formulas, gradients on every backend, and what a bad one is told."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ua
from kernels.bilateral import cpu, reference
from kernels.bilateral import torch as blocks
from kernels.bilateral import triton as fused
from ua import plugins
from ua.fitting import _objective
from ua.objectives import charbonnier, l1, l2
from ua.parameterisations.anisotropic import Kernels
from ua.rendering import radius_map, support, to_grid

RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.rand(2, 3, 24, 30, generator=RANDOM)
GRID = (4, 5)
ALL = plugins.names("ua.objectives")


def flat(*values: float) -> Tensor:
    """(1, 1, 1, n)"""
    return torch.tensor(values, dtype=torch.float64)[None, None, None]


def test_formulas_by_hand() -> None:
    rendered, guide = flat(0.1, 0.5, 1.0), flat(0.1, 0.2, 0.6)
    torch.testing.assert_close(l1.loss(rendered, guide), torch.tensor([0.7 / 3], dtype=torch.float64))
    torch.testing.assert_close(l2.loss(rendered, guide), torch.tensor([0.25 / 3], dtype=torch.float64))
    assert float(charbonnier.loss(guide, guide)) == pytest.approx(charbonnier.EPS, rel=1e-12)
    far = flat(0.0), flat(0.6)
    assert float(charbonnier.loss(*far)) == pytest.approx(0.6, rel=1e-5)
    near = flat(0.0), flat(charbonnier.EPS)
    assert float(charbonnier.loss(*near)) == pytest.approx(2**0.5 * charbonnier.EPS, rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_one_mean_an_image(name: str) -> None:
    loss = plugins.find("ua.objectives", name).loss
    rendered = IMAGES.flip(-1)
    both = loss(rendered, IMAGES)
    assert both.shape == (2,) and both.dtype == torch.float32
    assert torch.equal(both[:1], loss(rendered[:1], IMAGES[:1]))
    wide = (torch.cat([maps, maps], dim=-1) for maps in (rendered, IMAGES))
    torch.testing.assert_close(loss(*wide), both, msg="a mean does not depend on the size")
    exact = (maps[:1, :, :3, :4].double() for maps in (rendered, IMAGES))
    assert torch.autograd.gradcheck(loss, tuple(maps.requires_grad_() for maps in exact))


def loss_and_gradients(objective: str, backend: Any, dtype: torch.dtype, grid: Any, images: Tensor) -> list[Tensor]:
    """Of narrow Gaussians that are longer than wide, so that the angles have gradients and the discs differ."""
    config = ua.preset("released").replace(objective=objective, radius=3, radius_rule="cell")
    guide = images.to(dtype)
    random = torch.Generator().manual_seed(1)
    sigma_x, sigma_y = 2 + 6 * torch.rand(2, len(images), *grid, generator=random, dtype=torch.float64)
    angle = torch.rand(len(images), *grid, generator=random, dtype=torch.float64) - 0.5
    kernels = Kernels((len(images), *grid), sigma_x, sigma_y, 0.12, angle).to(dtype)
    source, guide_lr = to_grid(guide, grid, "bicubic"), to_grid(guide, grid, "bilinear")
    radius = radius_map(kernels.gaussians(), guide, config)
    assert radius is not None
    loss_of = _objective(config, backend)
    loss = loss_of(source, guide, guide_lr, kernels.factors(), support=support(config), radius=radius)
    loss.sum().backward()
    return [loss.detach(), *(parameter.grad for parameter in kernels.parameters())]


@pytest.mark.parametrize("objective", ["l2", "charbonnier", "ua.objectives.l1"])
def test_losses_and_gradients_agree_with_the_reference_in_float64(objective: str) -> None:
    exact = loss_and_gradients(objective, reference, torch.float64, GRID, IMAGES)
    for backend, dtype, error in (
        (blocks, torch.float64, 1e-11),
        (blocks, torch.float32, 1e-4),
        (cpu, torch.float32, 1e-4),
    ):
        found = loss_and_gradients(objective, backend, dtype, GRID, IMAGES)
        for name, ours, truth in zip(("loss", "x", "y", "theta", "r"), found, exact, strict=True):
            assert ours.dtype == dtype
            assert float((ours - truth).abs().max()) < error * float(truth.abs().max()), (backend.__name__, name)


def test_the_triton_kernels_serve_every_objective() -> None:
    if not torch.cuda.is_available() and fused.refuses(IMAGES, IMAGES) is not None:
        pytest.skip("neither a GPU nor Triton's interpreter")
    small = IMAGES[:1, :, :8, :12].to("cuda" if torch.cuda.is_available() else "cpu")
    exact = loss_and_gradients("l2", reference, torch.float64, (2, 3), small.cpu())
    if small.is_cuda:
        pytest.skip("the interpreter's test; the GPU has its own in tests/kernels")
    found = loss_and_gradients("l2", fused, torch.float32, (2, 3), small)
    for ours, truth in zip(found, exact, strict=True):
        assert float((ours - truth).abs().max()) < 1e-4 * float(truth.abs().max())


# --- in the fit


def test_l1_by_autograd_is_the_fused_l1() -> None:
    # A dotted name is a module like any other, so it does not get the loops of the backends. The angle is away from
    # its saddle at sigma_x = sigma_y, where rounding decides (PAPER section 2).
    options: dict[str, Any] = {"preset": "released", "steps": 8, "init": "structure_tensor", "backend": "cpu"}
    ours = ua.fit(IMAGES, GRID, objective="ua.objectives.l1", **options)
    loops = ua.fit(IMAGES, GRID, **options)
    assert ours.config != loops.config and not torch.equal(ours.losses, loops.losses)
    torch.testing.assert_close(ours.losses, loops.losses, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours.losses[0], loops.losses[0], rtol=1e-6, atol=0)


def test_the_default_takes_the_fused_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l1, "loss", lambda rendered, guide: pytest.fail("the plug-in was called"))
    assert ua.FitConfig().objective == "l1"
    assert ua.fit(IMAGES, GRID, preset="released", steps=1, backend="cpu").losses.shape == (1, 2)


@pytest.mark.parametrize("objective", ["l2", "charbonnier"])
@pytest.mark.parametrize(
    ("backend", "parameterisation"), [("cpu", "anisotropic"), ("torch", "anisotropic"), ("cpu", "log_covariance")]
)
def test_a_fit_decreases_its_own_loss(objective: str, backend: str, parameterisation: str) -> None:
    seen: list[Tensor] = []
    fit = ua.fit(
        IMAGES,
        GRID,
        preset="released",
        objective=objective,
        parameterisation=parameterisation,
        backend=backend,
        steps=6,
        lr=0.02,  # a step of .1 in the logarithms overshoots on an image of noise
        callback=lambda step, loss, gaussians: seen.append(loss),
    )
    assert (fit.losses.diff(dim=0) < 0).all() and torch.equal(torch.stack(seen), fit.losses)
    loss = plugins.find("ua.objectives", objective).loss
    start = fit.with_gaussians(ua.fit(IMAGES, GRID, preset="released", steps=0).gaussians)
    torch.testing.assert_close(fit.losses[0], loss(start.reconstruct(), IMAGES), rtol=1e-5, atol=0)
    assert (loss(fit.reconstruct(), IMAGES) < fit.losses[-1]).all()


def test_the_guide_of_the_loss_is_that_of_the_config() -> None:
    from ua.guides import lab

    options: dict[str, Any] = {"preset": "released", "guide": "lab", "objective": "l2"}
    fit, start = (ua.fit(IMAGES, GRID, steps=steps, **options) for steps in (1, 0))
    source = to_grid(lab.transform(IMAGES), GRID, "bicubic")
    rendered = ua.render(source, IMAGES, start.gaussians, config=start.config)
    torch.testing.assert_close(fit.losses[0], l2.loss(rendered, lab.transform(IMAGES)), rtol=1e-5, atol=0)


def test_images_of_a_batch_go_their_own_ways() -> None:
    options: dict[str, Any] = {"preset": "released", "objective": "charbonnier", "steps": 3, "backend": "torch"}
    both, second = ua.fit(IMAGES, GRID, **options), ua.fit(IMAGES[1:], GRID, **options)
    torch.testing.assert_close(both.losses[:, 1:], second.losses, rtol=1e-4, atol=0)


# --- one's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dotted name of an objective in a package outside the checkout: only the middle of the image counts."""
    (tmp_path / "my_losses").mkdir()
    (tmp_path / "my_losses" / "__init__.py").touch()
    (tmp_path / "my_losses" / "middle.py").write_text(
        "def loss(rendered, guide):\n    return (rendered - guide)[..., 8:16, 10:20].abs().mean((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)
    monkeypatch.delitem(sys.modules, "my_losses.middle", raising=False)
    return "my_losses.middle"


def test_an_objective_of_ones_own_by_its_dotted_name(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"preset": "released", "steps": 6, "backend": "cpu"}
    fit, whole = ua.fit(IMAGES, GRID, objective=own, **options), ua.fit(IMAGES, GRID, **options)

    def middle(fit: ua.Fit) -> Tensor:
        return (fit.reconstruct() - IMAGES)[..., 8:16, 10:20].abs().mean((1, 2, 3))

    assert (middle(fit) < middle(whole)).all()

    fit.save(tmp_path / "fit.safetensors")
    loaded = ua.Fit.load(tmp_path / "fit.safetensors")
    assert loaded.config == fit.config and loaded.config.objective == own and torch.equal(loaded.losses, fit.losses)
    monkeypatch.delitem(sys.modules, own)
    with pytest.raises(ValueError, match=r"needs the module 'my_losses.middle': import that first"):
        ua.Fit.load(tmp_path / "fit.safetensors")


BAD = {
    "number": (lambda rendered, guide: 1.0, TypeError, r"objective='ua.objectives.l1': loss\(\) must .*, got float"),
    "one-for-all": (
        lambda rendered, guide: (rendered - guide).abs().mean(),
        ValueError,
        r"\(B,\) = \(2,\), got .*\(\)",
    ),
    "map": (lambda rendered, guide: (rendered - guide).abs(), ValueError, r"one number an image.*\(2, 3, 24, 30\)"),
    "detached": (lambda rendered, guide: l2.loss(rendered.detach(), guide), ValueError, "differentiable.*and is not"),
}


@pytest.mark.parametrize(("loss", "exception", "message"), BAD.values(), ids=BAD)
def test_bad_objectives(loss: Any, exception: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l1, "loss", loss)
    with pytest.raises(exception, match=message):
        ua.fit(IMAGES, GRID, preset="released", steps=1, objective="ua.objectives.l1")


def test_a_backend_that_has_the_render_alone() -> None:
    name = plugins.define("my_backends.plain", refuses=reference.refuses, render=reference.render)
    ours, theirs = (ua.fit(IMAGES, GRID, preset="paper", steps=2, backend=each) for each in (name, "reference"))
    torch.testing.assert_close(ours.losses, theirs.losses)


def test_a_module_without_a_loss() -> None:
    with pytest.raises(ValueError, match="objective: module 'json.decoder' has no 'loss'"):
        ua.preset("released").replace(objective="json.decoder")


def test_the_way_over_the_operator_keeps_memory_linear_in_the_image() -> None:
    # Without checkpoints the block products would keep every weight: pixels x candidates x 4 bytes, some 40 MB here.
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    for backend in (cpu, blocks):
        kept = 0
        config = ua.preset("released").replace(objective="l2")
        image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
        kernels = Kernels((1, 16, 16), 16.0, 16.0, 0.12)
        source = to_grid(image, (16, 16), "bicubic")
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = _objective(config, backend)(source, image, source, kernels.factors(), support=support(config))
        assert loss.requires_grad and kept < 20 * image.numel() * 4, backend.__name__
