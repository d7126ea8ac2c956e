"""Guides as bad cameras, weak light and strong compression give them. The signal has no part in this.

Every function takes an image (G, H, W), float in [0, 1], and gives one of the same shape, dtype and device.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ua import filters, plugins


def salt_and_pepper(image: Tensor, seed: int, *, share: float) -> Tensor:
    """This share of the pixels becomes black or white in all channels, each as likely; `share` in [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    drawn = torch.rand(image.shape[-2:], generator=_random(seed), dtype=torch.float64).to(image.device)
    hit = torch.where(drawn < share, (drawn < share / 2).to(image), image)
    return hit.contiguous()


def gaussian_noise(image: Tensor, seed: int, *, sigma: float) -> Tensor:
    """Independent noise in every pixel and channel, clipped to [0, 1]; `sigma` in units of the image, >= 0."""
    if not sigma >= 0:
        raise ValueError(f"sigma must be at least 0, got {sigma}")
    noise = torch.randn(image.shape, generator=_random(seed), dtype=torch.float64)
    return (image + sigma * noise.to(image)).clamp(0, 1)


def blur(image: Tensor, seed: int, *, sigma: float) -> Tensor:
    """A Gaussian of `sigma` pixels, > 0; nothing is random, `seed` is not used."""
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    return filters.blur(image[None], sigma)[0].clamp(0, 1)


def jpeg(image: Tensor, seed: int, *, quality: int) -> Tensor:
    """JPEG compression of a grey or colour image, `quality` from 1 to 95; nothing is random, `seed` is not used.

    Raises:
        ValueError: neither one nor three channels.
    """
    import numpy as np
    from PIL import Image

    if image.shape[0] not in (1, 3):
        raise ValueError(f"image must have 1 or 3 channels to become a JPEG, got {image.shape[0]}")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality must be 1 to 95, got {quality}")
    pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
    with io.BytesIO() as file:
        Image.fromarray(pixels if image.shape[0] == 3 else pixels[..., 0]).save(file, "JPEG", quality=quality)
        with Image.open(file) as opened:
            decoded = np.asarray(opened).reshape(pixels.shape)
    return torch.from_numpy(decoded.copy()).movedim(-1, 0).contiguous().to(image) / 255


def low_light(image: Tensor, seed: int, *, gain: float, sigma: float) -> Tensor:
    """An underexposed photograph: scaled by `gain`, sensor noise of `sigma`, then 8 bits; it stays dark."""
    return (gaussian_noise(image * gain, seed, sigma=sigma) * 255).round() / 255


def _random(seed: int) -> torch.Generator:
    """Draws are made on the CPU: the same on every device."""
    return torch.Generator().manual_seed(seed)


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "clean": lambda image, seed: image,
    "salt_and_pepper_5": partial(salt_and_pepper, share=0.05),
    "salt_and_pepper_10": partial(salt_and_pepper, share=0.1),
    "salt_and_pepper_20": partial(salt_and_pepper, share=0.2),
    "gaussian_10": partial(gaussian_noise, sigma=10 / 255),
    "gaussian_20": partial(gaussian_noise, sigma=20 / 255),
    "gaussian_40": partial(gaussian_noise, sigma=40 / 255),
    "blur": partial(blur, sigma=2.0),
    "jpeg": partial(jpeg, quality=20),
    "low_light": partial(low_light, gain=0.2, sigma=4 / 255),
}


def corrupt(image: Tensor, name: str, seed: int = 0) -> Tensor:
    """The image (G, H, W) as one of `CORRUPTIONS`; the same for the same seed.

    Raises:
        ValueError: an unknown name, or an image that it cannot take. TypeError: no floating-point tensor.
    """
    if name not in CORRUPTIONS:
        raise ValueError(plugins.unknown("corruption", name, CORRUPTIONS))
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise TypeError(f"image must be a floating-point torch.Tensor, got {getattr(image, 'dtype', type(image))}")
    if image.ndim != 3 or image.numel() == 0:
        raise ValueError(f"image must be (G, H, W) and not empty, got {tuple(image.shape)}")
    return CORRUPTIONS[name](image, seed)
