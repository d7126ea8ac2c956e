"""The portable backend: shifted slices in plain PyTorch, any device, gradients to everything by autograd.

Every step is recomputed in the backward pass, so what is kept is one map a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.diffusion._schedule import Step, forwards
from kernels.geometry import area_weights


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    return None


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
    """Same contract as `kernels.diffusion.reference.diffuse`."""
    work = across.dtype
    (height, width), (rows, cols) = start.shape[-2:], signal.shape[-2:]
    vertical = area_weights(height, rows).to(across)
    horizontal = area_weights(width, cols).to(across)
    mask = share if valid is None else share * valid[:, None].to(work)
    wanted = signal.to(work)
    conductances = across[:, None], down[:, None]

    def step(x: Tensor, previous: Tensor, by: Step) -> Tensor:
        z = x + by.momentum * (x - previous) - by.rate * laplacian(x, *conductances)
        lacking = mask * (wanted - vertical @ z @ horizontal.mT)
        return z + (vertical.mT * (height / rows)) @ lacking @ (horizontal * (width / cols))

    recompute = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (start, signal, across, down))
    x = previous = start.to(work)
    for by in forwards(steps, rate):
        if recompute:
            following = checkpoint(step, x, previous, by, use_reentrant=False, preserve_rng_state=False)
        else:
            following = step(x, previous, by)
        previous, x = x, following
    return x.to(start.dtype)


def laplacian(y: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """(L y)(p) = sum over the four neighbours of conductance (y(p) - y(n)): flow out of every pixel."""
    right = across * (y[..., :-1] - y[..., 1:])
    below = down * (y[..., :-1, :] - y[..., 1:, :])
    return F.pad(right, (0, 1)) - F.pad(right, (1, 0)) + F.pad(below, (0, 0, 0, 1)) - F.pad(below, (0, 0, 1, 0))
