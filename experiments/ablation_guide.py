"""Along what should one upsample? Colour, grey, single bands, depth, colour and depth, other bands, the signal itself.

The signals stay the same, the guide changes. A guide that the truth was made from is left out for that truth: depth is
not upsampled along depth, and the motorcycle's labels are layers of its depth.
"""

from __future__ import annotations

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
from ua.tracking import Tracker, choose_device, now

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
RANGE = (0.01, 0.99)  # quantiles of a guide without a range of its own that become 0 and 1
SELF = "self"
SELF_CHANNELS = 3  # main axes of a signal that guides itself
MADE_FROM_DEPTH = {("motorcycle", "labels"), ("middlebury_motorcycle", "labels")}
COLOURS = ("PSNR", "SSIM")
SEES_DEPTH = ("depth", "rgb_and_depth")


@dataclass(frozen=True)
class Config(bench.Scaled):
    """What the YAML of this experiment holds, besides `bench.Scaled`.

    Attributes:
        guides: names of `GUIDES`, or "self": the bilinearly upsampled signal. A guide that a sample does not have is
            left out for it.
        picture: name of the sample whose guides are shown; one that is not among the data gives no picture.
    """

    guides: list[str]
    picture: str

    def __post_init__(self) -> None:
        super().__post_init__()
        bench.check_names("guides", self.guides, [*GUIDES, SELF])
        bench.check_different("presets and baselines", self.baseline, self.presets)


def grey(image: Tensor) -> Tensor:
    """(3, H, W) -> (1, H, W)."""
    return torch.einsum("c,chw->hw", torch.tensor(LUMA).to(image), image)[None]


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
    "grey": lambda sample: grey(sample.image),
    "red": lambda sample: sample.image[:1],
    "green": lambda sample: sample.image[1:2],
    "blue": lambda sample: sample.image[2:],
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
    device = choose_device(config.device)
    samples = bench.load(config.data, config.split, tracker)
    fits = {name: ua.preset(name) for name in config.presets}
    methods = bench.methods(config.baseline, fits, config.backend)
    bench.warm_up(fits.values(), config.backend, device)
    for number, sample in enumerate(samples, start=1):
        start = now(device)
        for scale in config.scales:
            for name in config.guides:
                measure(config, sample, scale, name, methods, device, tracker)
        tracker.say(f"[{number}/{len(samples)}] {sample.name}: {now(device) - start:.1f} s")
    for sample in samples:
        if sample.name == config.picture:
            tracker.figure(f"guides_{sample.name}", picture(config, sample))
    return {"images": [sample.name for sample in samples], **report(config, tracker)}


def measure(
    config: Config,
    sample: Sample,
    scale: int,
    name: str,
    methods: Mapping[str, bench.Method],
    device: str,
    tracker: Tracker,
) -> None:
    """Adds the missing rows of one guide, where the sample has it."""
    pixels = sample.image if name == SELF else GUIDES[name](sample)
    if pixels is None:
        return
    grid = bench.grid_of(sample.image, scale)
    signals = fair(sample, name, device)
    problem = bench.Problem(sample, grid, config.regimes, config.degradation_seed, device, signals)
    guide = bench.Guide(name, lambda: pixels[None].to(device))
    if name == SELF:
        methods = {method: along_itself(how) for method, how in methods.items()}
    bench.measure(problem, guide, methods, tracker, reconstruction=name != SELF, scale=scale)


def fair(sample: Sample, guide: str, device: str) -> list[str]:
    """The signals whose truth was not made from the guide."""
    names = [truth.name for truth in bench.truths(sample, device)]
    if guide not in SEES_DEPTH:
        return names
    return [name for name in names if name not in ("depth", "normals") and (sample.name, name) not in MADE_FROM_DEPTH]


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
        part = [effect for effect in found if effect.regime == regime]
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
    """Every guide against the first of the list, for each preset, on the images that have both; transfer alone, since
    the colours of two guides are no measure of each other."""
    first = config.guides[0]
    for preset in config.presets:
        of_guides = [
            Effect(effect.scene, "", effect.scale, regime, effect.guide, effect.modality, effect.value)
            for effect in part
            if effect.method == preset and effect.modality.name not in COLOURS
        ]
        pairs = [(guide, first) for guide in config.guides[1:]]
        what = f"Guides of {preset}; LR signal: {regime}"
        effects.paired_table(tracker, f"guides_{regime}_{preset}_paired", of_guides, pairs, what)
        tracker.figure(f"guides_{regime}_{preset}", effects.dots(effects.intervals(of_guides), what, [first]))


def picture(config: Config, sample: Sample) -> Any:
    """Every guide that the sample has."""
    shown = {name: GUIDES[name](sample) for name in config.guides if name != SELF}
    panels = [
        plots.Panel(plots.image(pixels), name.replace("_", " "), f"{len(pixels)} channels")
        for name, pixels in shown.items()
        if pixels is not None
    ]
    return plots.panels([panels], width=1.9)
