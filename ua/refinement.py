"""What a render is refined by: consistency with the averages of the LR signal, diffusion along the guide, and, of
averages of labels, assignment of pixels to classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.assignment import LEAST_SHARE
from ua import backends, degrade, inputs
from ua.averages import are_probabilities, mixes_labels
from ua.config import FitConfig
from ua.filters import blur
from ua.kept import kept

RATE = 1 / 4  # of `kernels.diffusion`: the largest that is stable in any image
# Standard deviation in pixels of the Gaussian under which the guide's edges are looked at: noise and the grain of
# textures are no edges (Catte, Lions, Morel & Coll 1992).
SMOOTHING = 1.0
# How much of what a cell lacks is given back in a step. A prediction is followed loosely, and smoothed over more steps:
# chosen on the development images of `experiment=transfer`.
AVERAGE_SHARE = 1.0
PREDICTION_SHARE = 0.4  # over the pixels along a cell: what a step reaches is a smaller part of larger cells
PREDICTION_STEPS = 2  # for each that is asked for
# It is followed where it stands out, and left to the guide where it is like its surroundings.
SURROUNDINGS = 2.0  # standard deviation of their Gaussian, cells; 1.5 to 3 are as good
FOLLOWED = 4.0  # times the share where a cell stands out as far as can be; 3 to 5 are as good
BALANCES = 3  # of an assignment; around it, and the powers of `kernels.assignment`, the optimum is flat

Maps = tuple[Tensor, Tensor]


def refines(config: FitConfig) -> bool:
    """Whether there is more to a render than the mixture."""
    return bool(config.back_projections or config.diffusions or config.assignments)


def refine(
    out: Tensor,
    signal: Tensor,
    guide: Tensor,
    valid: Tensor | None,
    config: FitConfig,
    averages: Tensor,
    backend: str,
) -> Tensor:
    """Back-projections, diffusions and assignments of a mixture (B, C, H, W); images of different kinds go apart.

    averages: bool (B,), which signals average a truth. `out` may be overwritten.
    """
    kinds = averages.int()
    if config.assignments and bool(averages.any()):
        kinds = kinds + (averages & mixes_labels(signal, valid)).int()
    found = kinds.unique().tolist()
    if len(found) == 1:
        return _refine_alike(out, signal, guide, valid, config, backend, kind=found[0])
    result = torch.empty_like(out)
    for kind in found:
        some = (kinds == kind).to(out.device)
        mask = None if valid is None else valid[some]
        result[some] = _refine_alike(out[some], signal[some], guide[some], mask, config, backend, kind=kind)
    return result


def _refine_alike(
    out: Tensor, signal: Tensor, guide: Tensor, valid: Tensor | None, config: FitConfig, backend: str, *, kind: int
) -> Tensor:
    """The same of signals of one kind: predictions (0), averages (1) or averages of labels (2)."""
    if not (kind or config.diffusions):  # nothing else refines a prediction
        return out
    for _ in range(config.back_projections if kind else 0):
        out = back_project(out, signal, valid)
    diffused: Callable[[Tensor, Tensor], Tensor] = _unchanged
    if config.diffusions:
        maps = conductances(guide, config.edge, known_pixels(out, valid))
        follow, steps = None if kind else prominence(signal, valid), config.diffusions
        diffused = partial(
            diffuse_on_schedule, maps=maps, valid=valid, diffusions=steps, backend=backend, follow=follow
        )
    out = diffused(out, signal)
    if kind < 2:
        return out
    there = signal if valid is None else signal.masked_fill(~valid[:, None], 0)
    present = there.detach().amax((0, 2, 3)) > LEAST_SHARE
    some, shares = out[:, present], signal[:, present]
    for number in range(config.assignments):
        some = diffused(some, shares) if number else some
        some = assign(some, shares, valid, backend=backend)
    if bool(present.all()):
        return some
    result = torch.zeros_like(out).masked_fill(some[:, :1].isnan(), torch.nan)
    result[:, present] = some
    return result


def _unchanged(out: Tensor, signal: Tensor) -> Tensor:
    return out


def diffuse_on_schedule(
    out: Tensor,
    signal: Tensor,
    maps: Maps,
    valid: Tensor | None,
    *,
    diffusions: int,
    backend: str,
    follow: Tensor | None = None,
) -> Tensor:
    """`diffuse` by the `schedule` of averages or, where it is said how closely cells are followed, of predictions.

    Args:
        out, signal, valid, backend: see `diffuse`; `out` may become the result.
        maps: the `conductances`.
        diffusions: the steps that were asked for, >= 0.
        follow: (B, h, w), what the share of a prediction is multiplied by in every cell; None: an average.

    Returns:
        (B, C, H, W).
    """
    (height, width), (rows, cols) = out.shape[-2:], inputs.grid_of(signal)
    steps, share = schedule(diffusions, math.sqrt(height / rows * width / cols), average=follow is None)
    if not steps:
        return out
    if follow is not None:
        follow = follow.clamp_max(1 / share)  # no cell is given more than it lacks in a step, however small it is
    return diffuse(out, signal, maps, valid, steps=steps, share=share, backend=backend, follow=follow, overwrite=True)


def schedule(diffusions: int, scale: float, *, average: bool) -> tuple[int, float]:
    """Steps of diffusion, and the share of what a cell lacks that each gives back.

    What is an average within a cell of a few pixels is smoothed enough in as many steps.

    Args:
        diffusions: the steps that were asked for, >= 0.
        scale: pixels along a cell, the mean of both axes; >= 1.
        average: whether the signal averages the truth; if not, it predicts it.
    """
    if average:
        return min(diffusions, max(1, round(scale))), AVERAGE_SHARE
    return PREDICTION_STEPS * diffusions, PREDICTION_SHARE / scale


def prominence(signal: Tensor, valid: Tensor | None) -> Tensor:
    """What the share is multiplied by in every cell of a prediction, (B, h, w), in [0, `FOLLOWED`], without gradient.

    `FOLLOWED` times how far a cell is from a Gaussian mean of the cells around it (`SURROUNDINGS`; a normalised
    convolution, Knutsson & Westin 1993), at most 1: the total variation distance of class probabilities; of other
    signals the distance over twice their standard deviation. It is a data term weighted by local structure: small
    objects and corners, which diffusion would take away, are held; where a cell is like its surroundings it adds
    little but noise, and is left to the guide. Invalid cells have 0.

    Args:
        signal: (B, C, h, w).
        valid: bool (B, h, w), the cells that count; None: all.
    """
    values = signal.detach()
    known = torch.ones_like(values[:, :1]) if valid is None else valid[:, None].to(values.dtype)
    values = values.masked_fill(known == 0, 0)
    classes = are_probabilities(signal, valid)[:, None, None]
    largest = values.abs().amax((1, 2, 3), keepdim=True)  # whatever the unit, squares neither over- nor underflow
    values = torch.where(classes[:, None] | (largest == 0), values, values / largest)
    count = known.sum((2, 3), keepdim=True).clamp_min(1)
    values = known * (values - values.sum((2, 3), keepdim=True) / count)
    difference = smooth(values, SURROUNDINGS) / smooth(known, SURROUNDINGS).clamp_min(1e-6) - values
    spread = (values.square().sum((1, 2, 3), keepdim=True) / count)[:, 0].sqrt()
    distance = difference.square().sum(1).sqrt() / (2 * spread).clamp_min(1e-12)
    distance = torch.where(classes, 0.5 * difference.abs().sum(1), distance)
    return FOLLOWED * distance.clamp_max(1) * known[:, 0]


def back_project(out: Tensor, signal: Tensor, valid: Tensor | None) -> Tensor:
    """Add what `out` (B, C, H, W) lacks against the LR signal (B, C, h, w) in every valid cell; NaN stays NaN.

    The sum overwrites `out` unless it has a gradient: fresh memory takes longer than the sum.
    """
    average, _ = degrade.area(out, inputs.grid_of(signal), valid=None if valid is None else ~out.isnan()[:, 0])
    lacking = signal.to(average.dtype) - average
    if valid is not None:
        lacking = lacking.masked_fill(~valid[:, None], 0)
    down, across = (
        interpolation_weights("bicubic", *sizes, out.dtype, out.device)
        for sizes in zip(out.shape[-2:], signal.shape[-2:], strict=True)
    )
    halfway = (down @ lacking.to(out.dtype)).flatten(0, 1)
    planes, columns = out.flatten(0, 1), across.mT.expand(len(halfway), -1, -1)
    differentiable = torch.is_grad_enabled() and (planes.requires_grad or halfway.requires_grad)
    add = torch.baddbmm if differentiable else Tensor.baddbmm_
    return add(planes, halfway, columns).view_as(out)


@kept
def interpolation_weights(mode: str, size: int, cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """PyTorch's interpolation, "bilinear" or "bicubic", as a matrix (size, cells): faster on a CPU to 1024 x 1024."""
    each = torch.eye(cells, dtype=torch.float64)[None, :, :, None]  # [1, cells, cells, 1]
    matrix = F.interpolate(each, (size, 1), mode=mode, align_corners=False)[0, :, :, 0].T
    return matrix.to(device, dtype).contiguous()


