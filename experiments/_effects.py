"""From rows of the bench to statements: effects against a yardstick, means over scenes with intervals, paired tests.

Views of one scene (a room, a video) are no independent images: they are averaged before anything is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments._bench import COLOUR, IMAGE, YARDSTICK
from ua import plots
from ua.statistics import Comparison, Interval, bootstrap_mean, paired
from ua.tracking import Row, Tracker

# signal, score, how it is called, how it compares, whether the families of data are apart
MEASURES = (
    ("colour", "psnr", "PSNR", "difference", False),
    ("colour", "ssim", "SSIM", "points", False),
    ("colour", "psnr_clean", "clean PSNR", "difference", False),
    ("depth", "depth_rmse", "depth", "ratio", True),
    ("features", "feature_rmse", "features", "ratio", False),
    ("features", "feature_cosine", "cosine", "points", False),
    ("labels", "miou", "mIoU", "points", False),
    ("labels", "boundary_miou", "boundary", "points", False),
    ("normals", "normal_angle", "normals", "ratio", True),
)
FORMATS = {"ratio": ".3f", "points": "+.2f", "difference": "+.2f"}
SIGNED = {"ratio": "+.3f", "points": "+.2f", "difference": "+.2f"}  # of differences between two methods
BETTER = {"ratio": "min", "points": "max", "difference": "max"}
NEUTRAL = {"ratio": 1.0, "points": 0.0, "difference": 0.0}
SIGNIFICANT = 0.05
EXPLANATION = (
    "Errors of depth, features and normals as ratios to bilinear (less is better), cosine, mIoU and boundary mIoU in "
    "points more than bilinear; means over scenes and scales [95 % bootstrap interval over scenes]."
)


@dataclass(frozen=True)
class Modality:
    """A column.

    Attributes:
        name: as in tables.
        kind: "ratio" (of errors, less is better), "points" (differences in %) or "difference" (in the score's own
            unit), of which more is better.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Effect:
    """How a method compares with the yardstick on one image, guide and scale."""

    scene: str
    guide: str
    scale: int
    regime: str
    method: str
    modality: Modality
    value: float
    step: int | None = None


def against(rows: Sequence[Row], *, apart: bool = True) -> list[Effect]:
    """Effects against bilinear at the same image, guide, scale and regime; colours from the same LR image.

    `apart`: whether depth and normals of different families of data are different modalities.
    """
    found = {key(row): row for row in rows}

    def reference(row: Row) -> Row:
        if row["signal"] != COLOUR:
            return found.get(key(row | {"method": YARDSTICK, "step": None}), {})
        ending = f"_{YARDSTICK}"
        return {name.removesuffix(ending): value for name, value in row.items() if name.endswith(ending)}

    return effects(rows, reference, apart=apart)


def against_guide(rows: Sequence[Row], guide: str, *, apart: bool = True) -> list[Effect]:
    """Effects against the same method along another guide; see `against`."""
    found = {key(row): row for row in rows}
    return effects(rows, lambda row: found.get(key(row | {"guide": guide}), {}), apart=apart)


def effects(rows: Sequence[Row], reference: Callable[[Row], Row], *, apart: bool) -> list[Effect]:
    """Every score of every row against that of the reference; left out where there is none, or no finite effect."""
    result = []
    for row in rows:
        other = reference(row)
        for signal, score, title, kind, families in MEASURES:
            if row["signal"] != signal or score not in row or not usable(other.get(score), kind):
                continue
            name = f"{title} {row['dataset']}" if families and apart else title
            value = compared(row[score], other[score], kind)
            labels = (row["scene"], row["guide"], row["scale"], row["regime"], row["method"])
            if math.isfinite(value):  # a perfect reconstruction has an infinite PSNR
                result.append(Effect(*labels, Modality(name, kind), value, row["step"]))
    return result


def of_regime(part: Sequence[Effect], regime: str) -> list[Effect]:
    """Those of one way of making LR signals, and of the colours, which have their own."""
    return [effect for effect in part if effect.regime in (regime, IMAGE)]


def compared(value: float, reference: float, kind: str) -> float:
    if kind == "ratio":
        return value / reference
    return (value - reference) * (100 if kind == "points" else 1)


def usable(reference: float | None, kind: str) -> bool:
    """Whether there is something to compare with: nothing can be divided by an error of 0."""
    return reference is not None and (kind != "ratio" or reference > 0)


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("image", "guide", "scale", "regime", "signal", "method", "step"))


