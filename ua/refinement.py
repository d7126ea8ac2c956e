"""What a render is refined by: consistency with the averages of the LR signal, and diffusion along the guide."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ua import backends, degrade, inputs

# Of `kernels.diffusion`: about the largest rate that is stable with this momentum in any image.
RATE = 1 / 6
MOMENTUM = 0.85
# Standard deviation in pixels of the Gaussian under which the guide's edges are looked at: noise and the grain of
# textures are no edges (Catte, Lions, Morel & Coll 1992).
SMOOTHING = 1.0
# How much of what a cell lacks is given back in a step. A prediction is followed loosely, and smoothed over more steps:
# chosen on the development images of `experiment=transfer`.
AVERAGE_SHARE = 1.0
PREDICTION_SHARE = 0.1  # over the pixels along a cell: what a step reaches is a smaller part of larger cells
PREDICTION_STEPS = 2  # for each that is asked for


def schedule(diffusions: int, scale: float, *, average: bool) -> tuple[int, float]:
    """Steps of diffusion, and the share of what a cell lacks that each gives back.

    What is an average within a cell of a few pixels is smoothed enough in as many steps, and too much in more.

    Args:
        diffusions: the steps that were asked for, >= 0.
        scale: pixels along a cell, the mean of both axes.
        average: whether the signal averages the truth; if not, it predicts it.
    """
    if average:
        return min(diffusions, max(1, round(scale))), AVERAGE_SHARE
    return PREDICTION_STEPS * diffusions, min(1.0, PREDICTION_SHARE / scale)


def back_project(out: Tensor, signal: Tensor, valid: Tensor | None) -> Tensor:
    """Add what `out` (B, C, H, W) lacks against the LR signal (B, C, h, w) in every valid cell; NaN stays NaN.

    The sum overwrites `out` unless it has a gradient: fresh memory takes longer than the sum.
    """
    average, _ = degrade.area(out, inputs.grid_of(signal), valid=None if valid is None else ~out.isnan()[:, 0])
    lacking = signal.to(average.dtype) - average
    if valid is not None:
        lacking = lacking.masked_fill(~valid[:, None], 0)
    down, across = (bicubic_weights(*sizes).to(out) for sizes in zip(out.shape[-2:], signal.shape[-2:], strict=True))
    halfway = (down @ lacking.to(out.dtype)).flatten(0, 1)
    planes, columns = out.flatten(0, 1), across.mT.expand(len(halfway), -1, -1)
    differentiable = torch.is_grad_enabled() and (planes.requires_grad or halfway.requires_grad)
    add = torch.baddbmm if differentiable else Tensor.baddbmm_
    return add(planes, halfway, columns).view_as(out)


@lru_cache(maxsize=16)
def bicubic_weights(size: int, cells: int) -> Tensor:
    """PyTorch's bicubic interpolation from `cells` to `size` as a matrix: faster on a CPU, at least to 1024 x 1024."""
    with torch.inference_mode(False), torch.no_grad():
        each = torch.eye(cells, dtype=torch.float64)[None, :, :, None]  # [1, cells, cells, 1]
        return F.interpolate(each, (size, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T.contiguous()


def diffuse(
    out: Tensor,
    signal: Tensor,
    guide: Tensor,
    valid: Tensor | None,
    *,
    steps: int,
    edge: float,
    share: float,
    backend: str,
) -> Tensor:
    """Smooth `out` (B, C, H, W) where the guide is smooth, and give back what cells lack; see `kernels.diffusion`.

    Args:
        out: a render; NaN stays NaN and does not spread.
        signal: (B, C, h, w), the averages to follow.
        guide: (B, G, H, W), where differences of neighbours count in the units of `edge`.
        valid: bool (B, h, w), the cells to be followed; None: all.
        steps: how many.
        edge: see `conductances`.
        share: of what a cell lacks that is given back in a step, in [0, 1].
        backend: "auto" or a name of `kernels.diffusion`; any other counts as "auto".
    """
    known = None if valid is None else ~out.isnan()[:, 0]
    across, down = conductances(guide, edge, known)
    start = out if known is None else out.masked_fill(~known[:, None], 0)
    chosen = backends.choose(backend, out, across, package=backends.DIFFUSION)
    result: Tensor = chosen.diffuse(
        start, signal, across, down, steps=steps, rate=RATE, momentum=MOMENTUM, share=share, valid=valid
    )
    return result if known is None else result.masked_fill(~known[:, None], torch.nan)


def conductances(guide: Tensor, edge: float, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
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


def smooth(guide: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of (B, G, H, W), the border pixel repeated outwards; `sigma` in pixels, > 0."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=guide.dtype, device=guide.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    for axis in (-1, -2):  # shifts and no convolution, which may take TF32 on a GPU
        size = guide.shape[axis]
        places = torch.arange(-reach, size + reach, device=guide.device).clamp(0, size - 1)
        padded = guide.index_select(axis, places)
        guide = torch.zeros_like(guide)
        for shift in range(len(weights)):
            guide = guide + weights[shift] * padded.narrow(axis, shift, size)
    return guide
