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
CALM = 0.1  # second differences of less, relative to the signal's spread, are shape; 4 % of noise gives as much
LABEL_ROUGHNESS = 0.04  # averages of labels are constant but at edges
MOST_CHANNELS = 4  # signals of more channels are features, which gain by consistency in either case


def averages_truth(signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Whether each signal looks like the cell averages of a sharp truth.

    - Class probabilities (no value below 0, sums of 1): where at least 35 % of the cells hold one class alone, and most
      second differences between neighbouring cells are 0.
    - Up to 4 channels (depth, normals, masks): where second differences between neighbouring cells are small beside the
      spread of the signal (a smooth surface), or most of them small beside their root mean square (a few edges): noise
      and misplacement make all of them large.
    - More channels (features): always.

    It looks at the signal alone, so it cannot know: a clean, sharp prediction (hard labels, the smooth depth of a good
    network) counts as an average, and so does the single channel of a soft mask, which is not taken for a probability.

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
    if len(values) > MOST_CHANNELS or not cells.numel():
        return True
    return roughness(values, known) < ROUGHNESS or calm(values, known)


def _probabilities(cells: Tensor) -> bool:
    return bool((cells >= 0).all()) and bool(((cells.sum(0) - 1).abs() < 1e-2).all())


def roughness(values: Tensor, known: Tensor) -> float:
    """Median over root mean square of the second differences of a signal (C, h, w), the median channel's.

    0 for a ramp with few edges, .67 for Gaussian noise; 0 where no three cells in a row are known (h, w).
    """
    second = second_differences(values, known)
    if not second.numel():
        return 0.0
    spread = second.square().mean(1).sqrt()
    return float((second.abs().median(1).values / spread.clamp_min(1e-12)).median())


def calm(values: Tensor, known: Tensor) -> bool:
    """Whether the second differences are small beside the spread of the signal (C, h, w) over its known cells."""
    second, cells = second_differences(values, known), values[:, known].float()
    spread = (cells - cells.mean(1, keepdim=True)).square().mean().sqrt()
    return bool(second.square().mean().sqrt() <= CALM * spread) if second.numel() else True


def second_differences(values: Tensor, known: Tensor) -> Tensor:
    """Of a signal (C, h, w) along both axes, where three cells in a row are known (h, w): (C, n) float."""
    differences = []
    for maps, there in ((values.float(), known), (values.float().mT, known.mT)):
        second = maps[..., 2:] - 2 * maps[..., 1:-1] + maps[..., :-2]
        differences.append(second[:, there[..., 2:] & there[..., 1:-1] & there[..., :-2]])
    return torch.cat(differences, 1)
