"""Classic joint bilateral upsampling: fixed Gaussians in space and in guide colour.

Source: Kopf, Cohen, Lischinski, Uyttendaele, "Joint bilateral upsampling", 2007, equation 3. It is this library's
operator without a fit: isotropic kernels of one size, cells outside the grid left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ua.baselines import check, interpolate


def upsample(
    image: Tensor,
    signal: Tensor,
    valid: Tensor | None = None,
    *,
    sigma: float = 0.4,
    sigma_r: float = 0.12,
    radius: int = 2,
    **options: Any,
) -> Tensor:
    """The bilateral mixture with fixed kernels; a pixel none of whose candidates is valid gets the bilinear value.

    The defaults were chosen by hand and not tuned on any data: `sigma_r` is the initial value of the paper that this
    library implements; `sigma` lies near half a cell, about as narrow as a bilinear kernel, and `radius` holds five
    standard deviations.

    Args:
        image, signal, valid: see `ua.baselines`.
        sigma: spatial standard deviation, LR cells; > 0.
        sigma_r: standard deviation of the guide's distance, guide units; > 0.
        radius: of the disc of candidate cells, LR cells; >= 0.
        options: further fields of `ua.FitConfig`, and `backend`.
    """
    import ua  # inside: the library's own modules may import this package

    check(image, signal, valid)
    fields: dict[str, Any] = {
        "parameterisation": "fixed",
        "steps": 0,
        "border": "drop",
        "guide": "identity",
        "guide_lr": "area",
        "sigma": sigma,
        "sigma_unit": "cell",
        "sigma_r": sigma_r,
        "radius": radius,
        "radius_rule": "fixed",
        "back_projections": 0,
    }
    result = ua.upsample(image, signal, valid=valid, **(fields | options))
    if valid is None:
        return result
    return torch.where(
        result.isnan(), interpolate(signal, (image.shape[-2], image.shape[-1]), "bilinear", valid), result
    )
