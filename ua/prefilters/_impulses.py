"""Impulses (salt and pepper): pixels at an end of the range that have nothing to do with those around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ua.prefilters.median import neighbourhood

END = 0.5 / 255  # from 0 or 1: what 8 bits round to it
DIFFERENCE = 0.2  # of a pixel at an end from the mean of its neighbours at no end, to be suspicious
# The same from the mean of all neighbours: for an image to have impulses (a corner of a two-tone pattern has 5 / 8),
# and for a pixel to be replaced in one that has.
FOR_PRESENCE, FOR_REPLACEMENT = 0.65, 0.35
LEAST_SHARE = 0.01  # of suspicious pixels, for an image to have impulses
# Impulses fall anywhere: beside one, another is about as likely as elsewhere. Of lines and letters suspicious pixels
# come in rows: beside one, another is likelier than this many times their share, and more.
MOST_CLUSTERED, SLACK = 2.0, 0.03
MOST_ALIKE = 0.25  # of the eight neighbours at the same end; corners of white and black patches have more


def find(image: Tensor) -> tuple[Tensor, Tensor] | None:
    """The pixels of one image, (1, G, H, W), that are to be replaced, and all those at an end; None: no impulses."""
    ends = extreme(image)
    if float(ends.float().mean()) < LEAST_SHARE or not present(suspicious(image, ends), image):
        return None
    return suspicious(image, ends, FOR_REPLACEMENT), ends


def extreme(image: Tensor) -> Tensor:
    """Pixels at an end of the range, bool in the shape of the image."""
    return (image <= END) | (image >= 1 - END)


def suspicious(image: Tensor, ends: Tensor, from_all: float = FOR_PRESENCE) -> Tensor:
    """Those of `ends` that differ from the mean of their unaffected neighbours.

    Where fewer than half of the eight are unaffected, as in a white sky and along its border, all of them count, and
    the difference must be more than `from_all`.
    """
    free = (~ends).to(image)
    count, total, everything = (_sum(hr_map) for hr_map in (free, free * image, image))
    many = count > 3.5
    mean = torch.where(many, total / count.clamp_min(1), (everything - image) / 8)
    return ends & ((image - mean).abs() > torch.where(many, DIFFERENCE, from_all))


def present(suspects: Tensor, image: Tensor) -> bool:
    """Whether the suspicious pixels of one image, (1, G, H, W), are many, and scattered as impulses are."""
    found = suspects.to(image)
    share = float(found.mean())
    if share < LEAST_SHARE:
        return False
    pairs = (found[..., 1:] * found[..., :-1]).mean() + (found[..., 1:, :] * found[..., :-1, :]).mean()
    alike = [((_sum(end.to(image)) - 1) / 8)[suspects & end].sum() for end in (image <= END, image >= 1 - END)]
    scattered = float(pairs) / 2 < (MOST_CLUSTERED * share + SLACK) * share
    return scattered and float(sum(alike) / found.sum()) < MOST_ALIKE


def replaced(image: Tensor, suspects: Tensor, ends: Tensor) -> Tensor:
    """Suspicious pixels become the median of the unaffected ones around them, of 3 x 3 or, if there is none, 5 x 5.

    Where none is there either (in a white sky), the median of all.
    """
    known = image.masked_fill(ends, torch.nan)
    out, left = image, suspects
    for source, reach in ((known, 1), (known, 2), (image, 2)):
        medians = neighbourhood(source, reach)[:, left].nanmedian(0).values
        out = out.masked_scatter(left, medians)
        left = out.isnan()
        if not left.any():
            break
    return out


def _sum(image: Tensor) -> Tensor:
    """Sum of 3 x 3 pixels, the border repeated."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    across = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    return across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
