"""Test images with a known truth.

A data set is a module of this package (or any importable one, named with a dot) with a function
`load(**options) -> list[Sample]`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ua import plugins

MULTIPLE = 16  # crops end on it, so that x8 and x16 grids are whole
SPLITS = ("dev", "test")  # what may be tuned on, and what is looked at once


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known about it.

    Attributes:
        name: unique within its data set.
        image: (3, H, W) float32 in [0, 1].
        depth: (1, H, W) float32 in `depth_unit`, positive where `depth_valid` holds, 0 elsewhere; or None.
        depth_valid: bool (H, W), or None where there is no depth.
        depth_unit: of `depth`, for people.
        labels: (H, W) int64, 0 to `num_classes` - 1, and -1 for void; or None.
        num_classes: of `labels`, else 0.
        normals: (3, H, W) float32, unit surface normals where `normals_valid` holds, 0 elsewhere (`ua.normals` has the
            axes); or None.
        normals_valid: bool (H, W), or None where there are no normals.
        bands: (G, H, W) float32 in [0, 1], everything that the camera saw where that is more than `image` (infrared);
            or None.
        split: "dev" or "test", the same for all pictures of one scene; "" where the data set does not say.
        group: the family of data under which scores are reported, like "nyu".
        scene: what several samples show alike, so that they are no independent evidence; "": this one shows its own.
        source, licence: where it comes from and under which terms, as stated there.

    Raises:
        ValueError: tensors that do not fit together.
    """

    name: str
    image: Tensor
    depth: Tensor | None = None
    depth_valid: Tensor | None = None
    depth_unit: str = ""
    labels: Tensor | None = None
    num_classes: int = 0
    normals: Tensor | None = None
    normals_valid: Tensor | None = None
    bands: Tensor | None = None
    split: str = ""
    group: str = ""
    scene: str = ""
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        size = self.image.shape[-2:]
        if self.image.ndim != 3 or self.image.shape[0] != 3:
            raise ValueError(f"{self.name}: image must be (3, H, W), got {tuple(self.image.shape)}")
        if (self.depth is None) != (self.depth_valid is None):
            raise ValueError(f"{self.name}: depth and depth_valid come together")
        if (self.normals is None) != (self.normals_valid is None):
            raise ValueError(f"{self.name}: normals and normals_valid come together")
        if self.split and self.split not in SPLITS:
            raise ValueError(f"{self.name}: {plugins.unknown('split', self.split, SPLITS)}")
        shapes = {
            "depth": (1, *size),
            "depth_valid": size,
            "labels": size,
            "normals": (3, *size),
            "normals_valid": size,
        }
        if self.bands is not None and (self.bands.ndim != 3 or self.bands.shape[1:] != size):
            raise ValueError(f"{self.name}: bands must be (G, {size[0]}, {size[1]}), got {tuple(self.bands.shape)}")
        for field, shape in shapes.items():
            value = getattr(self, field)
            if value is not None and value.shape != shape:
                raise ValueError(f"{self.name}: {field} must be {tuple(shape)}, got {tuple(value.shape)}")


def load(name: str, **options: Any) -> list[Sample]:
    """The samples of a data set.

    Args:
        name: "embedded", "shared", or a module of one's own as "package.module".
        options: passed to the data set's `load`.

    Raises:
        ValueError: an unknown data set, or an option out of range. TypeError: an unknown option, or one of another
        type. FileNotFoundError: its files are not on this machine.
    """
    check(name, options)
    samples: list[Sample] = plugins.find("ua.datasets", name).load(**options)
    return samples


def check(name: str, options: Iterable[str]) -> None:
    """Tells before anything is read what `load` would say about an unknown data set or option."""
    module = plugins.find("ua.datasets", name, needs="load", kind="data set")
    plugins.check_options(module.load, options, f"data set {name!r}")


def choose(names: Iterable[str] | None, available: Iterable[str]) -> list[str]:
    """`names` if each is in `available`, all of these for None. A helper for data sets.

    Raises:
        ValueError: a name that is not available, with the nearest one; or no name at all.
    """
    known = list(available)
    if names is None:
        return known
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            raise ValueError(plugins.unknown("sample", name, known))
    if not wanted:
        raise ValueError(f"names must hold at least one of {', '.join(known)}, got none")
    return wanted


def in_split(names: Iterable[str], dev: Collection[str], split: str | None) -> list[str]:
    """Those of `names` that are in the split; None: all. A helper for data sets.

    Args:
        names: of samples.
        dev: the samples of the split "dev"; all others are "test".
        split: "dev", "test" or None.

    Raises:
        ValueError: another split, or one that none of `names` is in.
    """
    names = list(names)
    if split is None:
        return names
    if split not in SPLITS:
        raise ValueError(plugins.unknown("split", split, SPLITS))
    chosen = [name for name in names if (name in dev) == (split == "dev")]
    if not chosen:
        raise ValueError(f"split={split} holds none of {', '.join(names)}")
    return chosen


def centre_crop(shape: tuple[int, int], size: tuple[int, int] | None) -> tuple[slice, slice]:
    """Rows and columns of the central crop of at most `size`, rounded down to multiples of 16.

    A helper for data sets, to be applied to the image, its depth and its labels alike.

    Args:
        shape: (H, W) of the image, at least 16 x 16.
        size: greatest (H, W), or None for the whole image.

    Raises:
        TypeError: `size` is no pair of integers. ValueError: it is less than 16 on a side.
    """
    check_size(size)
    rows, columns = (_central(full, limit) for full, limit in zip(shape, shape if size is None else size, strict=True))
    return rows, columns


def check_size(size: Any) -> None:
    """Raises TypeError unless `size` is a pair of integers (H, W) or None."""
    if size is None:
        return
    if isinstance(size, str) or not isinstance(size, Sequence) or [type(side) for side in size] != [int, int]:
        raise TypeError(f"size must be a pair of integers (H, W) or None, got {size!r}")


def _central(full: int, limit: int) -> slice:
    length = min(full, limit) // MULTIPLE * MULTIPLE
    if length < MULTIPLE:
        raise ValueError(f"size must be at least {MULTIPLE} pixels on each side, got {limit} (image side: {full})")
    start = (full - length) // 2
    return slice(start, start + length)


def to_image(pixels: Any) -> Tensor:
    """NumPy (H, W, 3) uint8 to (3, H, W) float32 in [0, 1]. A helper for data sets."""
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).contiguous().float() / 255
