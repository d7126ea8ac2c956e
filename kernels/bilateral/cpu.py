"""The fused CPU backend: render, analytic gradients, and loss with gradients in one pass, in float32 by Numba.

The image is cut into bands of LR rows that threads share. The number of bands depends on the grid alone and their
sums are added in order, so results do not depend on the number of threads. The loops are in `_cpu_loops`; this file
prepares their tables and turns the moments they return into gradients: d score = -|W d|^2 - r D gives dW = -2 W (sum
d d^T), dr = -sum D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._cpu_device import empty, in_threads
from kernels._cpu_device import refuses as refuses
from kernels.geometry import Factors, Support, centres, disc_offsets, factor_gradients, owner_starts, reached_pixels

MOST_BANDS, PIXELS_PER_BAND = 16, 6000
LOG2_E = 1 / math.log(2)
T = TypeVar("T")


def render(
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    *,
    support: Support,
    radius: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Same contract as `kernels.bilateral.reference.render`, with gradients to the signal and the factors."""
    out = _Render.apply(signal, guide, guide_lr, *factors, support, radius, valid)
    if valid is None:
        return out
    return out.masked_fill(
        ~reached_pixels(valid, (guide.shape[-2], guide.shape[-1]), support, radius)[:, None], torch.nan
    )


def reconstruction_l1(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    *,
    support: Support,
    radius: Tensor | None = None,
) -> Tensor:
    """Same contract as `kernels.bilateral.reference.reconstruction_l1`, with gradients to the factors."""
    return _ReconstructionL1.apply(source, guide, guide_lr, *factors, support, radius)


