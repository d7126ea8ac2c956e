"""CIE L*a*b* as (L, 2 a, 2 b) / 100: distances as seen, with shadows (differences of L) counting half of colours."""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB to CIE XYZ relative to the D65 white point (IEC 61966-2-1).
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)


def transform(image: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [0, 1] -> (B, 3, H, W) with L in [0, 1]; images of other channel counts stay as they are.

    CIE 15:2004, section 8.2.1, from sRGB by IEC 61966-2-1.
    """
    if image.shape[1] != 3:
        return image
    image = image.clamp(0, 1)
    # The branch that is not taken must not have infinite gradients: keep its base positive.
    linear = torch.where(image > 0.04045, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, image / 12.92)
    to_xyz = torch.tensor(TO_XYZ).to(image) / torch.tensor(WHITE).to(image)[:, None]
    xyz = torch.einsum("ij,bjyx->biyx", to_xyz, linear)
    edge = 6 / 29
    f = torch.where(xyz > edge**3, xyz.clamp_min(edge**3) ** (1 / 3), xyz / (3 * edge**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 1000 * (x - y), 400 * (y - z)], dim=1) / 100
