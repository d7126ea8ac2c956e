"""Fit and render in one call, and as an `nn.Module`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ua import backends, inputs
from ua.fitting import fit, resolve


def upsample(
    image: Any,
    signal: Any,
    *,
    valid: Any = None,
    preset: str = "default",
    backend: str = "auto",
    **overrides: Any,
) -> Tensor:
    """Upsample an LR signal to the size of its image: `ua.fit` and then `Fit.render`.

    Args:
        image: the guide; tensor (B, G, H, W) or (G, H, W), float in [0, 1] or uint8; NumPy (H, W, G); PIL.
        signal: (B, C, h, w), (C, h, w) or (h, w), floating point, any units; h <= H, w <= W.
        valid: bool (B, h, w), (B, 1, h, w) or (h, w); cells marked False get no weight. A pixel without any valid
            candidate is NaN.
        preset: "default" (best transfer that we measured), "reconstruction", "paper" or "released".
        backend: "auto", "reference", "torch", "cpu" or "triton".
        overrides: fields of `ua.FitConfig`, e.g. `steps=50, lr=0.1`.

    Returns:
        (B, C, H, W) in the signal's dtype, on its device; differentiable with respect to the signal, where what is
        chosen by looking at it is taken as given (see `Fit.render`).

    Raises:
        TypeError, ValueError: an argument of another type, shape, range or name; the message names it.
    """
    guide = inputs.as_image(image)
    values, mask = inputs.as_signal(signal, valid, guide)  # before the fit: a bad signal should not cost one
    fitted = fit(guide, inputs.grid_of(values), preset=preset, backend=backend, **overrides)
    return fitted.render(values, mask)


class UpsampleAnything(nn.Module):
    """`ua.upsample` as a layer without parameters: `forward(image (B, G, H, W), signal (B, C, h, w)) -> (B, C, H, W)`.

    Args:
        preset, backend, overrides: as `ua.upsample`; wrong names fail here, not at the first image.
    """

    def __init__(self, *, preset: str = "default", backend: str = "auto", **overrides: Any) -> None:
        super().__init__()
        self.config = resolve(preset, overrides)
        backends.check_name(backend)
        self.preset, self.backend, self.overrides = preset, backend, overrides

    def forward(self, image: Tensor, signal: Tensor, valid: Tensor | None = None) -> Tensor:
        return upsample(image, signal, valid=valid, preset=self.preset, backend=self.backend, **self.overrides)

    def extra_repr(self) -> str:
        options = {"preset": self.preset, "backend": self.backend, **self.overrides}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())
