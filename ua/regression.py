"""What local statistics of the guide predict of features, learned from the LR features themselves.

Mixing can only move values of cells to pixels. But features are functions of the image, and much of what they do within
a cell follows what the image does there. So the signal is regressed on local statistics of the guide, the prediction is
taken at the pixels, and only what it leaves of the LR signal is upsampled by the Gaussians: regression kriging, in
remote sensing "area-to-point regression kriging" (Wang, Shi, Atkinson & Zhao, "Downscaling MODIS images with
area-to-point regression kriging", 2015).

Two things make it work here (experiments/transfer.md). Regressed are second differences of neighbouring cells, of
signal and statistics alike: what holds between distant cells is another relation than what holds between neighbouring
pixels, and the wrong one (for the same reason econometrics has its within estimator). And the ridge counts in the
variance that the statistics have *within* cells, where the prediction is made, not in what is left of it between them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ua import degrade
from ua.averages import are_features
from ua.filters import blur

WINDOWS = (2.0, 4.0)  # standard deviation in pixels of the Gaussian windows of means and deviations
SLOPES = (1.0, 2.0)  # of the Gaussians whose derivatives are taken
LEAST = 1e-8  # beside a square, so that its root can be differentiated
# Ridges to choose from, over the number of differences: a quarter of a decade apart, from nothing to all.
RIDGES = tuple(10 ** (power / 4) for power in range(-24, 13))
# Times the ridge by evidence, which believes that within cells everything is as it is between them. Chosen on the
# development images of `experiment=transfer`; 30 and 300 are nearly as good.
CAUTION = 100.0
CONDITION = 1e-3  # least eigenvalue of the correlations of the statistics within cells
LEAST_DEVIATION = 1 / 255  # within cells, guide units: what moves by less is rounding, and predicts nothing


class Trend(NamedTuple):
    """A prediction of features.

    Attributes:
        within: (B, K, H, W), the K `local_statistics` of the guide less what their averages over cells say of them.
        weights: (B, K, C), units of the signal over those of the statistics.
        low: (B, C, h, w), the average of the prediction over every cell.
    """

    within: Tensor
    weights: Tensor
    low: Tensor

    def added_to(self, out: Tensor) -> Tensor:
        """The prediction at the pixels plus `out` (B, C, H, W), which is overwritten unless it has a gradient."""
        planes, by_channel, maps = out.flatten(2), self.weights.mT.to(out), self.within.flatten(2).to(out)
        differentiable = torch.is_grad_enabled() and any(part.requires_grad for part in (planes, by_channel, maps))
        add = torch.baddbmm if differentiable else Tensor.baddbmm_
        return add(planes, by_channel, maps).view_as(out)


def learn(signal: Tensor, guide: Tensor, valid: Tensor | None) -> Trend | None:
    """The regression of every image's features; None where no signal of the batch is features.

    Args:
        signal: (B, C, h, w); weights of what is no features (`ua.averages.are_features`) are 0.
        guide: (B, G, H, W), whatever its colour space; see `LEAST_DEVIATION` for its unit.
        valid: bool (B, h, w), the cells to learn from; None: all.

    Returns:
        Differentiable with respect to `signal`, and to `guide` with the weights taken as given.
    """
    features = are_features(signal, valid)
    if not bool(features.any()):
        return None
    size, grid = (guide.shape[-2], guide.shape[-1]), (signal.shape[-2], signal.shape[-1])
    maps = local_statistics(guide)
    means = degrade.area(maps, grid)[0]
    within = maps - F.interpolate(means, size, mode="bilinear", align_corners=False)
    known = torch.ones_like(signal[:, 0], dtype=torch.bool) if valid is None else valid
    weights = _weights(means.detach(), signal, within.detach(), known)
    weights = torch.where(features[:, None, None], weights, 0)
    low = torch.einsum("bkc,bkhw->bchw", weights, degrade.area(within, grid)[0])
    return Trend(within, weights, low.to(signal.dtype))


def local_statistics(guide: Tensor) -> Tensor:
    """What the guide (B, G, H, W) looks like around every pixel: (B, 5 G + 6, H, W).

    Of every channel its value, and mean and standard deviation under two Gaussian windows. Of the first channel, which
    is lightness in Lab, the direction of the gradient (by its double angle, times its length), slopes, and the
    Laplacian at two scales.
    """
    first = guide[:, :1]
    centred = guide - guide.mean((2, 3), keepdim=True)
    maps = [guide]
    for sigma in WINDOWS:
        maps += means_and_deviations(centred, sigma)
    fine, coarse = SLOPES
    dx, dy = blur(first, fine, order_x=1), blur(first, fine, order_y=1)
    length = (dx.square() + dy.square() + LEAST).sqrt()
    maps += [(dx.square() - dy.square()) / length, 2 * dx * dy / length]
    maps += [blur(first, coarse, order_x=1), blur(first, coarse, order_y=1)]
    maps += [blur(first, sigma, order_x=2) + blur(first, sigma, order_y=2) for sigma in SLOPES]
    return torch.cat(maps, 1)


def means_and_deviations(guide: Tensor, sigma: float) -> list[Tensor]:
    """Mean and standard deviation of a guide (B, G, H, W) under a Gaussian window; `sigma` in pixels.

    Give it a guide less its mean: squares of less lose fewer digits in their differences.
    """
    mean, square = blur(torch.cat([guide, guide.square()], 1), sigma).chunk(2, 1)
    return [mean, ((square - mean.square()).clamp_min(0) + LEAST).sqrt()]


def _weights(means: Tensor, signal: Tensor, within: Tensor, known: Tensor) -> Tensor:
    """(B, K, C) in the dtype of the statistics."""
    differences, count = _second_differences(torch.cat([means.double(), signal.double()], 1), known)
    inputs, outputs = differences.split([means.shape[1], signal.shape[1]], 1)
    return _ridge(inputs, outputs, within, count).to(within.dtype)


def _second_differences(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, C, h, w) along both axes, (B, C, n), over the root of 2; 0 where not all three cells are known (B, h, w).

    And how many cells they tell of, (B,): a cell has a difference along either axis, and counts once. (Medians need
    those that are not known left out, of one signal at a time: `ua.averages.second_differences`. Sums do not.)
    """
    differences, count = [], torch.zeros(len(values), dtype=values.dtype, device=values.device)
    for maps, there in ((values, known), (values.mT, known.mT)):
        size = maps.shape[-1] - 2
        if size < 1:
            continue
        first, middle, last = (maps.narrow(-1, start, size) for start in range(3))
        mask = there[..., :size] & there[..., 1 : size + 1] & there[..., 2:]
        differences.append((last - 2 * middle + first).masked_fill(~mask[:, None], 0).flatten(2))
        count = count + mask.flatten(1).sum(1)
    found = torch.cat(differences, 2) / 2**0.5 if differences else values.new_zeros(*values.shape[:2], 0)
    return found, (count / 2).floor().clamp_min(1)


