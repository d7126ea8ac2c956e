"""The differentiable operator: given Gaussians, mix a signal up to the pixels of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.geometry import Factors, Support
from ua import backends, degrade, discriminants, first_order, inputs, leave_one_out, plugins, regression
from ua.averages import are_probabilities, averages_truth
from ua.config import FitConfig, preset
from ua.gaussians import Gaussians, sigma_eff
from ua.refinement import conductances, diffuse_on_schedule, known_pixels, refine, refines


def render(
    signal: Any,
    image: Any,
    gaussians: Gaussians,
    *,
    valid: Any = None,
    config: FitConfig | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mix an LR `signal` up to the grid of `image`: out(p) = sum_q softmax_q(score(p, q)) signal(q).

    score(p, q) = - x'^2 / 2 sigma_x^2 - y'^2 / 2 sigma_y^2 - |I(p) - I_lr(q)|^2 / 2 sigma_r^2 (arXiv 2511.16301;
    DESIGN section 1). Differentiable with respect to the signal and the four maps (and the image, with every
    backend but `cpu`).

    With `config.back_projections` what the render lacks against the signal, averaged over every cell, is added bicubic,
    that many times (Irani & Peleg 1991); with `config.diffusions` it is then smoothed along the guide, in as many
    steps or more (`ua.refinement`). With `config.regression` all this is done to what a regression on local statistics
    of the guide leaves of features (`ua.regression`); with `config.discriminants` predicted class probabilities are
    mixed as logarithms, with what discriminants of the guide say within cells (`ua.discriminants`). Whether a signal is
    the average of a truth or a prediction, `config.signal_is` says. Averages of labels are sharpened in
    `config.assignments` rounds (`kernels.assignment`). The Gaussians are those given: `config.leave_one_out`, and wider
    ones for noisy maps of classes, are the matter of `Fit.render`.

    Args:
        signal: (B, C, h, w), (C, h, w) or (h, w), floating point, any units.
        image: the guide; tensor (B, G, H, W) or (G, H, W), float in [0, 1] or uint8; NumPy (H, W, G); PIL.
        gaussians: four maps (B, h, w); sigma_x, sigma_y in HR pixels, theta in radians, sigma_r in guide units.
        valid: bool (B, h, w), (B, 1, h, w) or (h, w); cells marked False get no weight. A pixel without any valid
            candidate is NaN.
        config: candidates, guide, regression, correction and refinement (`radius`, `radius_rule`, `border`,
            `prefilter`, `guide`, `guide_lr`, `regression`, `discriminants`, `first_order`, `signal_is`,
            `back_projections`, `diffusions`, `edge`, `assignments`); None: those of the preset "default".
        backend: "auto", "reference", "torch", "cpu" or "triton".

    Returns:
        (B, C, H, W) in the signal's dtype, on its device.

    Raises:
        TypeError, ValueError: an argument of another type, shape, range or device; the message names it.
    """
    pixels = inputs.as_image(image)
    values, mask = inputs.as_signal(signal, valid, pixels)
    check_gaussians(gaussians, (len(pixels), *inputs.grid_of(values)), pixels)
    config = preset("default") if config is None else config
    if not isinstance(config, FitConfig):
        raise TypeError(f"config must be a ua.FitConfig, got {type(config).__name__}; ua.preset(name) gives one")
    with no_autocast():
        values, kind = promoted(values, pixels, config), values.dtype
        averages = averages_of(values, mask, config)
        out = _render(values, make_guide(pixels, config), gaussians, mask, config, averages, backend, adapt=False)
    return out.to(kind)


def render_adapted(
    signal: Tensor, image: Tensor, gaussians: Gaussians, valid: Tensor | None, config: FitConfig, backend: str
) -> Tensor:
    """`render` of checked arguments, the Gaussians adapted to the signal first where `config` says so."""
    with no_autocast():
        values, guide = promoted(signal, image, config), make_guide(image, config)
        averages = averages_of(values, valid, config)
        out = _render(values, guide, gaussians, valid, config, averages, backend, adapt=True)
    return out.to(signal.dtype)


def promoted(signal: Tensor, image: Tensor, config: FitConfig) -> Tensor:
    """Half precision in that of the image where more than one sum follows: rounded once, at the end."""
    half = signal.dtype in (torch.float16, torch.bfloat16)
    sums = config.regression or config.discriminants or config.first_order or refines(config)
    return signal.to(image.dtype) if half and sums else signal


def _render(
    signal: Tensor,
    guide: Tensor,
    gaussians: Gaussians,
    valid: Tensor | None,
    config: FitConfig,
    averages: Tensor,
    backend: str,
    *,
    adapt: bool,
) -> Tensor:
    """Mixture and refinement of checked arguments; predicted classes go apart from all other signals of a batch.

    adapt: whether the Gaussians are adapted to what is mixed: to averages, where `config.leave_one_out` says so, and
        made wider for noisy maps of classes.
    """
    classes = averages.new_zeros(len(signal))
    if config.discriminants:
        classes = are_probabilities(signal, valid).to(averages.device) & ~averages
    if bool(classes.all()):
        return _render_classes(signal, guide, gaussians, valid, config, backend, adapt=adapt)
    if not bool(classes.any()):
        return _render_values(signal, guide, gaussians, valid, config, averages, backend, adapt=adapt)
    result = guide.new_empty((*signal.shape[:2], *guide.shape[-2:]), dtype=signal.dtype)
    for some in (classes, ~classes):
        here = some.to(guide.device)
        mask, maps = None if valid is None else valid[here], Gaussians(*(lr_map[here] for lr_map in gaussians))
        result[here] = _render(signal[here], guide[here], maps, mask, config, averages[some], backend, adapt=adapt)
    return result


