"""Averages of labels: every pixel belongs to one class, and of every cell the share of each class is known."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.geometry import area_weights
from ua import degrade, inputs

# Chosen on the development images of `experiment=transfer`; around them the optimum is flat (experiments/transfer.md).
SHARPNESS = 3.0  # the power that turns what a render says of a class into odds
BALANCES = 3  # Sinkhorn steps; each brings the shares of every cell nearer to those of the signal
LEAST = 1e-6  # of a share: below, a class is as good as absent, and no division overflows


def assign(out: Tensor, signal: Tensor, valid: Tensor | None) -> Tensor:
    """Give every pixel nearly one class, such that every cell keeps its shares.

    With x the render and s the signal, the result is p(c | pixel) = x_c^3 F_c / sum over classes of the same, where the
    factors F (one for each cell and class; a pixel that several cells share takes their mean by area) are those that
    bring the averages of p over the cells to s, by Sinkhorn's alternating normalisation: the entropic solution of
    giving the pixels of a cell to its classes (Cuturi, "Sinkhorn distances", 2013). Between steps of diffusion it is
    threshold dynamics that keep volumes (Merriman, Bence & Osher 1992; Jacobs, Merkurjev & Esedoglu, "Auction
    dynamics", 2018).

    Args:
        out: a render (B, C, H, W), float32 or float64; NaN stays NaN and counts nowhere.
        signal: class probabilities (B, C, h, w) that average labels, none below 0.
        valid: bool (B, h, w), the cells whose shares are kept; None: all.

    Returns:
        (B, C, H, W), sums of 1 over the classes, exactly 0 for classes that no valid cell of the batch has.
        Differentiable with respect to `out` and `signal`.
    """
    there = signal if valid is None else signal.masked_fill(~valid[:, None], 0)
    present = there.detach().amax((0, 2, 3)) > 0
    if not bool(present.all()):
        result = torch.zeros_like(out).masked_fill(out[:, :1].isnan(), torch.nan)
        result[:, present] = assign(out[:, present], signal[:, present], valid)
        return result
    known = None if valid is None else ~out.isnan()[:, 0]
    scores = (out if known is None else out.masked_fill(~known[:, None], 1)).clamp(LEAST, 1) ** SHARPNESS
    shares = there.to(out.dtype).clamp_min(LEAST)
    factors = torch.ones_like(shares)
    for _ in range(BALANCES):
        averages, _ = degrade.area(_odds(scores, factors), inputs.grid_of(signal), valid=known)
        change = shares / averages.clamp_min(LEAST)
        if valid is not None:
            change = change.masked_fill(~valid[:, None], 1)
        factors = factors * change
        factors = factors / factors.sum(1, keepdim=True)  # so that neighbouring cells weigh alike in a pixel of both
    result = _odds(scores, factors)
    return result if known is None else result.masked_fill(~known[:, None], torch.nan)


def _odds(scores: Tensor, factors: Tensor) -> Tensor:
    """Scores (B, C, H, W) times the factors (B, C, h, w) of their cells, as probabilities."""
    down, across = (
        area_weights(size, cells).mT.to(factors) * (size / cells)
        for size, cells in zip(scores.shape[-2:], factors.shape[-2:], strict=True)
    )
    odds = scores * (down @ factors @ across.mT)
    return odds / odds.sum(1, keepdim=True)
