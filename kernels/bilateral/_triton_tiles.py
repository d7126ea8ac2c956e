"""Block sizes of the Triton kernels: plain functions of what is computed, no search at run time.

`TILES` may be replaced by functions of one's own to try others (`kernels/README.md`, "Choosing tiles anew").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """How one kernel is cut: all but `blocks` are powers of two.

    pixels: of a tile (BP). keys: of a block (BK). channels: of a block (BC). blocks: of channels in one program (NC).
    warps, stages: of Triton. A kernel uses those that it has.
    """

    pixels: int
    keys: int
    channels: int = 16
    blocks: int = 1
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Shape:
    """What tiles are chosen by.

    pixels: HR pixels of the largest cell. candidates: most keys of a cell. channels, dtype: of the signal.
    guide_channels: of the guide.
    """

    pixels: int
    candidates: int
    channels: int
    dtype: torch.dtype
    guide_channels: int = 3


def softmax(shape: Shape) -> Tile:
    # One warp, a thread up to four pixels: the softmax over keys stays in a thread, and what it loads of a key serves
    # all its pixels. `channels`: those that it mixes on its way.
    crowded = shape.channels + shape.guide_channels > 6
    return Tile(pixels=32 if shape.pixels <= 32 or crowded else 128, keys=4, warps=1)


def mix(shape: Shape) -> Tile:
    # Scores cost as much as mixing some hundred channels, so a program mixes as many as its registers hold. Loads are
    # not pipelined (one stage): two programs on a multiprocessor hide their time as well, by fewer instructions.
    small, precise = shape.pixels <= 16, shape.dtype == torch.float32
    if shape.channels <= 16:
        return Tile(16 if small else 64, 16 if small or precise else 32, channels=16, warps=4 if small else 8, stages=1)
    if precise:
        return Tile(16 if small else 64, keys=16, channels=64, blocks=1 if small else 2, warps=4, stages=1)
    if shape.channels <= 128:
        return Tile(16 if small else 64, 16 if small else 32, channels=128, warps=4 if small else 8, stages=1)
    return Tile(16 if small else 32, 16 if small else 32, channels=128, blocks=3, warps=8 if small else 4, stages=1)


def delta(shape: Shape) -> Tile:
    channels = 16 if shape.channels <= 16 else 32
    if shape.pixels <= 16:
        return Tile(pixels=16, keys=16, channels=channels, warps=4)
    if shape.channels > 32 and shape.dtype != torch.float32:
        return Tile(pixels=64, keys=32, channels=64, warps=8)
    return Tile(pixels=64, keys=16, channels=channels, warps=8)


moments = delta


def fit_moments(shape: Shape) -> Tile:
    # One warp, a thread up to four keys: sums over pixels stay in a thread, and a pixel's values serve all its keys.
    # (Two pixels at once took 4 % longer on an H100.)
    few = shape.candidates <= 32
    return Tile(pixels=2 if few else 1, keys=32 if few else 128, warps=1)


def signal_gradient(shape: Shape) -> Tile:
    # The keys are a square.
    if shape.pixels <= 16:
        return Tile(pixels=16, keys=16, channels=16 if shape.channels <= 16 else 32, warps=8)
    if shape.channels > 64 and shape.dtype != torch.float32:
        return Tile(pixels=32, keys=16, channels=128, warps=8)
    return Tile(pixels=32, keys=16, channels=32, warps=4)


TILES: dict[str, Callable[[Shape], Tile]] = {
    "softmax": softmax,
    "mix": mix,
    "delta": delta,
    "moments": moments,
    "fit_moments": fit_moments,
    "signal_gradient": signal_gradient,
}


def tile_for(kernel: str, shape: Shape) -> Tile:
    """The tile of a kernel of `_triton_kernels.py`, by its name without `_kernel`."""
    return TILES[kernel](shape)
