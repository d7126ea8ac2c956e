"""Does an LR signal average the truth under its cells, or predict it?

Averages may be held exactly. What a network predicts is misplaced, blurred and noisy, and holding it exactly would
bring all of that back.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Chosen on the development images of `experiment=transfer`, whose table says how often they are right.
PURE_SHARE = 0.35  # of cells with one class alone: averages of labels have more, softmax outputs mostly less
ROUGHNESS = 0.4  # averages of depth are smooth but at edges and have less, noisy or jittered maps more
LABEL_ROUGHNESS = 0.04  # averages of labels are constant but at edges
MOST_CHANNELS = 4  # signals of more channels are features, which gain by consistency in either case


def averages_truth(signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Whether each signal looks like the cell averages of a sharp truth.

    - Class probabilities (no value below 0, sums of 1): where at least 35 % of the cells hold one class alone, and most
      second differences between neighbouring cells are 0.
    - Up to 4 channels (depth, normals, masks): where the median second difference between neighbouring cells is small
      beside their root mean square: a piecewise smooth truth has few large ones, noise has them everywhere.
    - More channels (features): always.

    Args:
        signal: (B, C, h, w).
        valid: bool (B, h, w), the cells that count.

    Returns:
        bool (B,).
    """
    known = torch.ones_like(signal[:, 0], dtype=torch.bool) if valid is None else valid
    decisions = [_averages_truth(values, mask) for values, mask in zip(signal.detach(), known, strict=True)]
    return torch.tensor(decisions, dtype=torch.bool)


def _averages_truth(values: Tensor, known: Tensor) -> bool:
    """Of one signal (C, h, w)."""
    cells = values[:, known].float()  # (C, cells)
    if len(values) > 1 and cells.numel() and _probabilities(cells):
        pure = (cells.amax(0) > 1 - 1e-4).float().mean()
        return bool(pure >= PURE_SHARE) and roughness(values, known) < LABEL_ROUGHNESS
    return len(values) > MOST_CHANNELS or roughness(values, known) < ROUGHNESS


def _probabilities(cells: Tensor) -> bool:
    return bool((cells >= 0).all()) and bool(((cells.sum(0) - 1).abs() < 1e-2).all())


def roughness(values: Tensor, known: Tensor) -> float:
    """Median over root mean square of the second differences of a signal (C, h, w), the median channel's.

    0 for a ramp with few edges, .67 for Gaussian noise; 0 where no three cells in a row are known (h, w).
    """
    differences = []
    for maps, there in ((values, known), (values.mT, known.mT)):
        second_difference = maps[..., 2:] - 2 * maps[..., 1:-1] + maps[..., :-2]
        differences.append(second_difference[:, there[..., 2:] & there[..., 1:-1] & there[..., :-2]])
    second = torch.cat(differences, 1).float()
    if not second.numel():
        return 0.0
    spread = second.square().mean(1).sqrt()
    return float((second.abs().median(1).values / spread.clamp_min(1e-12)).median())
