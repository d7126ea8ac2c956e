"""The definition of truth: dense matrices and one line a formula. Slow and exact; for tests."""

from __future__ import annotations

import torch
from torch import Tensor

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
    momentum: float,
    share: float,
    valid: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Diffuse `start` where the guide conducts, and give back to every cell what its average lacks.

    With L the weighted Laplacian of the pixel grid, (L y)(p) = sum over the four neighbours n of conductance(p, n)
    (y(p) - y(n)), A the exact average over every LR cell and U its transpose times the pixels a cell:

        y = x_k + momentum (x_k - x_{k-1})
        z = y - rate L y                                   (Perona & Malik 1990, with conductances that do not change)
        x_{k+1} = z + share U valid (signal - A z)         (Irani & Peleg 1991)

    from x_0 = x_{-1} = start. Stable for conductances in [0, 1] where 8 rate - 1 < 1 / (1 + 2 momentum), with share in
    [0, 1]. The limit minimises sum conductance (x(p) - x(n))^2 + share / ((1 - share) rate) |A x - signal|^2 (for
    scales that are integers), so share = 1 holds the averages exactly.

    Args:
        start: (B, C, H, W), any units, finite.
        signal: (B, C, h, w), the averages to keep.
        across: (B, H, W - 1) conductance between a pixel and its right neighbour, in [0, 1].
        down: (B, H - 1, W) conductance between a pixel and the one below.
        steps: how many, >= 0.
        rate: of diffusion, a step; > 0.
        momentum: in [0, 1).
        share: of what a cell lacks that is given back in a step, in [0, 1].
        valid: bool (B, h, w); cells marked False ask for nothing. Or numbers that the share is multiplied by in every
            cell, each product in [0, 1]; without gradient.
        overwrite: whether `start` may become the result where nothing is differentiated: fresh memory takes time. Only
            `cpu` does it.

    Returns:
        (B, C, H, W) in the dtype of `start`. Differentiable with respect to all four tensors.
    """
    batch, channels, height, width = start.shape
    work = across.dtype
    laplacian = torch.stack([_laplacian(*maps) for maps in zip(across, down, strict=True)])  # [B, HW, HW]
    average = torch.kron(area_weights(height, signal.shape[-2]), area_weights(width, signal.shape[-1])).to(across)
    spread = average.mT * (height * width / signal[0, 0].numel())  # [HW, hw]
    wanted = signal.to(work).flatten(2).mT  # [B, hw, C]
    mask = torch.ones_like(wanted[..., :1]) if valid is None else valid.flatten(1)[..., None].to(work)
    x = previous = start.to(work).flatten(2).mT  # [B, HW, C]
    for _ in range(steps):
        y = x + momentum * (x - previous)
        z = y - rate * laplacian @ y
        previous, x = x, z + share * (spread @ (mask * (wanted - average @ z)))
    return x.mT.reshape(batch, channels, height, width).to(start.dtype)


def _laplacian(across: Tensor, down: Tensor) -> Tensor:
    """(H, W - 1), (H - 1, W) -> (H W, H W)."""
    height, width = across.shape[0], down.shape[1]
    pixels = torch.arange(height * width, device=across.device).view(height, width)
    result = torch.zeros(height * width, height * width, dtype=across.dtype, device=across.device)
    for near, far, weight in (
        (pixels[:, :-1].flatten(), pixels[:, 1:].flatten(), across.flatten()),
        (pixels[:-1].flatten(), pixels[1:].flatten(), down.flatten()),
    ):
        for one, other in ((near, far), (far, near)):
            result = result.index_put((one, one), weight, accumulate=True)
            result = result.index_put((one, other), -weight, accumulate=True)
    return result
