"""From plain tensors to launches of the Triton kernels: all steps and their transposes, by `_schedule`.

A step of either kind is "flow, then average"; the transpose begins with an average and ends with a flow. What the last
launch found that cells lack is added to what this one reads. The gradient of the signal needs the averages of all
gradients of iterates, which are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.diffusion import _triton_kernels as kernels
from kernels.diffusion._schedule import Step, backwards, forwards

FINISH_PIXELS, FINISH_WARPS = 1024, 4  # of a program of `finish_kernel`
STAGES = 2  # of Triton, which has no product to hide loads behind here
MOST_THREADS = 256
# Bytes of a map, of more or less, whose steps are made at a time: launches are long, and the three maps of a part are
# little beside the result.
PART = 2**28
LANES = 128  # columns of a program where cells are narrow: whole rows of cache
VALUES = 4  # of a thread, as far as the widest cells let it: its channels share their conductances


@dataclass(frozen=True)
class Tile:
    """What a program of `step_kernel` takes: all are powers of two.

    channels (BC), cells along the row (BJ), columns of a cell (BX); warps: of Triton.
    """

    channels: int
    cells: int
    columns: int
    warps: int


def tile_for(channels: int, cols: int, columns: int) -> Tile:
    """The tile for so many channels, cells along a row and columns of a cell (the widest). No search at run time."""
    columns = _power_of_two(columns)
    cells = min(_power_of_two(cols), max(1, LANES // columns))
    if cells * columns == 1:
        columns = 2  # on the hints for a block of one place Triton's compiler crashes
    threads = min(MOST_THREADS, max(32, cells * columns))
    of_thread = max(1, VALUES * threads // max(threads, cells * columns))
    return Tile(min(_power_of_two(channels), of_thread), cells, columns, threads // 32)


def most_columns(cells: int, pixels: int) -> int:
    """Most pixels that a cell overlaps along one axis."""
    return max(-(-(cell + 1) * pixels // cells) - cell * pixels // cells for cell in range(cells))


class Settings(NamedTuple):
    """Arguments of `diffuse` that are numbers."""

    steps: int
    rate: float
    share: float


class Inputs(NamedTuple):
    """What all steps read, contiguous. signal (B, C, h, w), None: zeros; conductances (B, H, W - 1), (B, H - 1, W).

    valid: (B, h, w), uint8 of a mask or float32 factors of the share, or None.
    """

    signal: Tensor | None
    across: Tensor
    down: Tensor
    valid: Tensor | None

    def of(self, part: tuple[slice, slice]) -> Inputs:
        """Those of some images and channels."""
        images = part[0]
        return Inputs(
            None if self.signal is None else self.signal[part],
            self.across[images],
            self.down[images],
            None if self.valid is None else self.valid[images],
        )


STILL = Step(1.0, 0.0, 0.0)  # nothing flows


def prepare(signal: Tensor | None, across: Tensor, down: Tensor, valid: Tensor | None) -> Inputs:
    """Tensors as the kernels take them; copies only what is not so yet."""
    return Inputs(
        None if signal is None else signal.detach().contiguous(),
        across.detach().contiguous(),
        down.detach().contiguous(),
        None if valid is None else valid.to(torch.uint8 if valid.dtype == torch.bool else torch.float32).contiguous(),
    )


def diffuse(start: Tensor, grid: tuple[int, int], inputs: Inputs, settings: Settings) -> Tensor:
    """(B, C, H, W), a grid (h, w) -> (B, C, H, W) in the dtype of `start`."""
    out = torch.empty_like(start, memory_format=torch.contiguous_format)
    for part in parts(start):
        state, own = State(start[part], grid, out[part]), inputs.of(part)
        for by in forwards(settings.steps, settings.rate):
            state.step(own, settings.share, by)
        state.finish(out[part])
    return out


def transposed(gradient: Tensor, grid: tuple[int, int], inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor]:
    """d loss / d out (B, C, H, W) -> d loss / d start, and d loss / d signal (B, C, h, w), both float32."""
    of_start = torch.empty_like(gradient, dtype=torch.float32, memory_format=torch.contiguous_format)
    of_signal = of_start.new_empty(*gradient.shape[:2], *grid)
    area = of_start[0, 0].numel() / of_signal[0, 0].numel()
    for part in parts(gradient):
        state, own = State(gradient[part], grid, of_start[part]), inputs.of(part)
        state.total = torch.zeros_like(state.given)
        if settings.steps:
            state.average(own, settings.share)
        for by in backwards(settings.steps, settings.rate):
            state.step(own, settings.share, by)
        of_start[part] = state.near
        of_signal[part] = -area * state.total
    return of_start, of_signal


def parts(maps: Tensor) -> Iterator[tuple[slice, slice]]:
    """Of (B, C, H, W): some images with all channels, or, of large images, some channels of one; each contiguous."""
    batch, channels, height, width = maps.shape
    planes = max(1, PART // (32 * height * width)) * 8  # eight channels begin at whole 16 bytes, whatever their type
    images, group = max(1, planes // max(1, channels)), max(1, min(planes, channels))
    for first in range(0, batch, images):
        for channel in range(0, channels, group):
            yield slice(first, first + images), slice(channel, channel + group)


class State:
    """Two iterates x = z + U r, and the buffers that the next ones go to.

    near, far: z (B, C, H, W) of this one and the one before; given, before: their r (B, C, h, w). total: None, or the
    sum of all r so far but the last. `spare` is where the result will go, which steps may use.
    """

    def __init__(self, start: Tensor, grid: tuple[int, int], spare: Tensor) -> None:
        self.near = self.far = self.start = start.detach().float().contiguous()
        self.free = spare if spare.dtype == torch.float32 else None
        self.given = self.near.new_zeros(*start.shape[:2], *grid)
        self.before, self.lacking = torch.zeros_like(self.given), torch.empty_like(self.given)
        self.total: Tensor | None = None

    def average(self, inputs: Inputs, share: float) -> None:
        """r of the iterate as it is."""
        self._launch(None, inputs, share, STILL)

    def step(self, inputs: Inputs, share: float, by: Step) -> None:
        out = torch.empty_like(self.near) if self.free is None else self.free
        self._launch(out, inputs, share, by)
        # A pixel of two cells is read by two programs, so a step needs a third buffer; and the caller's tensor is none.
        self.free = None if self.far is self.start else self.far
        self.near, self.far = out, self.near

    def finish(self, out: Tensor) -> None:
        """x of the last step, to `out` (B, C, H, W)."""
        planes, tiles = out.shape[0] * out.shape[1], -(-out.shape[2] * out.shape[3] // FINISH_PIXELS)
        kernels.finish_kernel[(planes * tiles,)](
            self.near,
            self.given,
            out,
            **self._sizes(),
            n_tiles=tiles,
            BX=FINISH_PIXELS,
            WHOLE=self._whole(),
            num_warps=FINISH_WARPS,
            num_stages=STAGES,
        )

    def _launch(self, out: Tensor | None, inputs: Inputs, share: float, by: Step) -> None:
        batch, channels, rows, cols = self.given.shape
        tile = tile_for(channels, cols, most_columns(cols, self.near.shape[3]))
        programs = batch * -(-channels // tile.channels) * rows * -(-cols // tile.cells)
        kernels.step_kernel[(programs,)](
            self.near,
            self.far,
            self.given,
            self.before,
            inputs.across,
            inputs.down,
            inputs.signal,
            inputs.valid,
            self.total,
            out,
            self.lacking,
            n_channels=channels,
            **self._sizes(),
            keep=float(by.keep),
            momentum=float(by.momentum),
            rate=float(by.rate),
            share=float(share),
            BC=tile.channels,
            BJ=tile.cells,
            BX=tile.columns,
            WHOLE=self._whole(),
            num_warps=tile.warps,
            num_stages=STAGES,
        )
        self.given, self.before, self.lacking = self.lacking, self.given, self.before

    def _sizes(self) -> dict[str, Any]:
        (rows, cols), (height, width) = self.given.shape[2:], self.near.shape[2:]
        return {"n_rows": rows, "n_cols": cols, "height": height, "width": width}

    def _whole(self) -> bool:
        """Whether every pixel lies in one cell."""
        return self.near.shape[2] % self.given.shape[2] == 0 and self.near.shape[3] % self.given.shape[3] == 0


def _power_of_two(number: int) -> int:
    """The smallest that is not less."""
    return 1 << (number - 1).bit_length()
