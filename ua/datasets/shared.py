"""Twenty-one real images with a measured or annotated truth, from a folder that is not part of the repository.

The folder is given by `root=` or by the environment variable `UA_DATA`. Its layout, the units of each file and the
terms of use are those of its own README: research-use data that must not be redistributed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ua import normals
from ua.datasets import Sample, centre_crop, choose, in_split, to_image

EIGEN_CROP = (slice(45, 471), slice(41, 601))  # where NYUv2's raw depth is trustworthy; Eigen et al. 2014
FOCAL_NYU, FOCAL_REDWOOD = 518.9, 525.0  # of the colour cameras, pixels at 640 x 480
# The others are the split "test". No scene is in both: the motorcycle is the one of the data set "embedded", and the
# two basements are one room.
DEV = (
    "middlebury_motorcycle",
    "nyuv2_000464",
    "voc_2007_004189",
    "voc_2008_002536",
    "voc_2010_000682",
    "potsdam_2_10",
    "redwood_00000",
)


@dataclass(frozen=True)
class _Entry:
    """Files of a sample relative to the root, and how to read their numbers."""

    image: str
    group: str
    depth: str | None = None
    per_unit: float = 1.0  # the depth file's numbers are per_unit times the depth
    unit: str = ""
    focal: float | None = None  # pixels; of a depth along the optical axis, which normals are made from
    labels: str | None = None
    num_classes: int = 0
    void: int | None = None
    first: int = 0  # number of the first class in the file
    factor: int = 1  # the label file's numbers are factor times the class
    segments: str | None = None  # a panoptic label file's list: what class a segment has
    crop: tuple[slice, slice] = (slice(None), slice(None))
    licence: str = ""


def _middlebury(image: str, depth: str, per_unit: float) -> _Entry:
    terms = "Middlebury stereo data: free to use with citation (as the site states)"
    return _Entry(f"middlebury/{image}", "middlebury", f"middlebury/{depth}", per_unit, "px disparity", licence=terms)


def _nyu(image: str, depth: str | None, per_unit: float, labels: str | None, **options: Any) -> _Entry:
    return _Entry(
        f"nyuv2/{image}",
        "nyu",
        depth and f"nyuv2/{depth}",
        per_unit,
        "m",
        FOCAL_NYU,
        labels and f"nyuv2/{labels}",
        num_classes=40 if labels else 0,
        void=255,
        licence="NYUv2: research data, no explicit licence",
        **options,
    )


def _voc(name: str, folder: str = "voc") -> _Entry:
    return _Entry(
        f"{folder}/{name}.jpg",
        "voc",
        labels=f"voc/{name}_gt.png",
        num_classes=21,
        void=255,
        licence="Pascal VOC: Flickr terms, research use",
    )


def _davis(frame: str) -> _Entry:
    stem = f"davis/car-shadow/{frame}"
    return _Entry(f"{stem}.jpg", "davis", labels=f"{stem}.png", num_classes=2, factor=255, licence="DAVIS: CC BY 4.0")


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
        "ade20k",
        labels="ade20k/ADE_val_00000001_gt.png",
        num_classes=150,
        void=0,
        first=1,
        licence="ADE20K: non-commercial research and education",
    ),
    "potsdam_2_10": _Entry(
        "aerial_potsdam/2_10_0_0_512_512.png",
        "potsdam",
        labels="aerial_potsdam/2_10_0_0_512_512_label.png",
        num_classes=6,
        void=0,
        first=1,
        licence="ISPRS benchmark data: research use",
    ),
    # One of five frames of a camera that hardly moves. A sensor's depth, with holes and some 190 levels.
    "redwood_00000": _Entry(
        "rgbd_redwood/00000.jpg",
        "redwood",
        "rgbd_redwood/00000_depth.png",
        1000,
        "m",
        FOCAL_REDWOOD,
        licence="Redwood, from Open3D: MIT",
    ),
    "coco_000000142238": _Entry(
        "coco_panoptic/000000142238.jpg",
        "coco",
        labels="coco_panoptic/000000142238.png",
        void=0,
        first=1,
        segments="coco_panoptic/000000142238.json",
        licence="COCO: annotations CC BY 4.0, image under a Flickr licence",
    ),
    "em_membrane_0": _Entry(
        "em_membrane/0.png",
        "em",
        labels="em_membrane/0_label.png",
        num_classes=2,
        factor=255,
        licence="ISBI 2012 EM challenge data: research use",
    ),
}

SCENES = {
    "nyuv2_basement_00000": "nyuv2_basement",
    "nyuv2_basement_00050": "nyuv2_basement",
    "davis_car-shadow_00000": "davis_car-shadow",
    "davis_car-shadow_00007": "davis_car-shadow",
}


def load(
    root: str | os.PathLike[str] | None = None,
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = (320, 448),
    split: str | None = None,
) -> list[Sample]:
    """The samples of `ENTRIES`, or those in `names`.

    Args:
        root: the folder of the files; None reads the environment variable UA_DATA.
        names: some of `ENTRIES`; None: all.
        size: the central crop is at most this high and wide (H, W), in multiples of 16; None keeps whole images.
        split: "dev", "test", or None for both.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing. TypeError: `size` is no pair of integers.
        ValueError: an unknown name or split, a split that holds none of `names`, or a size below 16.
    """
    folder = data_root(root)
    return [_read(folder, name, ENTRIES[name], size) for name in in_split(choose(names, ENTRIES), DEV, split)]


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the files: `root`, or what the environment variable UA_DATA says.

    Raises:
        FileNotFoundError: neither is given, or there is no such folder.
    """
    given = os.environ.get("UA_DATA") if root is None else root
    if not given:
        raise FileNotFoundError(
            "the shared samples need their folder: set the environment variable UA_DATA or pass root="
        )
    if not Path(given).is_dir():
        raise FileNotFoundError(f"UA_DATA (or root=) must be the folder of the shared samples, no folder at {given}")
    return Path(given)


