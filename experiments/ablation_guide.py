"""Along what should one upsample? Colour, grey, single bands, depth, colour and depth, other bands, the signal itself.

The signals stay the same, the guide changes. Depth, and what was made from it, is not upsampled along depth: normals,
the motorcycle's labels, and heights along a hillshade of them. The features are descriptors of the colour image, so
they favour guides that have its colours. Times of "self" include the fit in `render_seconds`, since each signal has a
guide of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ua
from experiments import _ablation_report as reports
from experiments import _bench as bench
from experiments import _effects as effects
from experiments._effects import Effect
from ua import plots
from ua.baselines import bilinear
from ua.datasets import Sample
from ua.statistics import Interval
from ua.tracking import Tracker

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
RANGE = (0.01, 0.99)  # quantiles of a guide without a range of its own that become 0 and 1
SELF = "self"
SELF_CHANNELS = 3  # main axes of a signal that guides itself
MADE_FROM_DEPTH = ("depth", "normals")
LAYERS_OF_DEPTH = ("motorcycle",)  # samples whose labels are
SHADED_FROM_DEPTH = ("elevation",)  # samples whose image is
COLOURS = ("PSNR", "SSIM")
SEES_DEPTH = ("depth", "rgb_and_depth")


@dataclass(frozen=True)
class Config(bench.Scaled):
    """What the YAML of this experiment holds, besides `bench.Scaled`.

    Attributes:
        guides: names of `GUIDES`, or "self": the bilinearly upsampled signal. A guide that a sample does not have is
            left out for it.
        picture: name of the sample whose guides are shown; None, or one that is not among the data: no picture.
    """

    guides: list[str]
    picture: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        bench.check_names("guides", self.guides, [*GUIDES, SELF])
        bench.check_different("presets and baselines", self.baseline, self.presets)


def grey(sample: Sample) -> Tensor | None:
    """(1, H, W); None where the bands of the image are no red, green and blue."""
    return None if sample.bands is not None else torch.einsum("c,chw->hw", torch.tensor(LUMA), sample.image)[None]


def channel(sample: Sample, number: int) -> Tensor | None:
    """Red, green or blue (1, H, W); None as in `grey`."""
    return None if sample.bands is not None else sample.image[number : number + 1]


def depth_guide(sample: Sample) -> Tensor | None:
    """Depth stretched to [0, 1], (1, H, W); holes are in the middle of the range."""
    if sample.depth is None or sample.depth_valid is None:
        return None
    return stretch(sample.depth[0], sample.depth_valid)[None]


def stretch(values: Tensor, known: Tensor) -> Tensor:
    """Maps (H, W) to [0, 1] by the quantiles of the known values; 1/2 elsewhere."""
    low, high = torch.quantile(values[known], torch.tensor(RANGE).to(values))
    return torch.where(known, ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1), 0.5)


def rgb_and_depth(sample: Sample) -> Tensor | None:
    """(4, H, W)."""
    depth = depth_guide(sample)
    return None if depth is None else torch.cat([sample.image, depth])


# name -> what a sample has of it, (G, H, W) in [0, 1], or None
GUIDES: dict[str, Callable[[Sample], Tensor | None]] = {
    "rgb": lambda sample: sample.image,
    "grey": grey,
    "red": lambda sample: channel(sample, 0),
    "green": lambda sample: channel(sample, 1),
    "blue": lambda sample: channel(sample, 2),
    "depth": depth_guide,
    "rgb_and_depth": rgb_and_depth,
    "all_bands": lambda sample: sample.bands,
    "last_band": lambda sample: None if sample.bands is None else sample.bands[-1:],
}


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary: the images, and the means of every regime, guide, modality and method.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name or option, or no data at all.
    """
    fits = {name: ua.preset(name) for name in config.presets}
    device, samples, methods = bench.prepare(config, fits, tracker)
    for sample in bench.each(samples, device, tracker):
        for scale in config.scales:
            grid = bench.grid_of(sample.image, scale)
            problem = bench.Problem(sample, grid, config.regimes, config.degradation_seed, device)
            for name in config.guides:
                measure(problem, scale, name, methods, tracker)
    for sample in bench.shown(samples, [config.picture], tracker):
        if any(name in config.guides for name in GUIDES):
            tracker.figure(f"guides_{sample.name}", picture(config, sample))
    return {"images": [sample.name for sample in samples], **report(config, tracker)}


