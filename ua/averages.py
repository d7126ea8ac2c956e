"""Does an LR signal average the truth under its cells, or predict it?

Averages may be held exactly. What a network predicts is misplaced, blurred and noisy, and holding it exactly would
bring all of that back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Chosen on the development images of `experiment=transfer`, whose table says how often they are right; what is hard, on
# labels made hard by taking the nearest pixel or the most frequent class.
LITTLE = 0.05  # of a class: what is below is 0 in averages of labels, and hardly ever exactly 0 in predictions
NOTHING_SHARE = 0.65  # of the little that is exactly 0; half of it where noise is clamped at 0
ROUNDING = 1.5 / 255  # of probabilities that came as integers of 8 bits: times the root of their number, of the sum
CERTAIN = 0.999  # cells of one class; less is roundoff
HARD_SHARE = 0.9  # of neighbours of different classes that are both certain; all of them in hard labels
ROUGHNESS = 0.4  # averages of depth are smooth but at edges and have less, noisy or jittered maps more
CALM = 0.1  # second differences of less, relative to the signal's spread, are shape; 4 % of noise gives as much
GROWTH = 1.8  # of second differences from cells next to each other to the ones after: noise has 1, a smooth surface 4
MOST_CHANNELS = 4  # signals of more channels are features
# Of mean squared differences, from neighbouring cells to the ones after: 1.3 to 1.7 in features of a detector, 1.6 to
# 2.1 in their averages, 1.4 to 1.9 in averages of a descriptor bank. (1: noise, 4: a plane.)
VARIOGRAM_GROWTH = 1.5


def averages_truth(signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Whether each signal looks like the cell averages of a sharp truth.

    - Class probabilities (no value below 0, sums of 1): where most of what is little is exactly nothing, and cells of
      two classes lie between those of one. A border cuts any share from a cell, and elsewhere classes are absent;
      softmax and noise leave a little everywhere, and hard labels have no shares.
    - Up to 4 channels (depth, normals, masks): where second differences between neighbouring cells are small beside the
      spread of the signal (a smooth surface), or most of them small beside their root mean square (a few edges), or
      much smaller than those over twice the distance (a rough surface, like terrain): noise and misplacement make all
      of them large, at any distance.
    - More channels (features): where the mean squared difference of cells two apart is enough larger than that of
      neighbours. Averages over cells are smoother at this distance than what a network computes at a cell's middle
      ("regularisation" of the variogram, Journel & Huijbregts, "Mining geostatistics", 1978).

    It looks at the signal alone, so it cannot know: a clean, sharp prediction (the smooth depth of a good network)
    counts as an average, and so does the single channel of a soft mask, which is not taken for a probability. Averages
    of labels whose borders all lie between cells are hard, and count as predictions.

    Args:
        signal: (B, C, h, w).
        valid: bool (B, h, w), the cells that count.

    Returns:
        bool (B,).
    """
    decisions = [_averages_truth(*one) for one in _each(signal, valid)]
    return torch.tensor(decisions, dtype=torch.bool)


