"""Test images with a known truth. A data set is a module of this package (or any importable one, named with
a dot) with a function `load(**options) -> list[Sample]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ua import plugins

MULTIPLE = 16  # crops end on it, so that x8 and x16 grids are whole


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known about it.

    image: (3, H, W) float32 in [0, 1]. depth: (1, H, W) float32 in `depth_unit`, positive where
    `depth_valid`, a boolean (H, W), holds, and 0 elsewhere. labels: (H, W) int64, 0 to `num_classes` - 1,
    and -1 for void. source, licence: where it comes from and under which terms, as stated there.
    """

    name: str
    image: Tensor
    depth: Tensor | None = None
    depth_valid: Tensor | None = None
    depth_unit: str = ""
    labels: Tensor | None = None
    num_classes: int = 0
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        size = self.image.shape[-2:]
        if self.image.ndim != 3 or self.image.shape[0] != 3:
            raise ValueError(f"{self.name}: image must be (3, H, W), got {tuple(self.image.shape)}")
        if (self.depth is None) != (self.depth_valid is None):
            raise ValueError(f"{self.name}: depth and depth_valid come together")
        for field, shape in (("depth", (1, *size)), ("depth_valid", size), ("labels", size)):
            value = getattr(self, field)
            if value is not None and value.shape != shape:
                raise ValueError(f"{self.name}: {field} must be {tuple(shape)}, got {tuple(value.shape)}")


def load(name: str, **options: Any) -> list[Sample]:
    """The samples of data set `name` (`"embedded"`, `"shared"`, or a module of one's own as
    `"package.module"`).

    options: passed to the data set's `load`. Raises ValueError for an unknown data set or a bad option's
    value, TypeError for an unknown option, FileNotFoundError where the files are not on this machine.
    """
    return plugins.find("ua.datasets", name, needs="load").load(**options)


def choose(names: Iterable[str] | None, available: Iterable[str]) -> list[str]:
    """`names` if each is in `available`, all of these for None. A helper for data sets."""
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


def centre_crop(shape: tuple[int, int], size: tuple[int, int] | None) -> tuple[slice, slice]:
    """Rows and columns of the central crop of at most `size`, rounded down to multiples of 16.

    shape: (H, W) of the image, at least 16 x 16. size: greatest (H, W), or None for the whole image. A
    helper for data sets, to be applied to the image, its depth and its labels alike.
    """
    rows, columns = (_central(full, limit) for full, limit in zip(shape, shape if size is None else size, strict=True))
    return rows, columns


def _central(full: int, limit: int) -> slice:
    length = min(full, limit) // MULTIPLE * MULTIPLE
    if length < MULTIPLE:
        raise ValueError(f"size must be at least {MULTIPLE} pixels on each side, got {limit} (image side: {full})")
    start = (full - length) // 2
    return slice(start, start + length)


def to_image(pixels: Any) -> Tensor:
    """NumPy (H, W, 3) uint8 to (3, H, W) float32 in [0, 1]. A helper for data sets."""
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).contiguous().float() / 255
