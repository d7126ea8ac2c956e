"""From plain tensors to launches of the Triton kernels: forward, backward, and the loss with its gradients.

Nothing here knows autograd; `_triton_ops.py` wraps these functions as PyTorch operators.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bilateral import _triton_kernels as kernels
from kernels.bilateral._triton_tables import Candidates, candidates
from kernels.bilateral._triton_tiles import Shape, Tile, tile_for
from kernels.geometry import Factors, Support, factor_gradients, owner_starts

LOG2_E = 1 / math.log(2)
# Up to as many channels the softmax kernel mixes on its way, without tensor cores.
FEW_CHANNELS = 8
SLOTS_PER_BLOCK = 256
# What CUDA allows along a launch's second and third axis.
MOST_IMAGES = 65535
# Programs that fill a large GPU.
ENOUGH_PROGRAMS = 512


@dataclass(frozen=True)
class Grid:
    """Sizes of one problem, and its candidate tables."""

    batch: int
    rows: int
    cols: int
    height: int
    width: int
    guide_channels: int
    support: Support
    tables: Candidates

    @staticmethod
    def of(lr_map: Tensor, guide: Tensor, support: Support, varies: bool) -> Grid:
        """`lr_map` (..., h, w), `guide` (B, G, H, W); `varies`: pixels have radii of their own.

        Raises:
            ValueError: more images than a launch can take, as a `vmap` may make.
        """
        (rows, cols), (batch, channels, height, width) = lr_map.shape[-2:], guide.shape
        if batch > MOST_IMAGES:
            raise ValueError(f"backend 'triton' takes at most {MOST_IMAGES} images at a time, got {batch}")
        tables = candidates(rows, cols, support, varies, guide.device)
        return Grid(batch, rows, cols, height, width, channels, support, tables)

    @property
    def cells(self) -> int:
        return self.rows * self.cols

    @property
    def slots(self) -> int:
        return self.tables.offsets.shape[1]

    @property
    def most_candidates(self) -> int:
        """Of any cell."""
        side = 2 * self.support.radius + 1
        return min(self.slots, min(side, self.rows) * min(side, self.cols))

    def shape(self, channels: int, dtype: torch.dtype) -> Shape:
        """What tiles are chosen by."""
        pixels = _longest(self.rows, self.height) * _longest(self.cols, self.width)
        return Shape(pixels, self.most_candidates, channels, dtype, self.guide_channels)

    def tiles_per_cell(self, tile: Tile) -> int:
        return -(-_longest(self.rows, self.height) * _longest(self.cols, self.width) // tile.pixels)

    def lr_sizes(self) -> dict[str, int]:
        """Arguments that tell a kernel of the grid and its tables."""
        radii = self.tables.counts.shape[1]
        return {"n_rows": self.rows, "n_cols": self.cols, "n_slots": self.slots, "n_radii": radii}

    def sizes(self, tile: Tile) -> dict[str, int]:
        """The same and the pixels, cut into tiles."""
        tiles = self.tiles_per_cell(tile)
        return self.lr_sizes() | {"height": self.height, "width": self.width, "n_tiles": tiles}


class Inputs(NamedTuple):
    """What all kernels read, as they take it: contiguous, float32 guide, int32 radius, uint8 mask.

    table: (B, h w, 5 + G), a row a key: factors in base 2 and the guide on the LR grid.
    """

    guide: Tensor
    table: Tensor
    radius: Tensor | None
    valid: Tensor | None


def prepare(guide: Tensor, guide_lr: Tensor, factors: Factors, radius: Tensor | None, valid: Tensor | None) -> Inputs:
    """Tensors as the kernels take them; copies only what is not so yet."""
    root = math.sqrt(LOG2_E)
    scaled = [lr_map.detach().float() * scale for lr_map, scale in zip(factors, (root,) * 4 + (LOG2_E,), strict=True)]
    table = channels_last(torch.cat([torch.stack(scaled, dim=1), guide_lr.detach().float()], dim=1))
    return Inputs(
        guide.detach().float().contiguous(),
        table,
        None if radius is None else radius.int().contiguous(),
        None if valid is None else valid.to(torch.uint8).contiguous(),
    )


def forward(signal: Tensor, inputs: Inputs, grid: Grid) -> tuple[Tensor, Tensor]:
    """The render (B, C, H, W) in the signal's dtype, and the log-sum-exp (B, H, W) float32, base 2."""
    channels = signal.shape[1]
    few = channels <= FEW_CHANNELS
    out = signal.new_empty(grid.batch, channels, grid.height, grid.width)
    lse = inputs.guide.new_empty(grid.batch, grid.height, grid.width)
    mixed = channels if few else 0
    tile = tile_for("softmax", grid.shape(mixed, signal.dtype))
    launch_softmax(grid, tile, inputs, channels_last(signal) if few else signal, mixed, p_out=out, p_lse=lse)
    if few:
        return out, lse
    tile, tables = tile_for("mix", grid.shape(channels, signal.dtype)), grid.tables
    rows = channels_last(signal, tile.channels * tile.blocks)
    programs = (grid.cells * grid.tiles_per_cell(tile), rows.shape[2] // (tile.channels * tile.blocks), grid.batch)
    kernels.mix_kernel[programs](
        *inputs[:2],
        rows,
        inputs.valid,
        inputs.radius,
        tables.classes,
        tables.keys,
        tables.counts,
        tables.copies,
        lse,
        out,
        **grid.sizes(tile),
        n_channels=channels,
        row_length=rows.shape[2],
        G=grid.guide_channels,
        BP=tile.pixels,
        BK=tile.keys,
        BC=tile.channels,
        NC=tile.blocks,
        PRECISION=precision(signal),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out, lse


def launch_softmax(
    grid: Grid,
    tile: Tile,
    inputs: Inputs,
    signal: Tensor,
    channels: int,
    *,
    p_lse: Tensor,
    p_out: Tensor | None = None,
    p_reach: Tensor | None = None,
    p_losses: Tensor | None = None,
    p_d_out: Tensor | None = None,
    p_delta: Tensor | None = None,
) -> None:
    """`softmax_kernel`, which mixes a signal (B, h w, C) if C is `channels`, and nothing if that is 0; see there."""
    tables = grid.tables
    kernels.softmax_kernel[(grid.cells * grid.tiles_per_cell(tile), grid.batch)](
        *inputs[:2],
        signal,
        inputs.valid,
        inputs.radius,
        p_reach,
        tables.classes,
        tables.keys,
        tables.counts,
        tables.copies,
        p_out,
        p_lse,
        p_losses,
        p_d_out,
        p_delta,
        **grid.sizes(tile),
        G=grid.guide_channels,
        C=channels,
        BP=tile.pixels,
        BK=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


class Gradients(NamedTuple):
    """Of one render; None where not asked for. factors: five maps (B, h, w)."""

    signal: Tensor | None
    factors: Factors | None
    guide: Tensor | None
    guide_lr: Tensor | None


def backward(
    d_out: Tensor,
    lse: Tensor,
    signal: Tensor,
    inputs: Inputs,
    factors: Factors,
    grid: Grid,
    *,
    of_signal: bool,
    of_maps: bool,
    of_guide: bool,
) -> Gradients:
    """Gradients from d loss / d out (B, C, H, W); `of_guide` those of the guide at both resolutions."""
    d_out = d_out.to(signal.dtype).contiguous()
    d_signal = signal_gradient(d_out, lse, signal, inputs, grid) if of_signal else None
    if not (of_maps or of_guide):
        return Gradients(d_signal, None, None, None)
    channels, tables = signal.shape[1], grid.tables
    shape = grid.shape(channels, signal.dtype)
    rows = channels_last(signal, max(tile_for(kernel, shape).channels for kernel in ("delta", "moments")))
    delta, d_guide = torch.empty_like(lse), torch.empty_like(inputs.guide) if of_guide else None
    common: tuple[Any, ...] = (
        *inputs[:2],
        rows,
        inputs.valid,
        inputs.radius,
        tables.classes,
        tables.keys,
        tables.counts,
        tables.copies,
        lse,
        d_out,
    )
    tile = tile_for("delta", shape)
    kernels.delta_kernel[(grid.cells * grid.tiles_per_cell(tile), grid.batch)](
        *common,
        delta,
        d_guide,
        **grid.sizes(tile),
        n_channels=channels,
        row_length=rows.shape[2],
        G=grid.guide_channels,
        BP=tile.pixels,
        BK=tile.keys,
        BC=tile.channels,
        PRECISION=precision(signal),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    tile, moments = tile_for("moments", shape), 4 + grid.guide_channels * of_guide
    partial = lse.new_empty(grid.batch, grid.cells, moments, grid.slots)
    kernels.moments_kernel[(grid.cells, -(-grid.most_candidates // tile.keys), grid.batch)](
        *common,
        delta,
        partial,
        **grid.sizes(tile),
        n_channels=channels,
        row_length=rows.shape[2],
        G=grid.guide_channels,
        N=moments,
        BP=tile.pixels,
        BK=tile.keys,
        BC=tile.channels,
        PRECISION=precision(signal),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    sums = reduce(partial, grid)
    d_guide_lr = 2 * factors.r[:, None].float() * sums[:, 4:] if of_guide else None
    return Gradients(d_signal, factor_gradients(factors, sums[:, :4]), d_guide, d_guide_lr)


def reduce(partial: Tensor, grid: Grid) -> Tensor:
    """(B, cells, N, slots), sums of a cell's pixels for each of its candidates -> (B, N, h, w), sums for each key."""
    moments = partial.shape[2]
    sums = partial.new_empty(grid.batch, moments, grid.rows, grid.cols)
    kernels.reduce_kernel[(grid.cells, grid.batch)](
        partial,
        grid.tables.offsets,
        sums,
        n_rows=grid.rows,
        n_cols=grid.cols,
        n_slots=grid.slots,
        N=moments,
        BS=SLOTS_PER_BLOCK,
        num_warps=1,
    )
    return sums


def signal_gradient(d_out: Tensor, lse: Tensor, signal: Tensor, inputs: Inputs, grid: Grid) -> Tensor:
    """d loss / d signal (B, C, h, w), from d loss / d out in the signal's dtype."""
    channels, tables = signal.shape[1], grid.tables
    tile = tile_for("signal_gradient", grid.shape(channels, signal.dtype))
    side = math.isqrt(tile.keys)
    patches, blocks = -(-grid.rows // side) * -(-grid.cols // side), -(-channels // tile.channels)
    reached_rows = min(grid.rows, side + 2 * grid.support.radius)
    splits = max(1, min(reached_rows, ENOUGH_PROGRAMS // max(1, patches * blocks * grid.batch)))
    partial = lse.new_empty(splits, grid.batch, grid.cells, channels)
    kernels.signal_gradient_kernel[(patches * splits, blocks, grid.batch)](
        *inputs[:2],
        inputs.valid,
        inputs.radius,
        tables.classes,
        tables.slots,
        tables.slot_copies,
        lse,
        d_out,
        partial,
        **grid.sizes(tile),
        max_radius=grid.support.radius,
        n_channels=channels,
        n_splits=splits,
        G=grid.guide_channels,
        SIDE=side,
        BP=tile.pixels,
        BC=tile.channels,
        PRECISION=precision(signal),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return partial.sum(0).mT.unflatten(2, (grid.rows, grid.cols)).to(signal.dtype).contiguous()


class LossBuffers(NamedTuple):
    """What `launch_loss` writes. losses: a sum |render - guide| of every tile; partial: see `fit_moments_kernel`."""

    lse: Tensor
    losses: Tensor
    d_out: Tensor
    delta: Tensor
    partial: Tensor


def loss_buffers(inputs: Inputs, grid: Grid) -> LossBuffers:
    guide = inputs.guide
    tile = tile_for("softmax", grid.shape(grid.guide_channels, torch.float32))
    lse = guide.new_empty(grid.batch, grid.height, grid.width)
    return LossBuffers(
        lse=lse,
        losses=guide.new_empty(grid.batch, grid.cells * grid.tiles_per_cell(tile)),
        d_out=torch.empty_like(guide),
        delta=torch.empty_like(lse),
        partial=guide.new_empty(grid.batch, grid.cells, 4, grid.slots),
    )


def launch_loss(
    source: Tensor, inputs: Inputs, grid: Grid, buffers: LossBuffers, losses: Tensor, reach: Tensor | None = None
) -> None:
    """Loss of every tile into `losses`, and moments of every cell's candidates into `buffers.partial`.

    `source` is (B, h w, G). With `reach` (B, h, w), in cells, the radii are computed from it and written to
    `inputs.radius`.
    """
    shape = grid.shape(grid.guide_channels, torch.float32)
    launch_softmax(
        grid,
        tile_for("softmax", shape),
        inputs,
        source,
        grid.guide_channels,
        p_lse=buffers.lse,
        p_reach=reach,
        p_losses=losses,
        p_d_out=buffers.d_out,
        p_delta=buffers.delta,
    )
    tile, tables = tile_for("fit_moments", shape), grid.tables
    kernels.fit_moments_kernel[(grid.cells, -(-grid.most_candidates // tile.keys), grid.batch)](
        *inputs[:2],
        source,
        inputs.radius,
        tables.classes,
        tables.keys,
        tables.counts,
        tables.copies,
        buffers.lse,
        buffers.d_out,
        buffers.delta,
        buffers.partial,
        **grid.lr_sizes(),
        height=grid.height,
        width=grid.width,
        G=grid.guide_channels,
        BP=tile.pixels,
        BK=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def loss_and_gradients(source: Tensor, inputs: Inputs, factors: Factors, grid: Grid) -> tuple[Tensor, Factors]:
    """Mean absolute error of every image (B,), and its gradients with respect to the factors."""
    buffers = loss_buffers(inputs, grid)
    launch_loss(channels_last(source.float()), inputs, grid, buffers, buffers.losses)
    values = inputs.guide[0].numel()
    sums = reduce(buffers.partial, grid) / values
    return buffers.losses.sum(1) / values, factor_gradients(factors, sums)


def channels_last(signal: Tensor, multiple: int = 1) -> Tensor:
    """(B, C, h, w) -> (B, h w, C) contiguous: a key's channels are one row, filled up to a multiple with zeros."""
    return F.pad(signal.detach().flatten(2).mT, (0, -signal.shape[1] % multiple)).contiguous()


def precision(signal: Tensor) -> str:
    """How products of float32 are taken: three of TF32, which keep its digits, or one where PyTorch may, too."""
    if signal.dtype != torch.float32:
        return "tf32x3"  # of no account
    matmul = torch.backends.cuda.matmul
    # Newer versions raise for `allow_tf32` once the newer setting is used.
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "tf32x3"


@cache
def _longest(cells: int, pixels: int) -> int:
    """Most pixels that a cell owns along one axis."""
    starts = owner_starts(cells, pixels)
    return max(last - first for first, last in itertools.pairwise(starts))