def mixes_labels(signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Whether each signal (B, C, h, w), which averages a truth, averages labels: mostly certain class probabilities.

    valid: bool (B, h, w), the cells that count. Returns bool (B,).
    """
    cells = (values[:, known].float() for values, known in _each(signal, valid))
    decisions = [_probabilities(some) and nothing_share(some) >= NOTHING_SHARE for some in cells]
    return torch.tensor(decisions, dtype=torch.bool)


def _each(signal: Tensor, valid: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Each signal (C, h, w) and its known cells (h, w), on the CPU: one copy is sooner there than each number back."""
    known = torch.ones_like(signal[:, 0], dtype=torch.bool) if valid is None else valid
    return zip(signal.detach().cpu(), known.cpu(), strict=True)


def are_probabilities(signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Whether each signal (B, C, h, w) holds the probabilities of two classes or more: none below 0, sums of 1.

    valid: bool (B, h, w), the cells that count. Returns bool (B,) on the signal's device, which this does not wait for.
    """
    values = signal.detach().float()
    fitting = (values >= 0).all(1) & ((values.sum(1) - 1).abs() < max(1e-2, ROUNDING * values.shape[1] ** 0.5))
    if valid is not None:
        fitting = fitting | ~valid
    return fitting.flatten(1).all(1) & (values.shape[1] > 1)


def are_features(signal: Tensor, valid: Tensor | None = None) -> Tensor:
    """Whether each signal (B, C, h, w) counts as features: more than `MOST_CHANNELS`, and no class probabilities.

    valid: bool (B, h, w), the cells that count. Returns bool (B,) on the signal's device.
    """
    if signal.shape[1] <= MOST_CHANNELS:
        return torch.zeros(len(signal), dtype=torch.bool, device=signal.device)
    return ~are_probabilities(signal, valid)


def _averages_truth(values: Tensor, known: Tensor) -> bool:
    """Of one signal (C, h, w)."""
    cells = values[:, known].float()  # (C, cells)
    if _probabilities(cells):
        return nothing_share(cells) >= NOTHING_SHARE and hard_share(values.float(), known) < HARD_SHARE
    if not cells.numel():
        return True
    if len(values) > MOST_CHANNELS:
        return variogram_growth(values, known) > VARIOGRAM_GROWTH
    return roughness(values, known) < ROUGHNESS or calm(values, known) or growth(values, known) > GROWTH


def _probabilities(cells: Tensor) -> bool:
    """Whether (C, n) are the probabilities of two classes or more."""
    if len(cells) < 2 or not cells.numel():
        return False
    return bool(are_probabilities(cells[None, :, :, None]))


def nothing_share(cells: Tensor) -> float:
    """How much of what is less than `LITTLE` in class probabilities (C, n) is exactly 0; 0 where nothing is so little.

    1 for averages of labels whose borders are straight and cells small, .5 for noise clamped at 0, 0 for softmax.
    """
    little = cells[cells < LITTLE]
    return float((little == 0).float().mean()) if little.numel() else 0.0


def hard_share(values: Tensor, known: Tensor) -> float:
    """Of neighbouring known cells (h, w) of different classes, how many pairs are certain of both; 0 without any.

    values: class probabilities (C, h, w). 1 for hard labels; averages of labels have cells of both classes between.
    """
    certainty, classes = values.max(0)
    pairs = certain = 0
    for axis in (0, 1):
        size = classes.shape[axis] - 1
        (one, sure, there), (other, also_sure, also_there) = (
            [cells.narrow(axis, start, size) for cells in (classes, certainty >= CERTAIN, known)] for start in (0, 1)
        )
        differ = (one != other) & there & also_there
        pairs += int(differ.sum())
        certain += int((differ & sure & also_sure).sum())
    return certain / pairs if pairs else 0.0


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


def growth(values: Tensor, known: Tensor) -> float:
    """Median second difference of a signal (C, h, w) over twice the distance, over that of neighbours: median channel.

    4 for a paraboloid, 1 for white noise; 0 where no five cells in a row are known (h, w).
    """
    near, far = (second_differences(values, known, step).abs() for step in (1, 2))
    if not far.numel():
        return 0.0
    return float((far.median(1).values / near.median(1).values.clamp_min(1e-12)).median())


def variogram_growth(values: Tensor, known: Tensor) -> float:
    """Mean squared difference of cells two apart over that of neighbours, of a signal (C, h, w).

    1 for white noise, 4 for a plane; infinite where no known cells (h, w) are two apart, or neighbours are all alike.
    """
    near, far = (_mean_squared_difference(values.float(), known, step) for step in (1, 2))
    return far / near if near > 0 and far >= 0 else math.inf


def _mean_squared_difference(values: Tensor, known: Tensor, step: int) -> float:
    """Of known cells that lie `step` apart along an axis, and -1 without any."""
    total = pairs = 0.0
    for maps, there in ((values, known), (values.mT, known.mT)):
        size = maps.shape[-1] - step
        if size < 1:
            continue
        both = there[:, :size] & there[:, step:]
        total += float((maps[..., step:] - maps[..., :size]).square().sum(0)[both].sum())
        pairs += int(both.sum())
    return total / pairs if pairs else -1.0


def second_differences(values: Tensor, known: Tensor, step: int = 1) -> Tensor:
    """Of a signal (C, h, w) along both axes, where three cells `step` apart are known (h, w): (C, n)."""
    differences = []
    values = values if values.dtype == torch.float64 else values.float()
    for maps, there in ((values, known), (values.mT, known.mT)):
        starts = range(0, min(2 * step + 1, maps.shape[-1]), step)  # fewer than three where no three cells are
        if len(starts) < 3:
            continue
        size = maps.shape[-1] - 2 * step
        first, middle, last = (maps.narrow(-1, start, size) for start in starts)
        mask = torch.stack([there.narrow(-1, start, size) for start in starts]).all(0)
        differences.append((last - 2 * middle + first)[:, mask])
    return torch.cat(differences, 1) if differences else values.new_zeros(len(values), 0)
