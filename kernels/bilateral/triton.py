"""The fused GPU backend: render, gradients and whole fit steps as Triton kernels (CUDA, compute capability 8.0 up).

The kernels are in `_triton_kernels`, their tables and tiles in `_triton_tables` and `_triton_tiles`, launches in
`_triton_launch`, the operators that PyTorch sees in `_triton_ops`, the captured fit in `_triton_fit`. None of it is
imported before it is needed. With TRITON_INTERPRET=1 in the environment the same kernels run on CPU tensors, slowly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels._triton_device import refuses_device
from kernels.geometry import Factors, Support

MOST_GUIDE_CHANNELS = 8
# Offsets within one image plane, and within the LR signal of one image, are 32 bits wide, planes of the guide together.
MOST_PIXELS, MOST_LR_VALUES = 2**31 // MOST_GUIDE_CHANNELS - 1, 2**31 - 1
MOST_PADDING = 384  # channels that rows of the signal are filled up with
MOST_IMAGES = 65535  # of a batch: what CUDA allows along a launch's second and third axis
# tl.dot of bfloat16 is wrong under Triton's interpreter.
INTERPRETED_DTYPES = (torch.float32, torch.float16)


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors; None: it can."""
    unfit = refuses_device(signal, guide)
    if unfit is not None:
        return unfit
    if guide.device.type == "cpu" and signal.dtype not in INTERPRETED_DTYPES:
        return f"Triton's interpreter computes {signal.dtype} wrongly"
    if guide.shape[1] > MOST_GUIDE_CHANNELS:
        return f"it takes a guide of at most {MOST_GUIDE_CHANNELS} channels, got {guide.shape[1]}"
    cells, channels = signal.shape[-2] * signal.shape[-1], signal.shape[1] + MOST_PADDING
    if guide.shape[-2] * guide.shape[-1] > MOST_PIXELS or cells * channels > MOST_LR_VALUES:
        return f"it takes at most {MOST_PIXELS} pixels and {MOST_LR_VALUES} LR values an image"
    if len(guide) > MOST_IMAGES:
        return f"it takes at most {MOST_IMAGES} images at a time, got {len(guide)}"
    return None


def render(
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    *,
    support: Support,
    radius: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Same contract as `kernels.bilateral.reference.render`; differentiable once, by all tensors.

    float16 and bfloat16 signals are mixed as such on the tensor cores and summed in float32.
    """
    from kernels.bilateral import _triton_ops

    out, _ = _triton_ops.render(signal, guide, guide_lr, *factors, radius, valid, support.radius, support.border)
    return out


def reconstruction_l1(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    factors: Factors,
    *,
    support: Support,
    radius: Tensor | None = None,
) -> Tensor:
    """Same contract as `kernels.bilateral.reference.reconstruction_l1`; differentiable once, by all tensors."""
    from kernels.bilateral import _triton_ops

    if source.requires_grad or guide.requires_grad or guide_lr.requires_grad:
        rendered = render(source, guide, guide_lr, factors, support=support, radius=radius)
        return (rendered - guide).abs().mean((1, 2, 3))
    loss, *_ = _triton_ops.reconstruction_l1(source, guide, guide_lr, *factors, radius, support.radius, support.border)
    return loss


def fit_anisotropic(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    raw: Tensor,
    *,
    support: Support,
    cells_per_pixel: float,
    floor: float,
    epsilon: float,
    lr: float,
    lr_decay: float,
    steps: int,
    each: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Same contract as `kernels.bilateral.cpu.fit_anisotropic`.

    Without `each` all steps are one CUDA graph, captured at the first fit of a shape and replayed for later images.
    """
    from kernels.bilateral import _triton_fit

    batch, channels, height, width = guide.shape
    settings = _triton_fit.Settings(
        size=(batch, channels, height, width),
        grid=(source.shape[-2], source.shape[-1]),
        device=guide.device,
        support=support,
        cells_per_pixel=cells_per_pixel,
        floor=floor,
        epsilon=epsilon,
        lr=lr,
        lr_decay=lr_decay,
        steps=steps,
    )
    return _triton_fit.fit(source, guide, guide_lr, raw, settings, each)
