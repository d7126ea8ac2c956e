"""Eighteen real images with a measured or annotated truth, from a folder that is not part of the repository.

The folder is given by `root=` or by the environment variable `UA_DATA`. Its layout, the units of each file and the
terms of use are those of its own README: research-use data that must not be redistributed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ua.datasets import Sample, centre_crop, choose, to_image

EIGEN_CROP = (slice(45, 471), slice(41, 601))  # where NYUv2's raw depth is trustworthy; Eigen et al. 2014


@dataclass(frozen=True)
class _Entry:
    """Files of a sample relative to the root, and how to read their numbers."""

    image: str
    depth: str | None = None
    per_unit: float = 1.0  # the depth file's numbers are per_unit times the depth
    unit: str = ""
    labels: str | None = None
    num_classes: int = 0
    void: int | None = None
    first: int = 0  # number of the first class in the file
    factor: int = 1  # the label file's numbers are factor times the class
    crop: tuple[slice, slice] = (slice(None), slice(None))
    licence: str = ""


def _middlebury(image: str, depth: str, per_unit: float) -> _Entry:
    terms = "Middlebury stereo data: free to use with citation (as the site states)"
    return _Entry(f"middlebury/{image}", f"middlebury/{depth}", per_unit, "px disparity", licence=terms)


def _nyu(image: str, depth: str | None, per_unit: float, labels: str | None, **options: Any) -> _Entry:
    return _Entry(
        f"nyuv2/{image}",
        depth and f"nyuv2/{depth}",
        per_unit,
        "m",
        labels and f"nyuv2/{labels}",
        num_classes=40 if labels else 0,
        void=255,
        licence="NYUv2: research data, no explicit licence",
        **options,
    )


def _voc(name: str, folder: str = "voc") -> _Entry:
    return _Entry(
        f"{folder}/{name}.jpg",
        labels=f"voc/{name}_gt.png",
        num_classes=21,
        void=255,
        licence="Pascal VOC: Flickr terms, research use",
    )


def _davis(frame: str) -> _Entry:
    stem = f"davis/car-shadow/{frame}"
    return _Entry(f"{stem}.jpg", labels=f"{stem}.png", num_classes=2, factor=255, licence="DAVIS: CC BY 4.0")


ENTRIES = {
    "middlebury_teddy": _middlebury("2003_teddy_im2.png", "2003_teddy_disp2.pgm", 4),
    "middlebury_art": _middlebury("2005_art_view1.png", "2005_art_disp1.png", 2),
    "middlebury_motorcycle": _middlebury("2014_motorcycle_left.png", "2014_motorcycle_disp.npz", 1),
    "nyuv2_000464": _nyu("000464_rgb.png", "000464_depth.png", 5000, "000464_label40.png", crop=EIGEN_CROP),
    "nyuv2_basement_00000": _nyu("basement_00000_rgb.jpg", "basement_00000_depth.png", 1000, None, crop=EIGEN_CROP),
    "nyuv2_basement_00050": _nyu("basement_00050_rgb.jpg", "basement_00050_depth.png", 1000, None, crop=EIGEN_CROP),
    "nyuv2_000834": _nyu("000834_rgb.png", None, 1, "000834_label40.png"),
    "voc_2009_003810": _voc("2009_003810", folder="official"),
    "voc_2007_004189": _voc("2007_004189"),
    "voc_2007_006449": _voc("2007_006449"),
    "voc_2008_002536": _voc("2008_002536"),
    "voc_2011_000003": _voc("2011_000003"),
    "voc_2010_000682": _voc("2010_000682"),
    "voc_2009_001521": _voc("2009_001521"),
    # Two of the eight frames: they hardly differ, and eight would outvote everything else.
    "davis_car-shadow_00000": _davis("00000"),
    "davis_car-shadow_00007": _davis("00007"),
    "ade20k_val_00000001": _Entry(
        "ade20k/ADE_val_00000001.jpg",
        labels="ade20k/ADE_val_00000001_gt.png",
        num_classes=150,
        void=0,
        first=1,
        licence="ADE20K: non-commercial research and education",
    ),
    "potsdam_2_10": _Entry(
        "aerial_potsdam/2_10_0_0_512_512.png",
        labels="aerial_potsdam/2_10_0_0_512_512_label.png",
        num_classes=6,
        void=0,
        first=1,
        licence="ISPRS benchmark data: research use",
    ),
}


def load(
    root: str | os.PathLike[str] | None = None,
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = (320, 448),
) -> list[Sample]:
    """The samples of `ENTRIES`, or those in `names`.

    Args:
        root: the folder of the files; None reads the environment variable UA_DATA.
        names: some of `ENTRIES`; None: all.
        size: the central crop is at most this high and wide (H, W), in multiples of 16; None keeps whole images.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing. TypeError: `size` is no pair of integers.
        ValueError: an unknown name, or a size below 16.
    """
    folder = _root(root)
    return [_read(folder, name, ENTRIES[name], size) for name in choose(names, ENTRIES)]


def _root(root: str | os.PathLike[str] | None) -> Path:
    given = os.environ.get("UA_DATA") if root is None else root
    if not given:
        raise FileNotFoundError(
            "the data set 'shared' needs its folder: set the environment variable UA_DATA or pass root="
        )
    if not Path(given).is_dir():
        raise FileNotFoundError(f"UA_DATA (or root=) must be the folder of the shared samples, no folder at {given}")
    return Path(given)


def _read(root: Path, name: str, entry: _Entry, size: tuple[int, int] | None) -> Sample:
    image = _crop(_array(root, entry.image), entry.crop)
    crop = centre_crop(image.shape[:2], size)
    depth = valid = labels = None
    if entry.depth is not None:
        values = torch.from_numpy(_crop(_array(root, entry.depth), entry.crop, crop).astype("float32"))
        valid = values.isfinite() & (values > 0)
        depth = torch.where(valid, values / entry.per_unit, 0)[None]
    if entry.labels is not None:
        numbers = torch.from_numpy(_crop(_array(root, entry.labels), entry.crop, crop).astype("int64"))
        labels = numbers // entry.factor - entry.first
        if entry.void is not None:
            labels[numbers == entry.void] = -1
    return Sample(
        name,
        to_image(_crop(image, crop)),
        depth=depth,
        depth_valid=valid,
        depth_unit=entry.unit if entry.depth else "",
        labels=labels,
        num_classes=entry.num_classes,
        source=f"shared samples: {entry.image}",
        licence=entry.licence,
    )


def _array(root: Path, relative: str) -> Any:
    """A file's numbers as they are: palette images as indices."""
    import numpy as np
    from PIL import Image

    path = root / relative
    if not path.is_file():
        raise FileNotFoundError(f"UA_DATA (or root=) lacks {relative}: no file {path}")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return archive["arr_0"]
    with Image.open(path) as image:
        return np.asarray(image)


def _crop(array: Any, *crops: tuple[slice, slice]) -> Any:
    for crop in crops:
        array = array[crop]
    return array
