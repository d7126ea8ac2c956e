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
    share: float,
    valid: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Diffuse `start` where the guide conducts, and give back to every cell what its average lacks.

    With L the weighted Laplacian of the pixel grid, (L y)(p) = sum over the four neighbours n of conductance(p, n)
    (y(p) - y(n)), A the exact average over every LR cell and U its transpose times the pixels a cell:

        z = x_k + (a_k - 1) (x_k - x_{k-1}) - a_k rate L x_k,  a_k = (4 k + 2) / (2 k + 3)
        x_{k+1} = z + share U valid (signal - A z)

    from x_0 = x_{-1} = start. The first line is Perona & Malik 1990, with conductances that do not change, accelerated
    as by Hafner, Ochs, Weickert, Reissel & Grewenig, "FSI schemes: fast semi-iterative solvers for PDEs and
    optimisation methods" (2016): all n steps are one cycle, which diffuses, with share = 0, for a time of
    rate n (n + 1) / 3 (a box filter of 2 n + 1 pixels where the image is one row, away from its ends, and rate = 1/2).
    The second is Irani & Peleg 1991. Stable (in the 2-norm) for conductances in [0, 1] with rate <= 1/4 and share in
    [0, 1]; share = 1 holds the averages exactly (for scales that are integers), and with less momentum may carry a cell
    past its average.

    Args:
        start: (B, C, H, W), any units, finite.
        signal: (B, C, h, w), the averages to keep.
        across: (B, H, W - 1) conductance between a pixel and its right neighbour, in [0, 1].
        down: (B, H - 1, W) conductance between a pixel and the one below.
        steps: how many, >= 0.
        rate: of diffusion, a step; > 0, at most 2 over the largest eigenvalue of L: 1/4 for any image.
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
    for k in range(steps):
        speed = (4 * k + 2) / (2 * k + 3)
        z = x + (speed - 1) * (x - previous) - speed * rate * laplacian @ x
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
