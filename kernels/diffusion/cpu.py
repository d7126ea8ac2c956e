"""The fused CPU backend, in float32 by Numba: channels are shared between threads, all steps of one stay in the cache.

The loops are in `_cpu_loops`. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._cpu_device import empty, in_threads
from kernels._cpu_device import refuses as refuses
from kernels.diffusion._schedule import Step, backwards, forwards
from kernels.geometry import area_weights

CHANNELS = 8  # of one job: enough to hide its start, few enough to share a small signal out


def diffuse(
    start: Tensor,
    signal: Tensor,
    across: Tensor,
    down: Tensor,
    *,
    steps: int,
    rate: float,
    share: float,
    valid: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Same contract as `kernels.diffusion.reference.diffuse`, with gradients to `start` and `signal`."""
    return _Diffuse.apply(start, signal, across, down, overwrite, steps, rate, share, valid)


class _Diffuse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        start: Tensor,
        signal: Tensor,
        across: Tensor,
        down: Tensor,
        overwrite: bool,
        steps: int,
        rate: float,
        *rest: Any,
    ) -> Tensor:
        problems = _problems(start, signal, across, down, forwards(steps, rate), *rest)
        ctx.problems, ctx.settings = problems, (steps, rate)
        ctx.dtypes, ctx.grid = (start.dtype, signal.dtype), signal.shape[-2:]
        wanted = _floats(signal)
        out = _floats(start)
        if not overwrite or any(ctx.needs_input_grad):
            out = _copy(out)

        def work(image: int, some: slice) -> None:
            loops, problem = _loops(), problems[image]
            scratch = loops.make_work(*out.shape[2:], *problem.valid.shape, len(problem.run_cell))
            loops.diffuse_planes(problem, scratch, out[image, some], wanted[image, some])

        _for_all(work, *start.shape[:2])
        return torch.from_numpy(out).to(start.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        d_start, steps = _copy(_floats(d_out)), _table(backwards(*ctx.settings))
        d_signal = np.empty((*d_start.shape[:2], *ctx.grid), np.float32)

        def work(image: int, some: slice) -> None:
            loops, problem = _loops(), ctx.problems[image]._replace(steps=steps)
            scratch = loops.make_work(*d_start.shape[2:], *problem.valid.shape, len(problem.run_cell))
            loops.transposed_planes(problem, scratch, d_start[image, some], d_signal[image, some])

        _for_all(work, *d_start.shape[:2])
        results = (
            torch.from_numpy(array).to(kind) for array, kind in zip((d_start, d_signal), ctx.dtypes, strict=True)
        )
        return *results, *[None] * 7


def _problems(
    start: Tensor,
    signal: Tensor,
    across: Tensor,
    down: Tensor,
    steps: list[Step],
    share: float,
    valid: Tensor | None,
) -> list[Any]:
    """What the loops take, one entry an image."""
    (height, width), (rows, cols) = start.shape[-2:], signal.shape[-2:]
    run, run_cell, run_part = _runs(height, rows)
    col_cell, col_part = _axis(width, cols)
    mask = torch.ones(len(start), rows, cols) if valid is None else valid.float()
    maps = empty(2, len(start), height, width)
    maps[0], maps[1] = _floats(F.pad(across, (0, 1))), _floats(F.pad(down, (0, 0, 0, 1)))
    shares = _floats(share * mask)
    return [
        _loops().Problem(
            across=maps[0, image],
            down=maps[1, image],
            valid=shares[image],
            run=run,
            run_cell=run_cell,
            run_part=run_part,
            col_start=np.searchsorted(col_cell, np.arange(cols + 1)).astype(np.uint64),
            col_part=col_part,
            area=np.float32(height * width / (rows * cols)),
            steps=_table(steps),
        )
        for image in range(len(start))
    ]


def _table(steps: list[Step]) -> np.ndarray:
    return np.array(steps, np.float32).reshape(-1, len(Step._fields))


@lru_cache(maxsize=16)
def _axis(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """First cell of every pixel along an axis, and the part of the pixel that lies in it."""
    overlap = area_weights(size, cells) * (size / cells)
    first = (overlap > 0).int().argmax(0)
    part = overlap[first, torch.arange(size)]
    part[part > 1 - 1e-6] = 1
    return first.numpy().astype(np.int64), part.numpy().astype(np.float32)


@lru_cache(maxsize=16)
def _runs(size: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels in succession of which `_axis` is the same: the run of every pixel, and of every run the two entries."""
    cell, part = _axis(size, cells)
    begins = np.append(True, (np.diff(cell) != 0) | (np.diff(part) != 0))
    return np.cumsum(begins) - 1, cell[begins], part[begins]


def _floats(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _copy(values: np.ndarray) -> np.ndarray:
    result = empty(*values.shape)
    torch.from_numpy(result).copy_(torch.from_numpy(values))  # on all threads
    return result


def _for_all(work: Callable[[int, slice], None], batch: int, channels: int) -> None:
    """`work` of some channels of every image, on as many threads as PyTorch uses."""
    jobs = [(image, slice(first, first + CHANNELS)) for image in range(batch) for first in range(0, channels, CHANNELS)]
    for _ in in_threads(lambda job: work(*job), jobs):
        pass


@cache
def _loops() -> Any:
    """The compiled loops, imported when first needed: Numba takes a second to import."""
    from kernels.diffusion import _cpu_loops

    return _cpu_loops