def _ridge(inputs: Tensor, outputs: Tensor, within: Tensor, count: Tensor) -> Tensor:
    """Weights (B, K, C) that predict `outputs` (B, C, n) from `inputs` (B, K, n), one ridge for each output.

    Least squares plus ridge * w^T V w, V the covariance of the statistics `within` cells (B, K, H, W), with a little
    more on its diagonal. The ridge is `CAUTION` times the one by evidence (MacKay, "Bayesian interpolation", 1992),
    where `count` (B,) of the n are independent.
    """
    white = _whitening(within)
    inputs = white.mT @ inputs
    values, axes = torch.linalg.eigh(inputs @ inputs.mT)
    values = values.clamp_min(0)[..., None]  # [B, K, 1]
    products = axes.mT @ (inputs @ outputs.mT)  # [B, K, C]
    ridges = count[:, None] * torch.tensor(RIDGES, dtype=values.dtype, device=values.device)  # [B, ridges]
    energy = outputs.square().sum(2)
    left = energy[:, None] - (products.square()[:, None] / (values[:, None] + ridges[..., None, None])).sum(2)
    left = left.clamp_min(1e-9 * energy.clamp_min(torch.finfo(energy.dtype).tiny)[:, None])  # [B, ridges, C]
    complexity = torch.log1p(values / ridges[:, None]).sum(1)  # [B, ridges]
    likely = (-0.5 * (count[:, None, None] * left.log() + complexity[..., None])).softmax(1)
    ridge = (likely * ridges.log()[..., None]).sum(1, keepdim=True).exp()  # the mean, since the likeliest one leaps
    return white @ (axes @ (products / (values + CAUTION * ridge)))


def _whitening(within: Tensor) -> Tensor:
    """(B, K, K) that makes statistics (B, K, H, W) uncorrelated and of variance 1 within cells, float64."""
    points = within.flatten(2)
    covariance = (points @ points.mT / points.shape[2]).double()
    covariance = covariance + LEAST_DEVIATION**2 * torch.eye(points.shape[1]).to(covariance)
    deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
    values, axes = torch.linalg.eigh(covariance / deviation[:, None] / deviation[..., None])
    return axes / values.clamp_min(CONDITION).sqrt()[:, None] / deviation[..., None]
