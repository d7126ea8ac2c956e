"""The fused CPU backend, in float32 by Numba. The loops are in `_cpu_loops`; results do not depend on the threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels._cpu_device import in_threads
from kernels._cpu_device import refuses as refuses
from kernels.geometry import neighbour_offsets
from kernels.leave_one_out import BETA_1, BETA_2, EPSILON, PRIOR, RATE, ROUNDING

CELLS = 512  # of a job: waking a thread for fewer takes longer than their work


def fit(
    values: Tensor,
    colours: Tensor,
    known: Tensor,
    raw: Tensor,
    *,
    scale: tuple[float, float],
    radius: int,
    steps: int,
) -> Tensor:
    """Same contract as `kernels.leave_one_out.reference.fit`."""
    rows, cols = known.shape[1:]
    offsets, opposite = neighbour_offsets(radius)
    width = cols + 2 * radius
    dy, dx = (-offsets * torch.tensor(scale)).float().T.contiguous().numpy()
    places = {
        "shifts": (offsets[:, 0] * width + offsets[:, 1]).numpy(),
        "opposite": opposite.numpy(),
        "dy": dy,
        "dx": dx,
    }
    band = max(1, CELLS // width)
    jobs = [((radius + top) * width, (radius + min(top + band, rows)) * width) for top in range(0, rows, band)]
    out = torch.empty_like(raw, dtype=torch.float32)
    for image in range(len(known)):
        lr_maps = (values[image], colours[image], known[image])
        problem = _loops().Problem(*(_plane(lr_map, radius) for lr_map in lr_maps), **places)
        found = _fitted(problem, raw[:, image], radius, steps, jobs)
        out[:, image] = found.unflatten(1, (-1, width))[:, radius:-radius, radius:-radius]
    return out.masked_fill_(raw.isposinf(), math.inf).to(raw.dtype)


def _fitted(problem: Any, raw: Tensor, radius: int, steps: int, jobs: list[tuple[int, int]]) -> Tensor:
    """Parameters (4, n), with the margin, of one image after all steps; 0 for an infinite one."""
    loops = _loops()
    start = _plane(raw.nan_to_num(posinf=0), radius)  # the loops take all to be finite
    pairs = (len(problem.shifts), start.shape[1])
    state = loops.State(
        raw=start,
        initial=start.copy(),
        ranged=_plane(raw[3].isfinite(), radius),
        first=np.zeros_like(start),
        second=np.zeros_like(start),
        factors=np.zeros((5, start.shape[1]), np.float32),
        apart=np.empty(pairs, np.float32),
        by_score=np.zeros(pairs, np.float32),
    )
    constants = loops.Constants(*map(np.float32, (ROUNDING, PRIOR, BETA_1, BETA_2, RATE, EPSILON)))

    def on_all(work: Callable[..., None], *arguments: Any) -> None:
        for _ in in_threads(lambda job: work(problem, state, *arguments, *job), jobs):
            pass

    on_all(loops.start)
    for number in range(1, steps + 1):
        on_all(loops.predict, constants)
        on_all(loops.step, constants, number)
    return torch.from_numpy(start)


def _plane(lr_map: Tensor, radius: int) -> np.ndarray:
    """(..., h, w) with a margin of zeros, flat: (..., n) float32."""
    return F.pad(lr_map.detach().float(), (radius,) * 4).flatten(-2).numpy()


@cache
def _loops() -> Any:
    """The compiled loops, imported when first needed: Numba takes a second to import."""
    from kernels.leave_one_out import _cpu_loops

    return _cpu_loops
