"""Mean squared error, in squared guide units: for a guide in [0, 1], PSNR = -10 log10 of it, in dB."""

from torch import Tensor


def loss(rendered: Tensor, guide: Tensor) -> Tensor:
    """Mean of d^2 over channels and pixels: (B, G, H, W) twice -> (B,)."""
    return (rendered - guide).square().mean((1, 2, 3))
