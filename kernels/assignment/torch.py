"""The portable backend: products along each axis in plain PyTorch, any device, gradients by autograd.

All steps are made again in the backward pass, so that between the passes nothing is kept but the arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.assignment import LEAST_SCORE, LEAST_SHARE, SHARPNESS
from kernels.geometry import area_weights


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    return None


def assign(
    scores: Tensor, shares: Tensor, *, balances: int, valid: Tensor | None = None, known: Tensor | None = None
) -> Tensor:
    """Same contract as `kernels.assignment.reference.assign`."""
    if torch.is_grad_enabled() and (scores.requires_grad or shares.requires_grad):
        result: Tensor = checkpoint(
            all_steps, scores, shares, balances, valid, known, use_reentrant=False, preserve_rng_state=False
        )
        return result
    return all_steps(scores, shares, balances, valid, known)


def all_steps(scores: Tensor, shares: Tensor, balances: int, valid: Tensor | None, known: Tensor | None) -> Tensor:
    """The same; of its gradients, all intermediate results are kept."""
    (height, width), (rows, cols) = scores.shape[-2:], shares.shape[-2:]
    work = torch.promote_types(scores.dtype, torch.float32)
    vertical = area_weights(height, rows).to(scores.device, work)
    horizontal = area_weights(width, cols).to(scores.device, work)
    down, across = vertical.mT * (height / rows), horizontal * (width / cols)
    counted = torch.ones_like(scores[:, :1], dtype=work) if known is None else known[:, None].to(work)
    coverage = (vertical @ counted @ horizontal.mT).clamp_min(LEAST_SHARE)
    sharp = scores.to(work).clamp(LEAST_SCORE, 1) ** SHARPNESS
    factors, wanted, asking = start(shares.to(work), valid)
    for _ in range(balances):
        odds = sharp * (down @ factors @ across)
        pixels = odds / odds.sum(1, keepdim=True)
        if known is not None:
            pixels = pixels * counted
        kept = vertical @ pixels @ horizontal.mT / coverage
        moved = factors * torch.where(asking, wanted / kept.clamp_min(LEAST_SHARE), 1)
        factors = moved / moved.sum(1, keepdim=True)
    odds = sharp * (down @ factors @ across)
    return (odds / odds.sum(1, keepdim=True)).to(scores.dtype)


def start(shares: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The first factors (B, C, h, w), the shares of the classes that are there, and whether each cell asks for any."""
    present = shares > LEAST_SHARE
    asking = present.any(1, keepdim=True)
    if valid is not None:
        asking = asking & valid[:, None]
    anywhere = (present & asking).flatten(2).any(2)[:, :, None, None]
    anywhere = anywhere | ~anywhere.any(1, keepdim=True)
    factors = torch.where(asking, present, anywhere).to(shares)
    return factors / factors.sum(1, keepdim=True), shares.masked_fill(~present, 0), asking
