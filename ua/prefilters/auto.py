"""Each image is looked at, and only a corrupted one is changed: impulses, then darkness, then noise.

A clean photograph comes back bit for bit. What counts as corrupted was set on clean photographs (no false alarm) and
on `ua.corrupt`; blur and JPEG artefacts are left as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ua.prefilters import _impulses, _noise

# Standard deviation from which noise is removed, units of the image; in grey, texture alone reaches more.
NOISY, NOISY_GREY = 0.02, 0.06
DARK = 0.35  # an image is dark where hardly any pixel has a channel above this ...
BRIGHT_SHARE = 0.01  # ... at most this share of them
BLACK = 0.02  # below this it is no picture to brighten
WHITE = 0.95  # what the brightest pixels (but BRIGHT_SHARE of all) become


def apply(image: Tensor) -> Tensor:
    """(B, G, H, W) in [0, 1] -> the same shape and range; the very same tensor where no image is corrupted."""
    each = zip(image.split(1), _suspects(image), strict=True)
    cleaned = [_clean(one) if suspect else None for one, suspect in each]
    if all(new is None for new in cleaned):
        return image
    return torch.cat([one if new is None else new for one, new in zip(image.split(1), cleaned, strict=True)])


def _suspects(image: Tensor) -> list[bool]:
    """Which images (B, G, H, W) need a closer look: of all others `_clean` would say None. One look at all of them."""
    if image.shape[1] not in (1, 3):
        return [False] * len(image)  # the holes of an RGB-D image are no impulses, its depth is no light
    pixels = image.detach()
    grey = (pixels[:, 1:] == pixels[:, :-1]).flatten(1).all(1)  # true of one channel
    noisy = _noise.level(pixels) > NOISY
    return (_impulses.present(pixels) | grey | noisy | _are_dark(pixels)).tolist()


def _clean(image: Tensor) -> Tensor | None:
    """One image (1, G, H, W), grey or RGB; None where nothing is wrong with it."""
    if image.shape[1] > 1 and torch.equal(image[:, 1:], image[:, :-1]):
        grey = _clean(image[:, :1])
        return None if grey is None else grey.expand_as(image)
    out, known = image, None
    impulses = _impulses.find(image.detach())
    if impulses is not None:
        out, found = _impulses.filled(image, *impulses)
        known = ~found
    gain = brightening(out.detach())
    if gain > 1:
        out = (out * gain).clamp(max=1)
    sigma = _noise.level(out.detach(), known)
    if float(sigma) > (NOISY_GREY if image.shape[1] == 1 else NOISY):
        out = _noise.remove(out, sigma)
    return None if out is image else out


def brightening(image: Tensor) -> float:
    """The factor that makes a dark image (1, G, H, W) a bright one; 1 for an image that is not dark, or black."""
    if not bool(_are_dark(image)):
        return 1.0
    brightest = image.amax(1).flatten()
    white = float(brightest.kthvalue(max(1, round((1 - BRIGHT_SHARE) * len(brightest)))).values)
    return WHITE / white if white > BLACK else 1.0


def _are_dark(image: Tensor) -> Tensor:
    """Which images (B, G, H, W) have hardly a bright pixel, bool (B,)."""
    return (image.amax(1) > DARK).flatten(1).float().mean(1) <= BRIGHT_SHARE
