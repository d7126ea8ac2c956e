"""Bicubic interpolation with the consistency that `default` has, and no guide: what back-projection alone is worth."""

from __future__ import annotations

from torch import Tensor

from ua.baselines import bicubic
from ua.refinement import back_project


def upsample(image: Tensor, signal: Tensor, valid: Tensor | None = None, *, times: int = 3) -> Tensor:
    """Bicubic, then back-projection, which the guide has no part in.

    Args:
        image, signal, valid: see `ua.baselines`.
        times: how often what the result lacks against the signal, averaged over every cell, is added (Irani & Peleg
            1991); >= 0. The default is that of the preset "default".
    """
    if times < 0:
        raise ValueError(f"times must be an integer >= 0, got {times}")
    result = bicubic.upsample(image, signal, valid)
    for _ in range(times):
        result = back_project(result, signal, valid)
    return result
