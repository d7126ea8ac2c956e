"""Gaussian filters and their derivatives, as products with banded matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ua.kept import kept

TRUNCATE = 4.0  # where Gaussians end, in standard deviations
BLOCK = {"cpu": 128, "cuda": 512}  # rows that are filtered by one product; zeros cost less than launches on a GPU


def blur(image: Tensor, sigma: float, order_x: int = 0, order_y: int = 0, *, truncate: float = TRUNCATE) -> Tensor:
    """Each channel filtered by a Gaussian or its derivatives, the border pixel repeated outwards.

    On a GPU products of float32 have fewer digits where PyTorch is told so (`torch.set_float32_matmul_precision`).

    Args:
        image: (B, C, H, W) float, finite: NaN and infinities spread beyond the filter.
        sigma: standard deviation, pixels; > 0.
        order_x, order_y: 0, 1 or 2, of the derivative along each axis, per pixel.
        truncate: where the Gaussian ends, in standard deviations.
    """
    reach = int(truncate * sigma + 0.5)
    down = _filtered_rows(image, sigma, order_y, reach)
    return _filtered_rows(down.mT, sigma, order_x, reach).mT.contiguous()


def _filtered_rows(image: Tensor, sigma: float, order: int, reach: int) -> Tensor:
    """Every column of (..., H, W) filtered, the end pixels repeated outwards."""
    height = image.shape[-2]
    # Banded matrices: at these sizes ten times as fast on a CPU as one-channel convolutions. A block of rows at a time,
    # since all of a matrix but its band is zeros.
    blocks, most = [], BLOCK.get(image.device.type, BLOCK["cuda"])
    for start in range(0, height, most):
        stop = min(start + most, height)
        before, after = min(start, reach), min(height - stop, reach)
        matrix = _filter_matrix(stop - start, before, after, sigma, order, reach, image.dtype, image.device)
        blocks.append(matrix @ image[..., start - before : stop + after, :])
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -2)


@kept
def _filter_matrix(
    rows: int, before: int, after: int, sigma: float, order: int, reach: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`rows` of a correlation along an axis, (rows, before + rows + after), with so many pixels before and after them.

    Where these are fewer than the filter reaches, the image ends there.
    """
    kernel = _kernel(sigma, order, reach)
    row = torch.arange(rows)[:, None].expand(-1, len(kernel))
    columns = (row + torch.arange(-reach, reach + 1)).clamp(-before, rows + after - 1) + before
    matrix = torch.zeros(rows, before + rows + after, dtype=kernel.dtype)
    matrix.index_put_((row, columns), kernel.expand(rows, -1), accumulate=True)
    return matrix.to(device, dtype)


def _kernel(sigma: float, order: int, reach: int) -> Tensor:
    """Sampled Gaussian derivative as a correlation kernel, exact on polynomials up to its order."""
    x = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    weights /= weights.sum()
    if order == 1:
        weights = x * weights
        weights /= (x * weights).sum()  # the slope of a ramp comes out as it is
    elif order == 2:
        weights = (x.square() - (x.square() * weights).sum()) * weights  # a constant gives 0 ...
        weights *= 2 / (x.square() * weights).sum()  # ... and x^2 gives 2
    return weights
