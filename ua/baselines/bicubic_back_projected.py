"""Bicubic interpolation with the consistency that `default` has, and no guide: what back-projection alone is worth."""

from __future__ import annotations

from torch import Tensor

from ua.baselines import bicubic
from ua.rendering import back_project


def upsample(image: Tensor, signal: Tensor, valid: Tensor | None = None, *, times: int = 3) -> Tensor:
    """See `ua.baselines` for the arguments.

    times: how often what the result lacks against the signal, averaged over every cell, is added (Irani & Peleg 1991).
    """
    result = bicubic.upsample(image, signal, valid)
    for _ in range(times):
        result = back_project(result, signal, valid)
    return result
