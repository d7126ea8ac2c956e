"""What local statistics of the guide predict of features, learned from the LR features themselves.

Mixing can only move values of cells to pixels. But features are functions of the image, and much of what they do within
a cell follows what the image does there. So the signal is regressed on local statistics of the guide, the prediction is
taken at the pixels, and only what it leaves of the LR signal is upsampled by the Gaussians: regression kriging, in
remote sensing "area-to-point regression kriging" (Wang, Shi, Atkinson & Zhao, "Downscaling MODIS images with
area-to-point regression kriging", 2015).

Two things make it work here (experiments/transfer.md). Regressed are the *differences* of every cell from the cells
around it, of signal and statistics alike (econometrics' within estimator): what holds between distant cells is another
relation than what holds between neighbouring pixels, and the wrong one. And the ridge counts in the variance that the
statistics have *within* cells, where the prediction is made, not in what is left of it between cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ua import degrade
from ua.averages import are_features
from ua.features import blur

WINDOWS = (2.0, 4.0)  # standard deviation in pixels of the Gaussian windows of means and deviations
SLOPES = (1.0, 2.0)  # of the Gaussians whose derivatives are taken
LEAST = 1e-8  # beside a square, so that its root can be differentiated
# Ridges to choose from, over the number of cells: a quarter of a decade apart, from nothing to all.
RIDGES = tuple(10 ** (power / 4) for power in range(-24, 13))
# Times the ridge of the largest evidence, which believes that within cells everything is as it is between them. Chosen
# on the development images of `experiment=transfer`; 30 and 300 are nearly as good.
CAUTION = 100.0
CONDITION = 1e-3  # least eigenvalue of the correlations of the statistics within cells


class Trend(NamedTuple):
    """A prediction of features.

    Attributes:
        statistics: (B, K, H, W), of the guide within cells.
        weights: (B, K, C).
        low: (B, C, h, w), the average of the prediction over every cell.
    """

    statistics: Tensor
    weights: Tensor
    low: Tensor

    def added_to(self, out: Tensor) -> Tensor:
        """The prediction at the pixels plus `out` (B, C, H, W), which is overwritten unless it has a gradient."""
        planes, by_channel, maps = out.flatten(2), self.weights.mT.to(out), self.statistics.flatten(2).to(out)
        differentiable = torch.is_grad_enabled() and any(part.requires_grad for part in (planes, by_channel, maps))
        add = torch.baddbmm if differentiable else Tensor.baddbmm_
        return add(planes, by_channel, maps).view_as(out)


def learn(signal: Tensor, guide: Tensor, valid: Tensor | None) -> Trend | None:
    """The regression of every image's features; None where no signal of the batch is features.

    Args:
        signal: (B, C, h, w); weights of what is no features (`ua.averages.are_features`) are 0.
        guide: (B, G, H, W).
        valid: bool (B, h, w), the cells to learn from; None: all.

    Returns:
        Differentiable with respect to `signal`, the chosen ridges taken as given; and to `guide` with the weights taken
        as given.
    """
    features = are_features(signal, valid)
    if not bool(features.any()):
        return None
    size, grid = (guide.shape[-2], guide.shape[-1]), (signal.shape[-2], signal.shape[-1])
    maps = statistics(guide)
    means = degrade.area(maps, grid)[0]
    within = maps - F.interpolate(means, size, mode="bilinear", align_corners=False)
    known = torch.ones_like(signal[:, 0], dtype=torch.bool) if valid is None else valid
    inputs, outputs = (differences(values.double(), known).flatten(2) for values in (means.detach(), signal))
    weights = torch.stack([_ridge(*image) for image in zip(inputs, outputs, within.detach(), known, strict=True)])
    weights = (weights * features[:, None, None]).to(guide.dtype)
    low = torch.einsum("bkc,bkhw->bchw", weights, degrade.area(within, grid)[0])
    return Trend(within, weights, low.to(signal.dtype))


def statistics(guide: Tensor) -> Tensor:
    """What the guide (B, G, H, W) looks like around every pixel: (B, 5 G + 6, H, W).

    Of every channel its value, and mean and standard deviation under two Gaussian windows. Of the first channel, which
    is lightness in Lab, the direction of the gradient (by its double angle, times its length), slopes, and the
    Laplacian at two scales.
    """
    first = guide[:, :1]
    both = torch.cat([guide, guide.square()], 1)
    maps = [guide]
    for sigma in WINDOWS:
        mean, square = blur(both, sigma).chunk(2, 1)
        maps += [mean, ((square - mean.square()).clamp_min(0) + LEAST).sqrt()]
    fine, coarse = SLOPES
    dx, dy = blur(first, fine, order_x=1), blur(first, fine, order_y=1)
    length = (dx.square() + dy.square() + LEAST).sqrt()
    maps += [(dx.square() - dy.square()) / length, 2 * dx * dy / length]
    maps += [blur(first, coarse, order_x=1), blur(first, coarse, order_y=1)]
    maps += [blur(first, sigma, order_x=2) + blur(first, sigma, order_y=2) for sigma in SLOPES]
    return torch.cat(maps, 1)


def differences(values: Tensor, known: Tensor) -> Tensor:
    """Cells (B, C, h, w) less the mean of the known ones (B, h, w) among them and their 8 neighbours; 0 if unknown."""
    mask = known[:, None].to(values)
    values = values.masked_fill(mask == 0, 0)
    total, count = (F.avg_pool2d(part, 3, stride=1, padding=1) for part in (values, mask))
    return mask * (values - total / count.clamp_min(1e-3))


def _ridge(inputs: Tensor, outputs: Tensor, within: Tensor, known: Tensor) -> Tensor:
    """Weights (K, C) that predict `outputs` (C, n) from `inputs` (K, n), one ridge for each output.

    Least squares plus ridge * w^T V w, V the covariance of the statistics `within` cells (K, H, W). The ridge is that
    of the largest evidence (MacKay, "Bayesian interpolation", 1992) times `CAUTION`.
    """
    cells = int(known.sum())
    white = _whitening(within)
    inputs = white.mT @ inputs
    values, axes = torch.linalg.eigh(inputs @ inputs.mT)
    values = values.clamp_min(0)[:, None]
    products = axes.mT @ (inputs @ outputs.mT)  # [K, C]
    ridges = max(cells, 1) * torch.tensor(RIDGES, dtype=values.dtype, device=values.device)
    with torch.no_grad():
        energy = outputs.square().sum(1)
        left = energy - (products.square() / (values + ridges[:, None, None])).sum(1)  # [ridges, C]
        left = left.clamp_min(1e-9 * energy.clamp_min(torch.finfo(energy.dtype).tiny))
        complexity = torch.log1p(values / ridges).sum(0)  # [ridges]
        best = (cells * left.log() + complexity[:, None]).argmin(0)
    return white @ (axes @ (products / (values + CAUTION * ridges[best])))


def _whitening(within: Tensor) -> Tensor:
    """(K, K) that makes statistics (K, H, W) uncorrelated and of variance 1 within cells, float64."""
    points = within.flatten(1)
    covariance = (points @ points.mT / points.shape[1]).double()
    deviation = covariance.diag().clamp_min(LEAST).sqrt()
    values, axes = torch.linalg.eigh(covariance / deviation / deviation[:, None])
    return axes / values.clamp_min(CONDITION).sqrt() / deviation[:, None]
