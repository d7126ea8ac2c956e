"""The fused GPU backend: two launches of Triton kernels a step (CUDA, compute capability 8.0 up).

The kernels are in `_triton_kernels`, launches in `_triton_launch`. Neither is imported before it is needed. With
TRITON_INTERPRET=1 in the environment the same kernels run on CPU tensors, slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels._triton_device import refuses_device

MOST_IMAGES = 65535  # what CUDA allows along a launch's second axis


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    if len(signal) > MOST_IMAGES:
        return f"it takes at most {MOST_IMAGES} images at a time, got {len(signal)}"
    return refuses_device(signal, guide)


def fit(
    values: Tensor,
    colours: Tensor,
    known: Tensor,
    raw: Tensor,
    *,
    scale: tuple[float, float],
    radius: int,
    steps: int,
) -> Tensor:
    """Same contract as `kernels.leave_one_out.reference.fit`, in float32."""
    from kernels.leave_one_out import _triton_launch

    with torch.no_grad(), torch.cuda.device_of(raw):
        return _triton_launch.fit(values, colours, known, raw, scale=scale, radius=radius, steps=steps)