def _render_values(
    signal: Tensor,
    guide: Tensor,
    gaussians: Gaussians,
    valid: Tensor | None,
    config: FitConfig,
    averages: Tensor,
    backend: str,
    *,
    adapt: bool,
) -> Tensor:
    """Regression of features; mixture and refinement of what it leaves, or of other signals as they are."""
    trend = regression.learn(signal, guide, valid) if config.regression else None
    if trend is not None:
        signal = signal - trend.low
    if adapt:
        gaussians = adapted(signal, guide, gaussians, valid, config, averages, backend)
    out = _mixed(signal, guide, gaussians, valid, config, backend)
    if refines(config):
        out = refine(out, signal, guide, valid, config, averages, backend)
    return out if trend is None else trend.added_to(out)


def _render_classes(
    signal: Tensor,
    guide: Tensor,
    gaussians: Gaussians,
    valid: Tensor | None,
    config: FitConfig,
    backend: str,
    *,
    adapt: bool,
) -> Tensor:
    """Predicted class probabilities: as logarithms, with what discriminants of the guide say within cells.

    adapt: whether a noisy map is mixed by wider Gaussians than those given.
    """
    evidence, trust = discriminants.learn(signal, guide, valid)
    evidence = evidence.to(signal.dtype)
    logarithms = discriminants.to_logarithms(signal)
    rest = logarithms - discriminants.averages(evidence, signal)

    def mixture(maps: Gaussians) -> Tensor:
        return _mixed(rest, guide, maps, valid, config, backend) + evidence

    def confirmed(out: Tensor) -> tuple[Tensor, Tensor]:
        return discriminants.confirmed(discriminants.to_probabilities(out.detach()), signal, valid)

    out = mixture(gaussians)
    of_cells, of_map = confirmed(out)
    wider = discriminants.widening(of_map)
    if adapt and not are_stepped(gaussians) and bool((wider > 1).any()):
        out = mixture(gaussians._replace(sigma_x=gaussians.sigma_x * wider, sigma_y=gaussians.sigma_y * wider))
        of_cells, _ = confirmed(out)  # a wider mixture confirms less of any map: how noisy this one is was said before
    if config.diffusions:  # nothing else refines a prediction
        # Of a guide with so much more contrast, differences smaller by that are edges.
        maps = conductances(trust * guide, config.edge, known_pixels(out, valid))
        diffused = partial(diffuse_on_schedule, signal=logarithms, maps=maps, valid=valid, backend=backend)
        follow = discriminants.followed(of_cells, of_map)
        out = diffused(out, diffusions=max(1, config.diffusions // 2), follow=follow)
        # Diffusion finds more of the classes' regions than a mixture, so now it is seen better what is noise. (Of maps
        # that were mixed wider less is confirmed now than by the first mixture: what stands out in them is less still.)
        follow = discriminants.followed(*confirmed(out))
        out = diffused(out, diffusions=config.diffusions, follow=follow)
    return discriminants.to_probabilities(out)


def _mixed(
    signal: Tensor,
    guide: Tensor,
    gaussians: Gaussians,
    valid: Tensor | None,
    config: FitConfig,
    backend: str,
) -> Tensor:
    """The operator itself, of first order where `config.first_order` says so."""
    maps = Gaussians(*(lr_map.to(guide.dtype) for lr_map in gaussians))
    mix = partial(
        backends.choose(backend, signal, guide).render,
        guide=guide,
        guide_lr=to_grid(guide, inputs.grid_of(signal), config.guide_lr),
        factors=Factors(*maps.factors()),
        support=support(config),
        radius=radius_map(maps, guide, config),
        valid=valid,
    )
    size = (guide.shape[-2], guide.shape[-1])
    out: Tensor = first_order.corrected(mix, signal, size, valid) if config.first_order else mix(signal)
    return out


def adapted(
    signal: Tensor,
    guide: Tensor,
    gaussians: Gaussians,
    valid: Tensor | None,
    config: FitConfig,
    averages: Tensor,
    backend: str,
) -> Gaussians:
    """The Gaussians for this signal: those given, or, of averages, what `config.leave_one_out` steps make of them.

    Gaussians that somebody else is stepping stay as they are.
    """
    if not config.leave_one_out or are_stepped(gaussians) or not bool(averages.any()):
        return gaussians
    grid = inputs.grid_of(signal)
    found = leave_one_out.fit(
        signal,
        to_grid(guide, grid, config.guide_lr),
        gaussians,
        valid,
        scale=(guide.shape[-2] / grid[0], guide.shape[-1] / grid[1]),
        radius=max(1, config.radius),
        steps=config.leave_one_out,
        backend=backend,
    )
    kinds = averages.to(guide.device)[:, None, None]
    return Gaussians(*(torch.where(kinds, *pair) for pair in zip(found, gaussians, strict=True)))


def are_stepped(gaussians: Gaussians) -> bool:
    """Whether somebody is fitting them: they require gradients."""
    return any(lr_map.requires_grad for lr_map in gaussians)


def averages_of(signal: Tensor, valid: Tensor | None, config: FitConfig) -> Tensor:
    """Which signals count as averages of the truth, bool (B,); judged only where that matters."""
    if config.signal_is == "auto" and kind_matters(config):
        return averages_truth(signal, valid)
    return torch.full((len(signal),), config.signal_is != "prediction")


def kind_matters(config: FitConfig) -> bool:
    """Whether averages and predictions are treated differently."""
    return refines(config) or bool(config.leave_one_out) or config.discriminants


def make_guide(image: Tensor, config: FitConfig) -> Tensor:
    """What the range term compares, (B, G', H, W): the image (B, G, H, W), prefiltered, in the space of the config."""
    filtered = plugins.find("ua.prefilters", config.prefilter).apply(image)
    return plugins.find("ua.guides", config.guide).transform(filtered)


@contextmanager
def no_autocast() -> Iterator[None]:
    """Within, products keep the digits of their arguments, whatever autocast a caller has switched on."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def to_grid(guide: Tensor, grid: tuple[int, int], how: str) -> Tensor:
    """The guide (B, G, H, W) on the LR grid, (B, G, h, w).

    `how`: "bilinear" or "bicubic" (no antialias), "antialias" (bicubic whose window grows with the scale) or the
    "area" mean.
    """
    if how == "area":
        return degrade.area(guide, grid)[0]
    if how == "antialias":
        return F.interpolate(guide, grid, mode="bicubic", align_corners=False, antialias=True)
    return F.interpolate(guide, grid, mode=how, align_corners=False)


def support(config: FitConfig) -> Support:
    """The candidates of a pixel as the operator takes them."""
    return Support(config.radius, config.border)


def radius_map(gaussians: Gaussians, guide: Tensor, config: FitConfig) -> Tensor | None:
    """Radius of every pixel's disc in cells, (B, H, W) int64, or None where it is `config.radius` everywhere.

    R(p) = clamp(ceil(2 sigma_eff(p)), 1, radius), with sigma_eff the bilinearly upsampled max(sigma_x, sigma_y). The
    choice of candidates is not differentiated, as in the released code.
    """
    scale = cells_per_pixel(config, guide, gaussians.theta)
    if scale == 0:
        return None
    cells, size = scale * sigma_eff(gaussians), guide.shape[-2:]
    # A bilinear mixture of values above the threshold stays above it, so the common case costs nothing per pixel.
    if bool((cells > config.radius - 1 + 1e-3).all()):
        return None
    at_pixels = F.interpolate(cells[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    # A little less, so that the rounding of sigma = 2 cells does not make 3 of it.
    return torch.ceil(at_pixels - 1e-3).clamp(1, max(1, config.radius)).long()


def cells_per_pixel(config: FitConfig, guide: Tensor, lr_map: Tensor) -> float:
    """How many cells of radius each HR pixel of sigma gives, by `config.radius_rule`; 0 where the radius is fixed."""
    if config.radius_rule == "fixed":
        return 0.0
    if config.radius_rule == "pixel":
        return 2.0
    (height, width), (rows, cols) = guide.shape[-2:], lr_map.shape[-2:]
    return 2 / math.sqrt((height / rows) * (width / cols))


def check_gaussians(gaussians: Gaussians, shape: tuple[int, ...], guide: Tensor) -> None:
    """Raises TypeError or ValueError unless the maps are of this shape, beside the guide, finite, the sigmas positive.

    sigma_r may be infinite: no range term.
    """
    if not isinstance(gaussians, tuple) or len(gaussians) != len(Gaussians._fields):
        raise TypeError(f"gaussians must be ua.Gaussians, got {type(gaussians).__name__}")
    for name, lr_map in zip(Gaussians._fields, gaussians, strict=True):
        if not isinstance(lr_map, Tensor) or not lr_map.is_floating_point():
            got = getattr(lr_map, "dtype", type(lr_map).__name__)
            raise TypeError(f"gaussians.{name} must be a floating-point tensor, got {got}")
        if lr_map.device != guide.device:
            raise ValueError(f"gaussians.{name} must be on the image's device, {guide.device}, got {lr_map.device}")
        if tuple(lr_map.shape) != shape:
            raise ValueError(f"gaussians.{name} must be (B, h, w) = {shape}, got {tuple(lr_map.shape)}")
        if name != "theta" and not bool((lr_map.detach() > 0).all()):
            raise ValueError(f"gaussians.{name} must be positive, got a minimum of {float(lr_map.detach().min()):g}")
        if not bool(torch.isfinite(lr_map.detach()).all()) and name != "sigma_r":
            raise ValueError(f"gaussians.{name} must be finite, got NaN or inf")