def measure(
    problem: bench.Problem, scale: int, name: str, methods: Mapping[str, bench.Method], tracker: Tracker
) -> None:
    """Adds the missing rows of one guide, where the sample has it."""
    sample = problem.sample
    pixels = sample.image if name == SELF else GUIDES[name](sample)
    if pixels is None:
        return
    guide = bench.Guide(name, lambda: pixels[None].to(problem.device))
    if name == SELF:
        methods = {method: along_itself(how) for method, how in methods.items()}
    only = fair(sample, name)
    bench.measure(problem, guide, methods, tracker, reconstruction=name != SELF, only=only, scale=scale)


def fair(sample: Sample, guide: str) -> list[str]:
    """The signals whose truth the guide was not made from, nor it from the guide."""
    names = bench.names_of(sample)
    if guide != SELF and (guide in SEES_DEPTH or sample.name in SHADED_FROM_DEPTH):
        names = [name for name in names if name not in MADE_FROM_DEPTH]
    if guide in SEES_DEPTH and sample.name in LAYERS_OF_DEPTH:
        names = [name for name in names if name != "labels"]
    return names


def along_itself(how: bench.Method) -> bench.Method:
    """The method with the bilinearly upsampled signal in place of the guide."""

    def prepare(image: Tensor, grid: bench.Grid) -> bench.Upsampler:
        def upsample(low: Tensor, valid: Tensor | None) -> Tensor:
            return how.prepare(self_guide(low, valid, image), grid)(low, valid)

        return upsample

    return bench.Method(prepare, how.image_lr)


def self_guide(low: Tensor, valid: Tensor | None, image: Tensor) -> Tensor:
    """The main axes of the signal, bilinear at the size of the image, each stretched to [0, 1]: (1, up to 3, H, W)."""
    fine = bilinear.upsample(image, low, valid)[0].nan_to_num(0.0)
    points = fine.flatten(1) - fine.flatten(1).mean(1, keepdim=True)
    axes = torch.linalg.eigh(points @ points.T).eigenvectors.flip(1)[:, :SELF_CHANNELS]
    maps = torch.einsum("ck,chw->khw", axes, fine)
    everywhere = torch.ones_like(maps[0], dtype=torch.bool)
    return torch.stack([stretch(values, everywhere) for values in maps])[None]


def report(config: Config, tracker: Tracker) -> dict[str, Any]:
    """A table for each regime and guide, and one of all guides on the images that have them."""
    found = effects.against(tracker.rows, apart=False)
    result: dict[str, Any] = {}
    for regime in config.regimes:
        part = effects.of_regime(found, regime)
        for guide in config.guides:
            result.setdefault(regime, {})[guide] = reports.report(
                tracker,
                f"ablation_guide_{regime}_{guide}",
                [effect for effect in part if effect.guide == guide],
                f"Guide: {guide}; LR signal: {regime}",
            )
        compare_guides(config, part, regime, tracker)
    return result


def compare_guides(config: Config, part: Sequence[Effect], regime: str, tracker: Tracker) -> None:
    """Every guide against the first of the list, for each preset, on the scenes that have both; transfer alone, since
    the colours of two guides are no measure of each other."""
    first = config.guides[0]
    for preset in config.presets:
        of_guides = [
            dataclasses.replace(effect, guide="", method=effect.guide)
            for effect in part
            if effect.method == preset and effect.modality.name not in COLOURS
        ]
        what = f"Guides of {preset}; LR signal: {regime}"
        pairs = [(guide, first) for guide in config.guides[1:]]
        effects.paired_table(tracker, f"guides_{regime}_{preset}_paired", of_guides, pairs, what)
        differences: dict[effects.Modality, dict[str, Interval]] = {}
        for guide, _ in pairs:
            for modality, comparison in effects.compare(of_guides, guide, first).items():
                shown = f"{guide} ({comparison.count})"
                differences.setdefault(modality, {})[shown] = comparison.difference
        drawn = [plots.Dots(effects.title_of(modality), column, 0.0) for modality, column in differences.items()]
        if drawn:
            title = f"{what}; difference to {first} (scenes that have both)"
            tracker.figure(f"guides_{regime}_{preset}", plots.dots(drawn, title=title))


def picture(config: Config, sample: Sample) -> Any:
    """Every guide that the sample has."""
    shown = {name: GUIDES[name](sample) for name in config.guides if name != SELF}
    panels = [
        plots.Panel(plots.image(pixels), name.replace("_", " "), f"{len(pixels)} channels")
        for name, pixels in shown.items()
        if pixels is not None
    ]
    return plots.panels([panels], width=1.9)
