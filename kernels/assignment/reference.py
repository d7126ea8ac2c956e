"""The definition of truth: dense matrices and one line a formula. Slow and exact; for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.assignment import LEAST_SCORE, LEAST_SHARE, SHARPNESS
from kernels.geometry import area_weights


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    return None


def assign(
    scores: Tensor, shares: Tensor, *, balances: int, valid: Tensor | None = None, known: Tensor | None = None
) -> Tensor:
    """Give every pixel nearly one class, such that every cell keeps its shares.

    With x the scores, s the shares, A the average over the known pixels of every LR cell and U the mean of the cells
    that a pixel lies in, by area:

        p = x^3 (U F) / sum over classes of the same
        F <- F s / A p, divided by its sum over the classes

    from F = 1 for the classes of a cell and 0 for all others, divided by its sum. These are Sinkhorn's alternating
    normalisations for giving the pixels of a cell to its classes: with ever more of them, A p becomes s and p the
    solution of that transport with entropy (Cuturi, "Sinkhorn distances", 2013).

    Args:
        scores: (B, C, H, W), probabilities of the classes, unsharp and roughly right, finite everywhere; what is below
            .01 or above 1 counts as these.
        shares: (B, C, h, w), of every class in every cell; a class with 1e-6 or less is absent.
        balances: how many, >= 0; the last is followed by a p.
        valid: bool (B, h, w); cells marked False, and those without a class, ask for nothing: they have all classes of
            their image, in any shares.
        known: bool (B, H, W); the result at other pixels has no meaning.

    Returns:
        (B, C, H, W) in the dtype of `scores`, sums of 1 over the classes, exactly 0 for classes that are absent from
        all cells that a pixel lies in. Differentiable with respect to both.
    """
    batch, classes, height, width = scores.shape
    work = torch.promote_types(scores.dtype, torch.float32)
    average = torch.kron(area_weights(height, shares.shape[-2]), area_weights(width, shares.shape[-1]))
    average = average.to(scores.device, work)  # [hw, HW]
    mixed = average * (height * width / shares[0, 0].numel())
    counted = torch.ones_like(scores[:, 0], dtype=work) if known is None else known.to(work)
    counted = counted.flatten(1)[:, None]  # [B, 1, HW]
    coverage = (counted @ average.mT).clamp_min(LEAST_SHARE)
    present = (shares > LEAST_SHARE).flatten(2)  # [B, C, hw]
    wanted = torch.where(present, shares.to(work).flatten(2), 0)
    asking = present.any(1, keepdim=True)
    if valid is not None:
        asking = asking & valid.flatten(1)[:, None]
    anywhere = (present & asking).any(2, keepdim=True)  # [B, C, 1]
    anywhere = anywhere | ~anywhere.any(1, keepdim=True)
    factors = torch.where(asking, present, anywhere).to(work)
    factors = factors / factors.sum(1, keepdim=True)
    sharp = scores.to(work).flatten(2).clamp(LEAST_SCORE, 1) ** SHARPNESS
    for _ in range(balances):
        odds = sharp * (factors @ mixed)
        kept = (odds / odds.sum(1, keepdim=True) * counted) @ average.mT / coverage
        moved = factors * torch.where(asking, wanted / kept.clamp_min(LEAST_SHARE), 1)
        factors = moved / moved.sum(1, keepdim=True)
    odds = sharp * (factors @ mixed)
    return (odds / odds.sum(1, keepdim=True)).view(batch, classes, height, width).to(scores.dtype)