def known_pixels(out: Tensor, valid: Tensor | None) -> Tensor | None:
    """Where a render (B, C, H, W) is no NaN, bool (B, H, W); None: everywhere, since all cells are valid."""
    return None if valid is None else ~out.isnan()[:, 0]


def diffuse(
    out: Tensor,
    signal: Tensor,
    maps: Maps,
    valid: Tensor | None,
    *,
    steps: int,
    share: float,
    backend: str,
    follow: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Smooth `out` (B, C, H, W) where the guide is smooth, and give back what cells lack; see `kernels.diffusion`.

    Args:
        out: a render; NaN stays NaN and does not spread.
        signal: (B, C, h, w), the averages to follow.
        maps: the `conductances`.
        valid: bool (B, h, w), the cells to be followed; None: all.
        steps: how many.
        share: of what a cell lacks that is given back in a step, in [0, 1].
        backend: "auto" or a name of `kernels.diffusion`; any other counts as "auto".
        follow: (B, h, w), what the share is multiplied by in every cell, 0 where it is not valid; the product is in
            [0, 1]. None: 1 in the valid cells.
        overwrite: whether `out` may become the result, unless something is differentiated.
    """
    known = known_pixels(out, valid)
    start = out if known is None else out.masked_fill(~known[:, None], 0)
    chosen = backends.choose(backend, out, maps[0], package=backends.DIFFUSION)
    result: Tensor = chosen.diffuse(
        start,
        signal,
        *maps,
        steps=steps,
        rate=RATE,
        share=share,
        valid=valid if follow is None else follow,
        overwrite=overwrite,
    )
    return result if known is None else result.masked_fill(~known[:, None], torch.nan)


def assign(out: Tensor, signal: Tensor, valid: Tensor | None, *, backend: str) -> Tensor:
    """Give every pixel nearly one class, such that every cell nearly keeps its shares; see `kernels.assignment`.

    Between steps of diffusion it is threshold dynamics that keep volumes (Merriman, Bence & Osher 1992; Jacobs,
    Merkurjev & Esedoglu, "Auction dynamics", 2018).

    Args:
        out: a render (B, C, H, W); NaN stays NaN and counts nowhere.
        signal: class probabilities (B, C, h, w) that average labels.
        valid: bool (B, h, w), the cells whose shares are kept; None: all.
        backend: "auto" or a name of `kernels.assignment`; any other counts as "auto".

    Returns:
        (B, C, H, W), sums of 1 over the classes, exactly 0 for classes that none of a pixel's cells has.
    """
    known = known_pixels(out, valid)
    scores = out if known is None else out.masked_fill(~known[:, None], 1)
    chosen = backends.choose(backend, signal, out.detach(), package=backends.ASSIGNMENT)
    result: Tensor = chosen.assign(scores, signal, balances=BALANCES, valid=valid, known=known)
    return result if known is None else result.masked_fill(~known[:, None], torch.nan)


def conductances(guide: Tensor, edge: float, known: Tensor | None = None) -> Maps:
    """1 / (1 + d^2 / edge^2) of the colour difference d of neighbours (Perona & Malik 1990, their second function).

    Differences are those of the smoothed guide.

    Args:
        guide: (B, G, H, W).
        edge: the difference that halves the conductance, guide units; > 0.
        known: bool (B, H, W); nothing flows from or to other pixels. None: all.

    Returns:
        between a pixel and its right neighbour, (B, H, W - 1), and the one below, (B, H - 1, W); in (0, 1].
    """
    maps = []
    guide = smooth(guide, SMOOTHING)
    for axis in (3, 2):
        size = guide.shape[axis] - 1
        difference = guide.narrow(axis, 1, size) - guide.narrow(axis, 0, size)
        conductance = 1 / (1 + (difference / edge).square().sum(1))
        if known is not None:
            both = known.narrow(axis - 1, 1, size) & known.narrow(axis - 1, 0, size)
            conductance = conductance.masked_fill(~both, 0)
        maps.append(conductance)
    return maps[0], maps[1]


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of (B, G, H, W) to three sigma, the border pixel repeated outwards; `sigma` in pixels, > 0."""
    return blur(maps, sigma, truncate=3.0)
