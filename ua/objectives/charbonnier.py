"""Charbonnier's loss (Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed
imaging", ICIP 1994): the absolute error with a rounded tip, so that pixels that are right already pull no more.

The width of the tip is that of Lai et al. ("Deep Laplacian pyramid networks", CVPR 2017).
"""

from torch import Tensor

EPS = 1e-3  # guide units: below it the loss is a parabola, far above it the absolute error


def loss(rendered: Tensor, guide: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + EPS^2) over channels and pixels, in guide units, at least EPS: (B, G, H, W) twice -> (B,)."""
    return ((rendered - guide).square() + EPS**2).sqrt().mean((1, 2, 3))