def in_order(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they first come."""
    return list(dict.fromkeys(values))


def by_scene(part: Sequence[Effect]) -> dict[tuple[Modality, str], dict[str, float]]:
    """(modality, method) -> scene -> mean over its images and scales."""
    lists: dict[tuple[Modality, str], dict[str, list[float]]] = {}
    for effect in part:
        scenes = lists.setdefault((effect.modality, effect.method), {})
        scenes.setdefault(effect.scene, []).append(effect.value)
    return {
        name: {scene: sum(values) / len(values) for scene, values in scenes.items()} for name, scenes in lists.items()
    }


def intervals(part: Sequence[Effect]) -> dict[Modality, dict[str, Interval]]:
    """modality -> method -> mean over scenes with its interval; modalities in the order of `MEASURES`."""
    measured = by_scene(part)
    result: dict[Modality, dict[str, Interval]] = {}
    for modality in modalities(part):
        for method in in_order(effect.method for effect in part):
            if (modality, method) in measured:
                values = list(measured[modality, method].values())
                result.setdefault(modality, {})[method] = bootstrap_mean(values)
    return result


def modalities(part: Sequence[Effect]) -> list[Modality]:
    """Those that were measured, in the order of `MEASURES`."""
    titles = [title for _, _, title, _, _ in MEASURES]

    def place(modality: Modality) -> tuple[int, str]:
        title = next(title for title in titles if modality.name == title or modality.name.startswith(f"{title} "))
        return titles.index(title), modality.name

    return sorted(in_order(effect.modality for effect in part), key=place)


def compare(part: Sequence[Effect], first: str, second: str) -> dict[Modality, Comparison]:
    """Two methods on the scenes that both have; nothing where these are fewer than two."""
    measured = by_scene(part)
    result = {}
    for modality in modalities(part):
        ours, theirs = measured.get((modality, first), {}), measured.get((modality, second), {})
        scenes = [scene for scene in ours if scene in theirs]
        if len(scenes) >= 2:
            values = [ours[scene] for scene in scenes], [theirs[scene] for scene in scenes]
            result[modality] = paired(*values, better=BETTER[modality.kind])
    return result


def coverage(part: Sequence[Effect]) -> str:
    """How many scenes each modality has."""
    counts = {
        modality.name: len({effect.scene for effect in part if effect.modality == modality})
        for modality in modalities(part)
    }
    return "scenes: " + ", ".join(f"{name} {count}" for name, count in counts.items())


def cell(interval: Interval | None, form: str) -> str | None:
    """The mean and its interval as text; None (shown as a dash) where nothing was measured."""
    if interval is None:
        return None
    if interval.low != interval.low:  # NaN: one scene has no interval
        return format(interval.mean, form)
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def mean_table(tracker: Tracker, name: str, means: dict[Modality, dict[str, Interval]], caption: str) -> None:
    """A row for each method, a column for each modality, with intervals."""
    methods = in_order(method for column in means.values() for method in column)
    rows = [
        {
            "method": method,
            **{modality.name: cell(column.get(method), FORMATS[modality.kind]) for modality, column in means.items()},
        }
        for method in methods
    ]
    tracker.table(name, rows, caption=caption)


def paired_rows(part: Sequence[Effect], pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """A line for each modality and pair (method, other) that at least two scenes have."""
    pairs = list(pairs)
    compared_pairs = {pair: compare(part, *pair) for pair in pairs}
    return [
        {
            "modality": modality.name,
            "method": method,
            "minus": other,
            "difference": cell(comparison.difference, SIGNED[modality.kind]),
            "better on": f"{comparison.wins}/{comparison.count}",
            "p": comparison.p,
        }
        for modality in modalities(part)
        for method, other in pairs
        if (comparison := compared_pairs[method, other].get(modality)) is not None
    ]


def paired_table(
    tracker: Tracker, name: str, part: Sequence[Effect], pairs: Iterable[tuple[str, str]], what: str
) -> None:
    """Pairs of methods on the same scenes; nothing where none has two scenes."""
    if rows := paired_rows(part, pairs):
        caption = f"Paired by scene; p: two-sided sign-flip permutation test, not corrected for many tests. {what}."
        tracker.table(name, rows, formats={"p": ".3f"}, caption=caption)


def title_of(modality: Modality) -> str:
    """Its name and which way is better."""
    arrow = {"min": "\N{DOWNWARDS ARROW}", "max": "\N{UPWARDS ARROW}"}
    return f"{modality.name} {arrow[BETTER[modality.kind]]}"


def dots(means: dict[Modality, dict[str, Interval]], title: str, strong: Sequence[str]) -> Any:
    """Means and intervals of every method, a plot for each modality; a grey line is the yardstick."""
    return plots.dots(
        [plots.Dots(title_of(modality), column, NEUTRAL[modality.kind], strong) for modality, column in means.items()],
        title=title,
    )
