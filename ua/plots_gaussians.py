"""Pictures of the Gaussians themselves: ellipses over the image, and who has a say at a pixel.

Matplotlib is imported only when a figure is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import ua
from kernels.geometry import centres, owners
from ua import plots
from ua.gaussians import Gaussians
from ua.plots import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 48  # of an outline
LEAST_DECADE = 0.5  # of the colour scale of sigma_r: rounding should not look like a difference


def ellipses(
    image: Tensor, sets: Mapping[str, Gaussians], *, every: int = 1, size: float = 0.5, width: float = 3.6
) -> Figure:
    """Gaussians over the faded image, a panel for each named set: shape and angle as they are, sigma_r as colour.

    Args:
        image: (G, H, W) in [0, 1].
        sets: titles and maps, of which the first image's are drawn; all on one grid.
        every: one cell in so many along each axis is drawn, from the middle of the grid outwards; >= 1.
        size: of the outlines, in standard deviations; > 0.
        width: of a panel, inches.

    Raises:
        ValueError: no sets, or `every` or `size` out of range.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    if not sets:
        raise ValueError("sets must hold at least one ua.Gaussians, got none")
    if every < 1 or not size > 0:
        raise ValueError(f"every must be >= 1 and size > 0, got {every} and {size}")
    height, breadth = image.shape[-2:]
    ranges = torch.stack([maps.sigma_r[0] for maps in sets.values()]).log10()
    low, high = float(ranges.min()), float(ranges.max())
    slack = max(0.0, LEAST_DECADE - (high - low)) / 2
    norm = LogNorm(10 ** (low - slack), 10 ** (high + slack))
    colours = matplotlib.colormaps["plasma"]
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(width * len(sets) + 0.7, width * height / breadth + 0.3), layout="constrained")
        row = figure.subplots(1, len(sets), squeeze=False)[0]
        for axes, (title, maps) in zip(row, sets.items(), strict=True):
            axes.imshow(faded(image), extent=(-0.5, breadth - 0.5, height - 0.5, -0.5))
            lines = outlines(maps, (height, breadth), every=every, size=size)
            values = colours(norm(_every(maps.sigma_r[0], every).flatten().detach().cpu().numpy()))
            axes.add_collection(PolyCollection(list(lines), facecolors=values, alpha=0.12, linewidths=0))
            axes.add_collection(PolyCollection(list(lines), facecolors="none", edgecolors=values, linewidths=1.1))
            axes.set(title=title, xlim=(-0.5, breadth - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=row, shrink=0.9, pad=0.01, aspect=30)
        bar.set_label("$\\sigma_r$ (guide units)")
        bar.outline.set_visible(False)
    return figure


def outlines(gaussians: Gaussians, image_size: tuple[int, int], *, every: int = 1, size: float = 1.0) -> NDArray[Any]:
    """Where the Gaussians of the first image have fallen to exp(-size^2 / 2), as (x, y) in HR pixels: (cells, 48, 2).

    Args:
        gaussians: maps (B, h, w).
        image_size: (H, W).
        every: one cell in so many along each axis.
        size: standard deviations.
    """
    rows, cols = gaussians.theta.shape[-2:]
    middle_y, middle_x = (centres(cells, pixels) for cells, pixels in zip((rows, cols), image_size, strict=True))
    middles = _every(torch.stack(torch.meshgrid(middle_x, middle_y, indexing="xy")), every).flatten(1)  # [2, N]
    maps = (_every(lr_map[0].detach().double().cpu(), every).flatten()[:, None] for lr_map in gaussians)
    sigma_x, sigma_y, theta, _ = maps
    turn = torch.linspace(0, 2 * math.pi, POINTS + 1, dtype=torch.float64)[:-1]
    along, across = size * sigma_x * turn.cos(), size * sigma_y * turn.sin()
    x = middles[0][:, None] + along * theta.cos() - across * theta.sin()
    y = middles[1][:, None] + along * theta.sin() + across * theta.cos()
    return torch.stack([x, y], dim=-1).numpy()


def pixel_weights(fit: ua.Fit, pixel: tuple[int, int]) -> Tensor:
    """The share of every cell in the mixture at one pixel of the first image, (h, w); they sum to 1.

    It is the render of one signal for each cell, so memory grows with pixels times cells: for small images.

    Args:
        fit: what `ua.fit` returned; refinements and the correction of ramps are left out.
        pixel: (y, x), HR.

    Raises:
        ValueError: a pixel outside the image.
    """
    (height, width), (rows, cols) = fit.image.shape[-2:], fit.gaussians.theta.shape[-2:]
    y, x = pixel
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"pixel must be (y, x) within {height} x {width}, got {pixel}")
    off = {"regression": False, "discriminants": False, "first_order": False}
    plain = fit.config.replace(back_projections=0, diffusions=0, assignments=0, **off)
    one = torch.eye(rows * cols).to(fit.image).view(1, rows * cols, rows, cols)
    first = Gaussians(*(lr_map[:1] for lr_map in fit.gaussians))
    out = ua.render(one, fit.image[:1], first, config=plain, backend=fit.backend)
    return out[0, :, y, x].view(rows, cols)


def weights_over(image: Tensor, weights: Tensor, pixel: tuple[int, int]) -> Picture:
    """The faded image with each cell coloured by its weight, strongest in full, and a ring around the pixel.

    Args:
        image: (G, H, W) in [0, 1].
        weights: (h, w), as `pixel_weights` gives them.
        pixel: (y, x), HR.
    """
    height, width = image.shape[-2:]
    rows, cols = weights.shape
    share = (weights / weights.max()).detach().cpu()[owners(rows, height)][:, owners(cols, width)].double()
    colour = plots.quantity(share, 0, 1, "plasma")
    opacity = share.sqrt().numpy()[..., None] * 0.9  # the root: small weights are many, and should be seen
    return ringed((1 - opacity) * faded(image) + opacity * colour, pixel)


def ringed(picture: Picture, pixel: tuple[int, int], radius: float = 4.0) -> Picture:
    """A copy with a ring, black on white, around the pixel (y, x)."""
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    distance = np.hypot(y - pixel[0], x - pixel[1])[..., None]
    picture = np.where(np.abs(distance - radius) < 1.4, 1.0, picture)
    return np.where(np.abs(distance - radius) < 0.6, 0.0, picture)


def faded(image: Tensor) -> Picture:
    """The image in light grey, to draw upon."""
    grey = plots.image(image).mean(-1, keepdims=True)
    return np.repeat(0.45 + 0.5 * grey, 3, axis=-1)


def _every(lr_map: Tensor, every: int) -> Tensor:
    """One cell in so many along the last two axes, as far from one border as from the other."""
    rows, cols = ((cells - 1) % every // 2 for cells in lr_map.shape[-2:])
    return lr_map[..., rows::every, cols::every]