def fit_anisotropic(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    raw: Tensor,
    *,
    support: Support,
    cells_per_pixel: float,
    floor: float,
    epsilon: float,
    lr: float,
    lr_decay: float,
    steps: int,
    each: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Whole fit steps of the anisotropic parameterisation without autograd: loss, gradients and Adam in compiled code.

    Args:
        source, guide, guide_lr, support: as `reconstruction_l1`.
        raw: (4, B, h, w) float32, stepped in place: log sigma_x, log sigma_y, atanh(theta / pi), log sigma_r.
        cells_per_pixel: the radius is clamp(ceil(this * max(sigma_x, sigma_y)), 1, support.radius); 0: support.radius.
        floor, epsilon: sigmas are at least `floor`; `epsilon` is added to 2 sigma^2.
        lr, lr_decay: of Adam; the rate after n steps is lr * lr_decay^n.
        steps: how many.
        each: called after every step with its number, from 1, and the losses before it, (B,); `raw` is that step's.

    Returns:
        the losses before every step, (steps, B).
    """
    loops = _loops()
    (batch, _, rows, cols), (height, width) = source.shape, guide.shape[-2:]
    nothing = Factors(*torch.zeros(5, batch, rows, cols, dtype=torch.float32))
    problems = _problems(source, guide, guide_lr, nothing, support, None, None)
    layout = _layout(rows, cols, height, width, support.radius)
    raws = raw.permute(1, 0, 2, 3).flatten(2).contiguous().numpy()  # [B, 4, h w]
    first, second = np.zeros(raws.shape), np.zeros(raws.shape)
    radii = np.empty((batch, height, width), np.int64)
    values = guide[0].numel()
    history = guide.new_empty(steps, batch)
    for step in range(1, steps + 1):
        for image in range(batch):
            loops.write_anisotropic(raws[image], floor, epsilon, problems[image].table)
            # Where every cell reaches farther than the largest radius, so does every mixture of cells.
            narrowest = max(math.exp(raws[image, :2].max(0).min()), floor)
            if cells_per_pixel and cells_per_pixel * narrowest <= support.radius - 1 + 1e-3:
                loops.write_radius(raws[image], floor, cells_per_pixel, max(1, support.radius), cols, radii[image])
                problems[image] = problems[image]._replace(radius=radii[image])
            else:
                problems[image] = problems[image]._replace(radius=radii[image, :0])
        losses, moments = _losses_and_moments(problems, layout)
        rate = lr * lr_decay ** (step - 1)
        for image in range(batch):
            loops.step_anisotropic(
                raws[image],
                moments[image].reshape(-1, 4),
                values,
                floor,
                epsilon,
                first[image],
                second[image],
                step,
                rate,
            )
        raw.copy_(torch.from_numpy(raws).view(batch, 4, rows, cols).permute(1, 0, 2, 3))
        history[step - 1] = torch.from_numpy(losses / values)
        if each is not None:
            each(step, history[step - 1].clone())
    return history


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, signal: Tensor, guide: Tensor, guide_lr: Tensor, *rest: Any) -> Tensor:
        *maps, support, radius, valid = rest
        ctx.support, ctx.dtype = support, signal.dtype
        ctx.save_for_backward(signal, guide, guide_lr, *maps, radius, valid)
        out = empty(len(guide), signal.shape[1], *guide.shape[-2:])
        problems = _problems(signal, guide, guide_lr, Factors(*maps), support, radius, valid)
        layout = _layout(*signal.shape[-2:], *guide.shape[-2:], support.radius)

        def work(image: int, band: _Band) -> None:
            loops, problem = _loops(), problems[image]
            group = loops.make_group(len(out[image]), len(problem.offsets), layout.largest)
            loops.render_tiles(problem, _work(problem), group, band.first_tile, band.last_tile, out[image])

        for _ in _in_bands(work, len(guide), layout):
            pass
        return torch.from_numpy(out).to(signal.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        signal, guide, guide_lr, *maps, radius, valid = ctx.saved_tensors
        factors = Factors(*maps)
        batch, channels, rows, cols = signal.shape
        problems = _problems(signal, guide, guide_lr, factors, ctx.support, radius, valid)
        layout = _layout(rows, cols, *guide.shape[-2:], ctx.support.radius)
        gradient = d_out.float().contiguous().numpy()

        def work(image: int, band: _Band) -> tuple[np.ndarray, np.ndarray]:
            loops, problem = _loops(), problems[image]
            scratch = _work(problem)
            band_moments = np.zeros((band.last_key - band.first_key, cols, 4))
            band_signal = np.zeros((band.last_key - band.first_key, cols, problem.signal.shape[1]), np.float32)
            loops.backward_tiles(
                problem,
                scratch,
                band.first_tile,
                band.last_tile,
                gradient[image],
                np.zeros((problem.signal.shape[1], loops.TILE), np.float32),
                np.zeros((len(scratch.weights) + 3, loops.TILE), np.float32),
                band_moments,
                band_signal,
                band.first_key,
            )
            return band_moments, band_signal

        moments = np.zeros((batch, rows, cols, 4))
        d_signal = np.zeros((batch, rows, cols, channels), np.float32)
        for image, band, (band_moments, band_signal) in _in_bands(work, batch, layout):
            moments[image, band.first_key : band.last_key] += band_moments
            d_signal[image, band.first_key : band.last_key] += band_signal[..., :channels]
        d_factors = factor_gradients(factors, torch.from_numpy(moments).movedim(3, 1))
        return torch.from_numpy(d_signal).permute(0, 3, 1, 2).to(ctx.dtype), None, None, *d_factors, None, None, None


class _ReconstructionL1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, guide: Tensor, guide_lr: Tensor, *rest: Any) -> Tensor:
        *maps, support, radius = rest
        factors = Factors(*maps)
        problems = _problems(source, guide, guide_lr, factors, support, radius, None)
        layout = _layout(*source.shape[-2:], *guide.shape[-2:], support.radius)
        losses, moments = _losses_and_moments(problems, layout)
        values = guide[0].numel()
        # The gradients cost little more than the loss and come from the same weights: take both at once.
        ctx.save_for_backward(*factor_gradients(factors, torch.from_numpy(moments / values).movedim(3, 1)))
        return torch.from_numpy(losses / values).to(guide.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (d_loss[:, None, None] * gradient for gradient in ctx.saved_tensors)
        return None, None, None, *gradients, None, None


def _losses_and_moments(problems: list[Any], layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    """Sums of |render - guide|, (B,), and the moments of every cell, (B, h, w, 4)."""
    loops = _loops()
    rows, cols = problems[0].valid.shape

    def work(image: int, band: _Band) -> tuple[float, np.ndarray]:
        problem = problems[image]
        mixed = np.zeros((problem.signal.shape[1], loops.TILE), np.float32)
        moments = np.zeros((band.last_key - band.first_key, cols, 4))
        loss = loops.fit_tiles(problem, _work(problem), band.first_tile, band.last_tile, mixed, moments, band.first_key)
        return loss, moments

    losses, moments = np.zeros(len(problems)), np.zeros((len(problems), rows, cols, 4))
    for image, band, (band_loss, band_moments) in _in_bands(work, len(problems), layout):
        losses[image] += band_loss
        moments[image, band.first_key : band.last_key] += band_moments
    return losses, moments


def _problems(
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    support: Support,
    radius: Tensor | None,
    valid: Tensor | None,
) -> list[Any]:
    """What the loops take, one entry an image."""
    batch, channels, rows, cols = signal.shape
    ux, uy, vx, vy, r = (lr_map.detach().double().flatten(1) for lr_map in factors)
    a, b, c = ux**2 + vx**2, ux * uy + vx * vy, uy**2 + vy**2
    smallest_eigenvalue = ((a + c) - torch.hypot(a - c, 2 * b)).clamp_min(0) / 2
    root = math.sqrt(LOG2_E)
    columns = (ux * root, uy * root, vx * root, vy * root, r * LOG2_E, smallest_eigenvalue * LOG2_E * (1 - 1e-6))
    table = torch.zeros(batch, rows * cols, len(columns) + -(-guide.shape[1] // 3) * 3, dtype=torch.float32)
    for i, column in enumerate((*columns, *guide_lr.flatten(2).unbind(1))):
        table[:, :, i] = column
    # Channels last, filled up with zeros to a multiple of 4, as the loops over channels take them.
    keys = F.pad(signal.detach().float().flatten(2).mT, (0, -channels % 4)).contiguous().numpy()
    pixels = guide.contiguous().numpy()
    mask = np.ones((batch, rows, cols), np.bool_) if valid is None else valid.contiguous().numpy()
    radii = np.empty((batch, 0, 0), np.int64) if radius is None else radius.contiguous().numpy()
    layout = _layout(rows, cols, *guide.shape[-2:], support.radius)
    return [
        _loops().Problem(
            guide=pixels[image],
            table=table[image].numpy(),
            signal=keys[image],
            valid=mask[image],
            radius=radii[image],
            offsets=layout.offsets,
            max_radius=support.radius,
            clamp=support.border == "clamp",
            tiles=layout.tiles,
            centres_y=layout.centres_y,
            centres_x=layout.centres_x,
            scale_y=guide.shape[-2] / rows,
            scale_x=guide.shape[-1] / cols,
        )
        for image in range(batch)
    ]


class _Band(NamedTuple):
    """Consecutive LR rows: their tiles, and the key rows that these reach."""

    first_tile: int
    last_tile: int
    first_key: int
    last_key: int


class _Layout(NamedTuple):
    tiles: np.ndarray  # (T, 6) owner row and column, top, bottom, left, right
    largest: int  # pixels of a tile
    bands: list[_Band]
    offsets: np.ndarray  # (K, 3) dy, dx, squared distance
    centres_y: np.ndarray
    centres_x: np.ndarray


@lru_cache(maxsize=8)
def _layout(rows: int, cols: int, height: int, width: int, radius: int) -> _Layout:
    """Everything that depends on sizes alone."""
    starts_y, starts_x = owner_starts(rows, height), owner_starts(cols, width)
    tiles: list[tuple[int, ...]] = []
    bands: list[_Band] = []
    rows_per_band = -(-rows // min(MOST_BANDS, max(1, height * width // PIXELS_PER_BAND)))
    for first_row in range(0, rows, rows_per_band):
        last_row = min(first_row + rows_per_band, rows)
        first_tile = len(tiles)
        for row in range(first_row, last_row):
            tiles += [(row, *tile) for tile in _tiles_of_row(starts_y[row], starts_y[row + 1], starts_x)]
        bands.append(_Band(first_tile, len(tiles), max(0, first_row - radius), min(rows, last_row + radius)))
    offsets = disc_offsets(radius)
    return _Layout(
        tiles=np.array(tiles, np.int64),
        largest=max((bottom - top) * (right - left) for *_, top, bottom, left, right in tiles),
        bands=bands,
        offsets=torch.cat([offsets, (offsets**2).sum(1, keepdim=True)], dim=1).numpy(),
        centres_y=centres(rows, height).numpy(),
        centres_x=centres(cols, width).numpy(),
    )


def _tiles_of_row(top: int, bottom: int, starts: list[int]) -> list[tuple[int, ...]]:
    """Cut the pixels of a row of owners into tiles of at most TILE: column of the owner, top, bottom, left, right.

    Those beside each other follow each other.
    """
    most = _loops().TILE
    across = min(most, max(right - left for left, right in pairwise(starts)))
    down = max(1, most // across)
    return [
        (col, y, min(y + down, bottom), x, min(x + across, right))
        for y in range(top, bottom, down)
        for col, (left, right) in enumerate(pairwise(starts))
        for x in range(left, right, across)
    ]


def _work(problem: Any) -> Any:
    return _loops().make_work(len(problem.guide), len(problem.offsets), problem.max_radius)


def _in_bands(work: Callable[[int, _Band], T], batch: int, layout: _Layout) -> Iterator[tuple[int, _Band, T]]:
    """`work` of every band of every image, on as many threads as PyTorch uses; results in order."""
    jobs = [(image, band) for image in range(batch) for band in layout.bands]
    results = in_threads(lambda job: work(*job), jobs)
    return ((image, band, result) for (image, band), result in zip(jobs, results, strict=True))


@cache
def _loops() -> Any:
    """The compiled loops, imported when first needed: Numba takes a second to import."""
    from kernels.bilateral import _cpu_loops

    return _cpu_loops
