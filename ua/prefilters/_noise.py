"""How much white noise an image has, and its removal.

Noise is removed in the cosine transform of overlapping 8 x 8 blocks, colours decorrelated: coefficients within some
standard deviations of 0 become 0 (Yu & Sapiro, "DCT image denoising", IPOL 2011), blocks with few coefficients count
more; then once more with the empirical Wiener weights of that first result, as the second step of BM3D (Dabov et al.
2007) but without a search for similar blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
STEP = 2  # pixels between blocks
THRESHOLDS = (2.7, 3.5)  # standard deviations; of the mean of the channels, and of their differences, which vary less

CALM = 8  # coefficients along a block whose noise is estimated, 16 pixels
QUANTILE = 0.2  # of the blocks, which one is calm
LEAST_SHARE = 0.3  # of a block by pixels that count
OUTSIDE = 1e-3  # weight of blocks that stick out of the image

Shrink = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def remove(image: Tensor, sigma: Tensor) -> Tensor:
    """The image without white noise of the standard deviation `sigma`.

    Args:
        image: (B, G, H, W) in [0, 1].
        sigma: (B,), in units of the image; > 0.

    Returns:
        (B, G, H, W) in [0, 1].
    """
    noise = sigma.to(image)[:, None, None, None]  # beside (B, G, blocks, frequencies)

    def wiener(found: Tensor, pilot: Tensor) -> tuple[Tensor, Tensor]:
        power = pilot.square()
        kept = power / (power + noise.square())
        kept[..., 0] = 1
        return found * kept, kept.square().sum(-1, keepdim=True)

    planes = _planes(image)
    cleaned = _over_blocks(planes, _thresholded(planes, noise, image), (image.shape[-2], image.shape[-1]), wiener)
    return _image(cleaned, image)


def thresholded(image: Tensor, sigma: Tensor) -> Tensor:
    """The first of the two passes of `remove` alone, with the same arguments and result."""
    return _image(_thresholded(_planes(image), sigma.to(image)[:, None, None, None], image), image)


def _thresholded(planes: Tensor, noise: Tensor, image: Tensor) -> Tensor:
    """The planes of the image, coefficients below the thresholds 0."""
    limits = torch.full((image.shape[1], 1, 1), THRESHOLDS[1]).to(image)
    limits[0] = THRESHOLDS[0]

    def threshold(found: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        kept = (found.abs() > limits * noise).to(found)
        kept[..., 0] = 1  # the mean
        return found * kept, kept.sum(-1, keepdim=True)

    return _over_blocks(planes, planes, (image.shape[-2], image.shape[-1]), threshold)


def _planes(image: Tensor) -> Tensor:
    """The channels of an image decorrelated, with what blocks need around it."""
    return _mirror(torch.einsum("ij,bjyx->biyx", cosines(image.shape[1]).to(image), image))


def _image(planes: Tensor, image: Tensor) -> Tensor:
    """What `_planes` was made of, in the shape of `image`."""
    height, width = image.shape[-2:]
    inner = planes[..., BLOCK : BLOCK + height, BLOCK : BLOCK + width]
    return torch.einsum("ij,biyx->bjyx", cosines(image.shape[1]).to(image), inner).clamp(0, 1)


def cosines(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II), a row for each frequency: (size, size) float64."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _mirror(planes: Tensor) -> Tensor:
    """Mirrored outwards: a block before, and to at least two whole blocks behind."""
    for axis in (-2, -1):
        size = planes.shape[axis]
        places = torch.arange(-BLOCK, (size // BLOCK + 3) * BLOCK - BLOCK, device=planes.device).remainder(2 * size)
        planes = planes.index_select(axis, torch.minimum(places, 2 * size - 1 - places))
    return planes


def _over_blocks(planes: Tensor, pilot: Tensor, image_size: tuple[int, int], shrink: Shrink) -> Tensor:
    """Weighted mean of what `shrink` makes of all blocks that cover a pixel, in the shape of `planes`.

    shrink: frequencies of the planes and of the pilot, (B, G, N, 64), to new ones and the noise that is left of each
        block, (B, G, N, 1), whose reciprocal is the block's weight.
    """
    basis = torch.kron(cosines(BLOCK), cosines(BLOCK)).to(planes)  # [64, 64]
    size = tuple(side - BLOCK for side in planes.shape[-2:])
    total, weights = torch.zeros_like(planes), torch.zeros_like(planes)
    for top in range(0, BLOCK, STEP):
        for left in range(0, BLOCK, STEP):
            window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            found = _blocks(planes[window]) @ basis.mT
            other = found if pilot is planes else _blocks(pilot[window]) @ basis.mT
            kept, left_over = shrink(found, other)
            inside = _inside(top, size[0], image_size[0])[:, None] * _inside(left, size[1], image_size[1])
            weight = inside.to(planes).view(-1, 1) / left_over
            _add_blocks((kept * weight) @ basis, total[window])
            _add_blocks(weight, weights[window])
    return total / weights


def _inside(first: int, length: int, image: int) -> Tensor:
    """Along one axis, the weight of each block: 1 of those within the image, hardly anything of others.

    Noise that is mirrored within a block is stronger than noise that is not, and would stay. Where the axis is no
    multiple of STEP (or shorter than a block), the last pixels need blocks that stick out a little.
    """
    start = torch.arange(first, first + length, BLOCK) - BLOCK
    outside = torch.maximum(-start, start + BLOCK - image)
    return torch.where(outside < STEP, 1.0, OUTSIDE)


def _blocks(planes: Tensor) -> Tensor:
    """(B, G, H, W), sides multiples of 8, -> (B, G, N, 64)."""
    tiles = planes.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))  # [B, G, rows, 8, cols, 8]
    return tiles.transpose(-3, -2).flatten(-2).flatten(2, 3)


def _add_blocks(blocks: Tensor, planes: Tensor) -> None:
    """Adds (B, G, N, 64), or one value a block, (B, G, N, 1), to planes (B, G, H, W) in place."""
    side = BLOCK if blocks.shape[-1] > 1 else 1
    tiles = planes.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))  # [B, G, rows, 8, cols, 8]
    tiles += blocks.unflatten(2, (tiles.shape[2], tiles.shape[4])).unflatten(-1, (side, side)).transpose(-3, -2)


def level(image: Tensor, known: Tensor | None = None) -> Tensor:
    """Standard deviation of the white noise, (B,), by the diagonal Haar coefficients of blocks of 16 x 16 pixels.

    White noise is everywhere and texture is not, so the estimate is that of a calm block (a low quantile; Donoho &
    Johnstone 1994 take the median over the image). And a camera's noise differs between channels while texture hardly
    does, so in colour the lesser of two estimates counts, that of the mean of the channels and that of their
    differences (noise that all channels share is not seen). Pixels at 0 or 1 do not count: clipping took their noise.

    Args:
        image: (B, G, H, W) in [0, 1].
        known: bool, of the same shape: pixels that count. None: all.
    """
    counts = (image > 0) & (image < 1)
    counts = (counts if known is None else counts & known).all(1, keepdim=True)
    planes = torch.einsum("ij,bjyx->biyx", cosines(image.shape[1]).to(image), image)
    height, width = (side // 2 * 2 for side in image.shape[-2:])
    if min(height, width) < 2 * CALM:
        return image.new_zeros(len(image))  # too few pixels to tell
    quads = [planes[..., y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)]
    diagonal = (quads[0] - quads[1] - quads[2] + quads[3]) / 2
    whole = torch.stack([counts[..., y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)]).all(0)
    share = F.avg_pool2d(whole.to(image), CALM)
    power = F.avg_pool2d(diagonal.square() * whole, CALM) / share.clamp_min(1e-6)
    enough = share[:, 0] > LEAST_SHARE
    shared = _calm(power[:, 0], enough)
    return shared if image.shape[1] == 1 else torch.minimum(shared, _calm(power[:, 1:].mean(1), enough))


def _calm(power: Tensor, enough: Tensor) -> Tensor:
    """Root of the mean square (B, rows, cols) of each image's calm block, of those that count; 0 where none does."""
    return power.masked_fill(~enough, torch.nan).flatten(1).nanquantile(QUANTILE, 1).nan_to_num(0).sqrt()
