"""Classic joint bilateral upsampling: fixed Gaussians in space and in guide colour.

Source: Kopf, Cohen, Lischinski, Uyttendaele, "Joint bilateral upsampling", 2007, equation 3. It is this library's
operator without a fit: isotropic kernels of one size, cells outside the grid left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ua.baselines import check, interpolate
from ua.config import FitConfig

OPTIONS = ("backend", *(field.name for field in dataclasses.fields(FitConfig)))


def upsample(
    image: Tensor,
    signal: Tensor,
    valid: Tensor | None = None,
    *,
    sigma: float = 0.4,
    sigma_r: float = 0.35,
    radius: int = 2,
    **options: Any,
) -> Tensor:
    """The bilateral mixture with fixed kernels; a pixel none of whose candidates is valid gets the bilinear value.

    The defaults are the best of 26 on the split dev of `experiment=transfer` (scales 4 to 16, both regimes; the mean of
    the error ratios to bilinear of depth and features and of 1 minus the gain in mIoU): sigma 0.3 to 1, sigma_r 0.06 to
    0.5, radius 1 to 3. A sweep measures them again:
    `python -m ua.run -m experiment=transfer split=dev baseline.jbu.sigma=0.35,0.4,0.45 baseline.jbu.sigma_r=0.25,0.35`.

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
        "prefilter": "none",
        "guide": "identity",
        "guide_lr": "area",
        "sigma": sigma,
        "sigma_unit": "cell",
        "sigma_r": sigma_r,
        "radius": radius,
        "radius_rule": "fixed",
        "leave_one_out": 0,
        "regression": False,
        "discriminants": False,
        "back_projections": 0,
        "diffusions": 0,
        "assignments": 0,
    }
    result = ua.upsample(image, signal, valid=valid, **(fields | options))
    if valid is None:
        return result
    return torch.where(
        result.isnan(), interpolate(signal, (image.shape[-2], image.shape[-1]), "bilinear", valid), result
    )