def _read(root: Path, name: str, entry: _Entry, size: tuple[int, int] | None) -> Sample:
    image = _rgb(_crop(array(root, entry.image), entry.crop))
    crop = centre_crop(image.shape[:2], size)
    depth = valid = labels = directions = directions_valid = None
    num_classes = entry.num_classes
    if entry.depth is not None:
        values = torch.from_numpy(_crop(array(root, entry.depth), entry.crop, crop).astype("float32"))
        valid = values.isfinite() & (values > 0)
        depth = torch.where(valid, values / entry.per_unit, 0)[None]
        if entry.focal is not None:
            directions, directions_valid = normals.from_depth(depth[0], valid, entry.focal)
    if entry.labels is not None:
        numbers = torch.from_numpy(_crop(array(root, entry.labels), entry.crop, crop).astype("int64"))
        if entry.segments is not None:
            numbers, num_classes = _panoptic(numbers, root / entry.segments)
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
        num_classes=num_classes,
        normals=directions,
        normals_valid=directions_valid,
        split="dev" if name in DEV else "test",
        group=entry.group,
        scene=SCENES.get(name, ""),
        source=f"shared samples: {entry.image}",
        licence=entry.licence,
    )


def _rgb(pixels: Any) -> Any:
    """A grey image (H, W) repeated to (H, W, 3)."""
    import numpy as np

    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)


def _panoptic(pixels: Tensor, listing: Path) -> tuple[Tensor, int]:
    """A panoptic picture (H, W, 3) as classes (H, W): the categories that it has, numbered from 1, and 0 for void.

    Returns:
        the map, and how many classes there are (in the whole picture, whatever the crop).
    """
    if not listing.is_file():
        raise FileNotFoundError(f"UA_DATA (or root=) lacks the list of segments {listing}")
    content = json.loads(listing.read_text(encoding="utf-8"))
    segments = {
        segment["id"]: segment["category_id"]
        for annotation in content["annotations"]
        for segment in annotation["segments_info"]
    }
    categories = sorted(set(segments.values()))
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    classes = torch.zeros_like(ids)
    for segment, category in segments.items():
        classes[ids == segment] = categories.index(category) + 1
    return classes, len(categories)


def davis_frame(number: int, root: str | os.PathLike[str] | None = None) -> Sample:
    """Frame 0 to 7 of the sequence car-shadow, whole but for what exceeds multiples of 16; class 1 is the car.

    Raises:
        FileNotFoundError: there is no such folder, or no such frame.
    """
    return _read(data_root(root), f"davis_car-shadow_{number:05}", _davis(f"{number:05}"), None)


def array(root: Path, relative: str) -> Any:
    """A file of the folder as a NumPy array, its numbers as they are: palette images as indices.

    Raises:
        FileNotFoundError: there is no such file.
    """
    import numpy as np
    from PIL import Image

    path = root / relative
    if not path.is_file():
        raise FileNotFoundError(f"UA_DATA (or root=) lacks {relative}: no file {path}")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return archive["arr_0"]
    with Image.open(path) as image:
        return np.asarray(image)


def _crop(array: Any, *crops: tuple[slice, slice]) -> Any:
    for crop in crops:
        array = array[crop]
    return array
