"""A Sentinel-2 image of four bands with the measured height of the vegetation, from the folder of shared samples."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ua.datasets import Sample, centre_crop, check_size, in_split
from ua.datasets.shared import data_root

NAME = "vegetation"
FILE = "vegetation_height/sample.npz"
STRETCH = (0.01, 0.99)  # quantiles of a band that become 0 and 1


def load(
    root: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = (320, 448),
    split: str | None = None,
) -> list[Sample]:
    """The one sample: `bands` are all four, `image` the first three of them (their order is not stated).

    Its `depth` is the height of the vegetation and one metre more, since a depth is positive; differences (RMSE) are
    those of the height, ratios (delta1) are not.

    Args:
        root: the folder of the files; None reads the environment variable UA_DATA.
        size: the central crop is at most this high and wide (H, W), in multiples of 16; None keeps the whole image.
        split: "test", to which the sample belongs, or None.

    Raises:
        FileNotFoundError: there is no such folder, or the file is missing. TypeError: `size` is no pair of integers.
        ValueError: another split, or a size below 16.
    """
    import numpy as np

    check_size(size)
    in_split([NAME], (), split)
    path = data_root(root) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"UA_DATA (or root=) lacks {FILE}: no file {path}")
    with np.load(path, allow_pickle=False) as archive:
        reflectance = torch.from_numpy(archive["guide_imgs"][0].astype("float32"))
        height = torch.from_numpy(archive["target_imgs"].astype("float32"))
    crop = (slice(None), *centre_crop((height.shape[-2], height.shape[-1]), size))
    bands, height = stretch(reflectance[crop]), height[crop]
    known = height[0].isfinite() & (height[0] >= 0)
    return [
        Sample(
            NAME,
            bands[:3].contiguous(),
            depth=torch.where(known, height + 1, 0),
            depth_valid=known,
            depth_unit="m of height, plus 1",
            bands=bands,
            split="test",
            group=NAME,
            source=f"shared samples: {FILE} (Sentinel-2; canopy height from PixTransform's sample)",
            licence="PixTransform: MIT; Copernicus Sentinel data: open",
        )
    ]


def stretch(bands: Tensor) -> Tensor:
    """Every band (G, H, W) to [0, 1] by its own quantiles."""
    low, high = torch.quantile(bands.flatten(1), torch.tensor(STRETCH), dim=1)[..., None, None]
    return ((bands - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
