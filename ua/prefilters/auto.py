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
    cleaned = [_clean(one) for one in image.split(1)]
    if all(new is None for new in cleaned):
        return image
    return torch.cat([one if new is None else new for one, new in zip(image.split(1), cleaned, strict=True)])


def _clean(image: Tensor) -> Tensor | None:
    """One image (1, G, H, W); None where nothing is wrong with it, or it is neither grey nor RGB."""
    if image.shape[1] not in (1, 3):
        return None  # the holes of an RGB-D image are no impulses, its depth is no light
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
    brightest = image.amax(1).flatten()
    if float((brightest > DARK).float().mean()) > BRIGHT_SHARE:
        return 1.0
    white = float(brightest.kthvalue(max(1, round((1 - BRIGHT_SHARE) * len(brightest)))).values)
    return WHITE / white if white > BLACK else 1.0
