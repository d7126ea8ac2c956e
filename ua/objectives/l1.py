"""The paper's: mean absolute error, in guide units."""

from torch import Tensor


def loss(rendered: Tensor, guide: Tensor) -> Tensor:
    """Mean of |d| over channels and pixels: (B, G, H, W) twice -> (B,)."""
    return (rendered - guide).abs().mean((1, 2, 3))
