"""Real data that comes inside ordinary wheels (scikit-image, Matplotlib): nothing is downloaded.

Five photographs without a truth of their own, for colour and features; the Middlebury 2014 motorcycle with its
measured disparity; an elevation model. No wheel ships a hand-made segmentation, so the only label map is *made*: the
motorcycle's disparity cut into layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ua import normals
from ua.datasets import Sample, centre_crop, check_size, choose, in_split, to_image
from ua.degrade import area

DEV = ("astronaut", "coffee", "motorcycle")  # the others are the split "test"

LAYERS = 6  # of the motorcycle's label map
SUN = (315.0, 45.0)  # azimuth and altitude in degrees: north-west, the convention of shaded maps
METRES_PER_DEGREE = 111_320.0  # along a meridian; a parallel is shorter by the cosine of the latitude

PHOTOGRAPHS = {
    "astronaut": ("NASA Great Images", "public domain"),
    "coffee": ("Rachel Michetti, Pikolo Espresso Bar", "CC0"),
    "chelsea": ("Stefan van der Walt", "CC0"),
    "rocket": ("SpaceX, launch of DSCOVR", "public domain"),
    "retina": ("Mikael Haggstrom 2014, DOI 10.15347/wjm/2014.008", "CC0"),
}


def load(
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = (320, 448),
    layers: int = LAYERS,
    split: str | None = None,
) -> list[Sample]:
    """The samples astronaut, coffee, chelsea, rocket, retina, motorcycle and elevation, or those in `names`.

    Args:
        names: some of these; None: all.
        size: the central crop is at most this high and wide (H, W), in multiples of 16; None keeps whole images. (The
            retina, one object of 1411 x 1411 pixels, is first reduced by area average to the lesser side of `size`.)
        layers: number of classes of the motorcycle's labels, at least 2.
        split: "dev", "test", or None for both.

    Raises:
        TypeError: `size` is no pair of integers. ValueError: an unknown name or split, a split that holds none of
        `names`, a size below 16, fewer than two layers.
    """
    check_size(size)
    if layers < 2:
        raise ValueError(f"layers must be at least 2, got {layers}")
    makers: dict[str, Callable[[], Sample]] = {
        **{name: partial(_photograph, name, size) for name in PHOTOGRAPHS},
        "motorcycle": partial(_motorcycle, size, layers),
        "elevation": partial(_elevation, size),
    }
    return [makers[name]() for name in in_split(choose(names, makers), DEV, split)]


def _split(name: str) -> str:
    return "dev" if name in DEV else "test"


def _photograph(name: str, size: tuple[int, int] | None) -> Sample:
    from skimage import data

    image = to_image(getattr(data, name)())
    if name == "retina" and size is not None and min(size) < min(image.shape[-2:]):
        image = area(image, (min(size), min(size)))[0].clamp(0, 1)  # roundoff
    rows, columns = centre_crop(_size(image), size)
    author, licence = PHOTOGRAPHS[name]
    return Sample(
        name,
        image[:, rows, columns].contiguous(),
        split=_split(name),
        group="photograph",
        source=f"skimage.data.{name}: {author}",
        licence=licence,
    )


def _motorcycle(size: tuple[int, int] | None, layers: int) -> Sample:
    """Disparity in pixels, +inf in the file where unknown; labels are its quantile layers, 0 the farthest."""
    from skimage import data

    left, _, disparity = data.stereo_motorcycle()
    rows, columns = centre_crop(disparity.shape, size)
    depth = torch.from_numpy(disparity[rows, columns].copy())
    valid = depth.isfinite()
    depth = torch.where(valid, depth, 0)
    return Sample(
        "motorcycle",
        to_image(left[rows, columns]),
        depth=depth[None],
        depth_valid=valid,
        depth_unit="px disparity",
        labels=disparity_layers(depth, valid, layers),
        num_classes=layers,
        split=_split("motorcycle"),
        group="middlebury",
        source="skimage.data.stereo_motorcycle: Middlebury 2014 (Scharstein et al., GCPR 2014); made labels",
        licence="scikit-image wheel (BSD-3); data free to use with citation",
    )


def disparity_layers(depth: Tensor, valid: Tensor, layers: int) -> Tensor:
    """A label map made from a depth map: its `layers` equally populated ranges, 0 for the smallest values.

    Args:
        depth: (H, W) float.
        valid: bool (H, W).
        layers: at least 2.

    Returns:
        (H, W) int64 with -1 where not valid.
    """
    # numpy-like quantiles by sorting: torch.quantile refuses large inputs
    known = depth[valid].sort().values
    cuts = known[torch.arange(1, layers) * len(known) // layers]
    return torch.where(valid, torch.bucketize(depth, cuts, right=True), -1)


def _elevation(size: tuple[int, int] | None) -> Sample:
    """Terrain around the Jacksboro fault. The guide is *not* a photograph but the hillshade of the very elevation.

    It shows slopes under a lamp, in grey, and never the height itself (no colour scale). Heights above sea level make
    ratios meaningless (any two of them are within 1.25 of each other, nearly), so zero is put an eighth of the relief
    below the lowest point: heights then range over a factor of nine, as near and far do in a room.
    """
    import matplotlib
    import numpy as np
    from matplotlib.colors import LightSource

    path = Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz"
    with np.load(path, allow_pickle=False) as archive:
        model: dict[str, Any] = dict(archive)
    height = model["elevation"].astype(np.float64)
    latitude = np.deg2rad((model["ymin"] + model["ymax"]) / 2)
    dx, dy = model["dx"] * METRES_PER_DEGREE * np.cos(latitude), model["dy"] * METRES_PER_DEGREE
    shade = LightSource(*SUN).hillshade(height, dx=dx, dy=dy)
    rows, columns = centre_crop(height.shape, size)
    height = height - height.min() + (height.max() - height.min()) / 8
    depth = torch.from_numpy(height[rows, columns]).float()
    guide = torch.from_numpy(shade[rows, columns]).float().clamp(0, 1)
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    directions, directions_valid = normals.from_height(depth, everywhere, (float(dy), float(dx)))
    return Sample(
        "elevation",
        guide.expand(3, -1, -1).contiguous(),
        depth=depth[None],
        depth_valid=everywhere,
        depth_unit="m above a shifted zero",
        normals=directions,
        normals_valid=directions_valid,
        split=_split("elevation"),
        group="elevation",
        source="matplotlib sample_data/jacksboro_fault_dem.npz; the guide is a hillshade rendered from it",
        licence="Matplotlib wheel; origin of the elevation not stated there",
    )


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
