"""Block sizes of the Triton kernels: plain functions of what is computed, no search at run time.

`TILES` may be replaced by functions of one's own to try others (`kernels/README.md`, "Choosing tiles anew").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """How one kernel is cut: all are powers of two.

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

    pixels: HR pixels of the largest cell. candidates: most keys of a cell. channels: of the signal. dtype: of the signal.
    """

    pixels: int
    candidates: int
    channels: int
    dtype: torch.dtype


def power_of_two(number: int, low: int, high: int) -> int:
    """The least power of two that is not below `number`, within [low, high]."""
    return max(low, min(high, 1 << max(0, number - 1).bit_length()))


def softmax(shape: Shape) -> Tile:
    # One warp, a thread two pixels: the softmax over keys stays in a thread, and a key's values serve two pixels.
    return Tile(pixels=power_of_two(shape.pixels, 32, 64), keys=power_of_two(shape.candidates, 8, 16), warps=1)


def mix(shape: Shape) -> Tile:
    # Scores cost as much as mixing some hundred channels, so a program mixes as many as its registers hold.
    half = shape.dtype != torch.float32
    channels = power_of_two(shape.channels, 16, 128)
    blocks = min(3 if half else 2, -(-shape.channels // channels))
    pixels = power_of_two(shape.pixels, 16, 64 if half else 32)
    warps = 8 if channels * blocks * pixels > 128 * 64 else 4
    return Tile(pixels, power_of_two(shape.candidates, 16, 32), channels, blocks, warps)


def delta(shape: Shape) -> Tile:
    return Tile(power_of_two(shape.pixels, 16, 64), 32, power_of_two(shape.channels, 16, 32), warps=4)


def moments(shape: Shape) -> Tile:
    return Tile(power_of_two(shape.pixels, 16, 64), 32, power_of_two(shape.channels, 16, 32), warps=4)


def fit_moments(shape: Shape) -> Tile:
    # One warp, a thread one key: sums over pixels stay in a thread.
    return Tile(pixels=16, keys=32, warps=1)


def signal_gradient(shape: Shape) -> Tile:
    # keys is a square of keys.
    return Tile(power_of_two(shape.pixels, 16, 64), 16, power_of_two(shape.channels, 16, 128), warps=4)


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
