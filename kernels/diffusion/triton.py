"""The fused GPU backend: one launch of a Triton kernel a step (CUDA, compute capability 8.0 up).

The kernels are in `_triton_kernels`, launches in `_triton_launch`, the operators that PyTorch sees in `_triton_ops`.
None of it is imported before it is needed. With TRITON_INTERPRET=1 in the environment the same kernels run on CPU
tensors, slowly.
"""

from __future__ import annotations

from torch import Tensor

from kernels._triton_device import refuses_device

# Offsets within the channels of a program, at most four, are 32 bits wide, and so is the comparison of pixels and cells
# along an axis, in units of 1 / (pixels cells).
MOST_PIXELS, MOST_UNITS = 2**31 // 4 - 1, 2**31 - 1
# A program takes whole cells; beyond, the registers of one do not hold them.
WIDEST_CELL = 1022


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why this backend cannot take these tensors (`guide`: a conductance); None: it can."""
    unfit = refuses_device(signal, guide)
    if unfit is not None:
        return unfit
    if guide.requires_grad:
        return "it has no gradient with respect to the image"
    # A conductance lacks a row or a column of the image.
    size, grid = (guide.shape[-2] + 1, guide.shape[-1] + 1), signal.shape[-2:]
    if size[0] * size[1] > MOST_PIXELS:
        return f"it takes at most {MOST_PIXELS} pixels an image"
    if any((pixels + WIDEST_CELL + 2) * (cells + 1) > MOST_UNITS for pixels, cells in zip(size, grid, strict=True)):
        return f"it needs pixels times cells along an axis to stay below {MOST_UNITS}"
    if guide.shape[-1] > WIDEST_CELL * grid[1]:
        return f"it takes cells of at most {WIDEST_CELL} pixels' width"
    return None


def diffuse(
    start: Tensor,
    signal: Tensor,
    across: Tensor,
    down: Tensor,
    *,
    steps: int,
    rate: float,
    share: float,
    valid: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Same contract as `kernels.diffusion.reference.diffuse`; differentiable once, by `start` and `signal`.

    Whatever the dtypes, steps are computed and kept in float32: what is lost in half precision between steps would not
    come back, and the averages would be held only so far.
    """
    from kernels.diffusion import _triton_ops

    return _triton_ops.diffuse(start, signal, across, down, valid, steps, rate, share)
