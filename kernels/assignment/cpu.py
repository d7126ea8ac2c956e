"""The fused CPU backend, in float32 by Numba: what it costs grows with the classes of each cell, not with all classes.

The loops are in `_cpu_loops`. Results do not depend on the number of threads. Gradients come from the portable backend,
which makes the same steps once more.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels._cpu_device import empty, in_threads
from kernels._cpu_device import refuses as refuses
from kernels.assignment import LEAST_SCORE, LEAST_SHARE
from kernels.assignment import torch as portable
from kernels.geometry import area_weights

ROWS = 16  # of pixels, of one job


def assign(
    scores: Tensor, shares: Tensor, *, balances: int, valid: Tensor | None = None, known: Tensor | None = None
) -> Tensor:
    """Same contract as `kernels.assignment.reference.assign`."""
    return _Assign.apply(scores, shares, balances, valid, known)


class _Assign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, shares: Tensor, balances: int, valid: Tensor | None, known: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(scores, shares, valid, known)
        ctx.balances = balances
        out = empty(*scores.shape)
        factors, wanted, asking = portable.start(shares.detach().float(), valid)
        for image in range(len(scores)):
            mask = np.ones(scores.shape[-2:], np.float32) if known is None else _floats(known[image])
            problem = _problem(scores[image], wanted[image], factors[image], asking[image, 0], mask)
            _assign_one(problem, _floats(factors[image].movedim(0, -1)), balances, out[image])
        return torch.from_numpy(out).to(scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        scores, shares, valid, known = ctx.saved_tensors
        leaves = scores.detach().requires_grad_(), shares.detach().requires_grad_()
        with torch.enable_grad():
            again = portable.all_steps(leaves[0], leaves[1], ctx.balances, valid, known)
        gradients = torch.autograd.grad(again, leaves, d_out, allow_unused=True, materialize_grads=True)
        return *gradients, None, None, None


def _assign_one(problem: Any, factors: np.ndarray, balances: int, out: np.ndarray) -> None:
    """All balances of one image, then its pixels, out (C, H, W)."""
    following, height = np.empty_like(factors), out.shape[1]
    least_share, least_score = np.float32(LEAST_SHARE), np.float32(LEAST_SCORE)

    def balance(row: int) -> None:
        _loops().balance(problem, row, factors, least_share, least_score, following)

    def finish(top: int) -> None:
        _loops().probabilities(problem, top, min(top + ROWS, height), factors, least_score, out)

    for _ in range(balances):
        for _ in in_threads(balance, range(len(factors))):
            pass
        factors, following = following, factors
    for _ in in_threads(finish, range(0, height, ROWS)):
        pass


def _problem(scores: Tensor, wanted: Tensor, factors: Tensor, asking: Tensor, known: np.ndarray) -> Any:
    """What the loops take: (C, H, W), twice (C, h, w), (h, w) bool, and (H, W) of 0 and 1."""
    rows, cols = (_axis(*sizes) for sizes in zip(scores.shape[-2:], wanted.shape[-2:], strict=True))
    present = factors > 0
    counts = present.sum(0)
    classes = present.to(torch.int32).argsort(dim=0, descending=True, stable=True)[: max(1, int(counts.max()))]
    down, across = (area_weights(*sizes).float() for sizes in zip(known.shape, counts.shape, strict=True))
    coverage = (down @ torch.from_numpy(known) @ across.mT).clamp_min(LEAST_SHARE) * (known.size / counts.numel())
    return _loops().Problem(
        scores=_floats(scores),
        shares=_floats(wanted.movedim(0, -1)),
        counts=np.ascontiguousarray(counts.numpy()),
        classes=np.ascontiguousarray(classes.movedim(0, -1).numpy()),
        asking=np.ascontiguousarray(asking.numpy()),
        known=known,
        coverage=_floats(coverage),
        rows=rows,
        cols=cols,
    )


@lru_cache(maxsize=16)
def _axis(size: int, cells: int) -> Any:
    """The tables of an axis of `size` pixels and so many cells."""
    overlap = area_weights(size, cells) * (size / cells)
    inside = overlap > 0
    cell = inside.int().argmax(0)
    part = overlap[cell, torch.arange(size)]
    part[part > 1 - 1e-6] = 1
    whole = overlap > 1 - 1e-6
    first = inside.int().argmax(1)
    whole_first = torch.where(whole.any(1), whole.int().argmax(1), first + inside.sum(1))
    return _loops().Axis(
        cell=cell.numpy(),
        part=part.float().numpy(),
        first=first.numpy(),
        behind=(first + inside.sum(1)).numpy(),
        whole_first=whole_first.numpy(),
        whole_behind=(whole_first + whole.sum(1)).numpy(),
    )


def _floats(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


@cache
def _loops() -> Any:
    """The compiled loops, imported when first needed: Numba takes a second to import."""
    from kernels.assignment import _cpu_loops

    return _cpu_loops
