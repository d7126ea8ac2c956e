"""The definition of truth: all pairs of cells, gradients by autograd. Slow and exact; for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.leave_one_out import BETA_1, BETA_2, EPSILON, PRIOR, RATE, ROUNDING


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    return None


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
    """Adam on `objective`, from `raw`. Values, colours and raw have one dtype, float32 or float64.

    Args:
        values: (B, C, h, w), what is to be predicted, in units of its standard deviation; finite.
        colours: (B, G, h, w), the guide on the LR grid.
        known: bool (B, h, w); other cells neither predict nor are predicted.
        raw: (4, B, h, w), of every source the logarithms of sigma_x and sigma_y (HR pixels), theta, and the logarithm
            of sigma_r; finite, but that the last may be +inf, and then stays.
        scale: (s_y, s_x), HR pixels a cell.
        radius: of the disc of candidates, cells; >= 1.
        steps: how many, >= 0.

    Returns:
        (4, B, h, w) in the dtype of `raw`, without gradient.
    """
    initial = raw.detach()
    now, first, second = initial.clone(), torch.zeros_like(initial), torch.zeros_like(initial)
    for step in range(1, steps + 1):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = now.clone().requires_grad_()
            loss = objective(
                leaf, initial.clone(), values.detach().clone(), colours.detach().clone(), known, scale, radius
            )
        gradient = torch.autograd.grad(loss, leaf)[0].nan_to_num(0)  # of an infinite sigma_r
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient.square()
        now = now - RATE * first / (1 - BETA_1**step) / ((second / (1 - BETA_2**step)).sqrt() + EPSILON)
    return now


def objective(
    raw: Tensor,
    initial: Tensor,
    values: Tensor,
    colours: Tensor,
    known: Tensor,
    scale: tuple[float, float],
    radius: int,
) -> Tensor:
    """What the steps lessen, of arguments like those of `fit`; `initial`: `raw` at the start.

    With d = p - q in HR pixels, between the centres of cells, and the parameters those of the source q:

        score(p, q) = - x'^2 / 2 sigma_x^2 - y'^2 / 2 sigma_y^2 - |I(p) - I(q)|^2 / 2 sigma_r^2
        error(p) = sum over q != p of softmax(score) values(q) - values(p)
        loss = sum over p of mean over channels of sqrt(error^2 + ROUNDING)
               + PRIOR sum over q of the mean squared change of the three logarithms

    over known p that have a candidate: a known q within the disc. A change of an infinite sigma_r counts as 0.
    """
    rows, cols = raw.shape[2:]
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    down, right = ((place[:, None] - place).to(raw) for place in (y, x))  # [p, q], cells
    near = (down.square() + right.square() <= radius**2) & ~torch.eye(rows * cols, dtype=torch.bool).to(known.device)
    usable = near & known.flatten(1)[:, None]  # [B, p, q]
    log_x, log_y, theta, log_r = raw.flatten(2)[:, :, None]  # [B, 1, q] each
    dy, dx = down * scale[0], right * scale[1]
    along = (theta.cos() * dx + theta.sin() * dy) / log_x.exp()
    across = (theta.cos() * dy - theta.sin() * dx) / log_y.exp()
    pixels = colours.flatten(2)
    apart = (pixels[:, :, :, None] - pixels[:, :, None]).square().sum(1)
    score = -(along.square() + across.square() + apart * (-2 * log_r).exp()) / 2
    weights = score.masked_fill(~usable, -1e30).softmax(2)
    error = torch.einsum("bpq,bcq->bcp", weights, values.flatten(2)) - values.flatten(2)
    each = (error.square() + ROUNDING).sqrt().mean(1)
    counted = known.flatten(1) & usable.any(2)
    change = torch.where(initial.isfinite(), raw - initial, 0)[[0, 1, 3]].square().mean(0)
    return (each * counted).sum() + PRIOR * change.sum()
