"""Upsample Anything: any low-resolution signal to pixels, guided by the image it came from, without training."""

from ua.config import PRESETS, FitConfig, preset
from ua.fitting import Fit, fit
from ua.gaussians import Gaussians
from ua.rendering import render
from ua.upsampling import UpsampleAnything, upsample

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "Fit",
    "FitConfig",
    "Gaussians",
    "UpsampleAnything",
    "fit",
    "preset",
    "render",
    "upsample",
]
