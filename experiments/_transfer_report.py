"""Tables and figures of the experiment `transfer` from its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ua import plots, tables
from ua.statistics import Interval, bootstrap_mean, paired
from ua.tracking import Row, Tracker

YARDSTICK = "bilinear"
OURS = "default"
CLEAN = "clean"
PREDICTION = "prediction"  # the signal of real predictions
# signal, score, how it is called, how it compares, whether the families of data are apart
MEASURES = (
    ("depth", "depth_rmse", "depth", "ratio", True),
    ("features", "feature_rmse", "features", "ratio", False),
    ("features", "feature_cosine", "cosine", "points", False),
    ("labels", "miou", "mIoU", "points", False),
    ("labels", "boundary_miou", "boundary", "points", False),
    ("normals", "normal_angle", "normals", "ratio", True),
)
FORMATS = {"ratio": ".3f", "points": "+.2f"}
SIGNED = {"ratio": "+.3f", "points": "+.2f"}  # of differences between two methods
BETTER = {"ratio": "min", "points": "max"}
NEUTRAL = {"ratio": 1.0, "points": 0.0}


@dataclass(frozen=True)
class Modality:
    """A column: `kind` "ratio" (of errors, less is better) or "points" (differences in %, more is better)."""

    name: str
    kind: str


@dataclass(frozen=True)
class Effect:
    """How a method compares with the yardstick on one image, guide and scale.

    Views of one scene (a room, a video) are no independent images: they are averaged before anything is resampled.
    """

    scene: str
    guide: str
    scale: int
    regime: str
    method: str
    modality: Modality
    value: float


def report(tracker: Tracker, scales: Sequence[int]) -> dict[str, Any]:
    """Writes all tables and figures; returns means by regime, guide, modality and method."""
    against_bilinear = effects(tracker.rows, lambda row: row | {"method": YARDSTICK})
    guides = in_order(effect.guide for effect in against_bilinear)
    summary: dict[str, Any] = {}
    for regime in in_order(effect.regime for effect in against_bilinear):
        for guide in guides:
            name = f"transfer_{regime}" if guide == CLEAN else f"transfer_{regime}_{guide}"
            part = [effect for effect in against_bilinear if (effect.regime, effect.guide) == (regime, guide)]
            means = intervals(part)
            what = f"LR signal: {regime}; guide: {guide}; {coverage(part)}"
            mean_table(tracker, name, means, f"{explanation('bilinear')} {what}.")
            for scale in scales:
                scale_table(tracker, f"{name}_x{scale}", [effect for effect in part if effect.scale == scale], what)
            paired_table(tracker, f"{name}_paired", part, what)
            tracker.figure(name, figure(means, what))
            summary.setdefault(regime, {})[guide] = {
                modality.name: {method: interval.mean for method, interval in methods.items()}
                for modality, methods in means.items()
            }
    if len(guides) > 1 and CLEAN in guides:
        degradation_tables(tracker)
    if predicted := [row for row in tracker.rows if row["signal"] == PREDICTION]:
        summary["predictions"] = prediction_table(tracker, predicted)
    choice_table(tracker)
    seconds_table(tracker)
    return summary


def effects(rows: Sequence[Row], yardstick: Callable[[Row], Row]) -> list[Effect]:
    """Every score of every row against that of the row which `yardstick` names; without one it is left out."""
    found = {key(row): row for row in rows}
    result = []
    for row in rows:
        reference = found.get(key(yardstick(row)), {})
        for signal, score, title, kind, apart in MEASURES:
            if row["signal"] != signal or score not in row or not usable(reference.get(score), kind):
                continue
            name = f"{title} {row['dataset']}" if apart else title
            value = row[score] / reference[score] if kind == "ratio" else 100 * (row[score] - reference[score])
            labels = (row["scene"], row["guide"], row["scale"], row["regime"], row["method"])
            result.append(Effect(*labels, Modality(name, kind), value))
    return result


def usable(reference: float | None, kind: str) -> bool:
    """Whether there is something to compare with: nothing can be divided by an error of 0."""
    return reference is not None and (kind == "points" or reference > 0)


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("image", "guide", "scale", "regime", "signal", "method"))


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
    titles = [title for _, _, title, _, _ in MEASURES]
    return sorted(
        in_order(effect.modality for effect in part),
        key=lambda modality: (titles.index(modality.name.split()[0]), modality.name),
    )


def explanation(yardstick: str) -> str:
    return (
        f"Errors of depth, features and normals as ratios to {yardstick} (less is better), cosine, mIoU and boundary "
        f"mIoU in points more than {yardstick}; means over scenes and scales [95 % bootstrap interval over scenes]."
    )


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


def scale_table(tracker: Tracker, name: str, part: Sequence[Effect], what: str) -> None:
    """The means of one scale, the best of each column in bold."""
    if not part:
        return
    means = intervals(part)
    rows = [
        {
            "method": method,
            **{modality.name: column[method].mean if method in column else None for modality, column in means.items()},
        }
        for method in in_order(effect.method for effect in part)
    ]
    tracker.table(
        name,
        rows,
        formats={modality.name: FORMATS[modality.kind] for modality in means},
        best={modality.name: BETTER[modality.kind] for modality in means},
        caption=f"{part[0].scale} pixels a cell. {what}.",
    )


def paired_table(tracker: Tracker, name: str, part: Sequence[Effect], what: str) -> None:
    """`default` against every other method on the same scenes; nothing where it was not measured on two of them."""
    measured = by_scene(part)
    rows = []
    for modality in modalities(part):
        ours = measured.get((modality, OURS))
        for method in in_order(effect.method for effect in part):
            theirs = measured.get((modality, method))
            if ours is None or theirs is None or method == OURS:
                continue
            scenes = [scene for scene in ours if scene in theirs]
            if len(scenes) < 2:
                continue
            compared = paired(
                [ours[scene] for scene in scenes], [theirs[scene] for scene in scenes], better=BETTER[modality.kind]
            )
            rows.append(
                {
                    "modality": modality.name,
                    f"{OURS} minus": method,
                    "difference": cell(compared.difference, SIGNED[modality.kind]),
                    "better on": f"{compared.wins}/{compared.count}",
                    "p": compared.p,
                }
            )
    if rows:
        caption = f"Paired by scene; p: two-sided sign-flip permutation test, not corrected for many tests. {what}."
        tracker.table(name, rows, formats={"p": ".3f"}, caption=caption)


def degradation_tables(tracker: Tracker) -> None:
    """What a corrupted guide costs each method: against the same method with the clean guide."""
    against_clean = effects(tracker.rows, lambda row: row | {"guide": CLEAN})
    for regime in in_order(effect.regime for effect in against_clean):
        part = [effect for effect in against_clean if effect.regime == regime and effect.guide != CLEAN]
        rows = []
        for guide in in_order(effect.guide for effect in part):
            means = intervals([effect for effect in part if effect.guide == guide])
            for method in in_order(effect.method for effect in part):
                cells = {
                    modality.name: cell(column.get(method), FORMATS[modality.kind])
                    for modality, column in means.items()
                }
                rows.append({"guide": guide, "method": method, **cells})
        caption = f"{explanation('the same method with a clean guide')} LR signal: {regime}."
        tracker.table(f"degradation_{regime}", rows, caption=caption)


def prediction_table(tracker: Tracker, rows: Sequence[Row]) -> dict[str, Any]:
    """IoU of the judged classes, whole and in the band, a pair of columns for each group; returns the means."""
    groups = in_order(row["dataset"] for row in rows)
    table = []
    for guide in in_order(row["guide"] for row in rows):
        for method in in_order(row["method"] for row in rows):
            line: dict[str, Any] = {"guide": guide, "method": method}
            for group in groups:
                about = (guide, method, group)
                found = [row for row in rows if (row["guide"], row["method"], row["dataset"]) == about]
                for score, title in (("iou", "IoU"), ("band_iou", "band IoU")):
                    values = [row[score] for row in found if score in row]
                    line[f"{group} {title}"] = sum(values) / len(values) if values else None
            table.append(line)
    columns = [name for name in tables.columns(table) if name not in ("guide", "method")]
    counts = {group: len({row["image"] for row in rows if row["dataset"] == group}) for group in groups}
    tracker.table(
        "predictions",
        table,
        formats=dict.fromkeys(columns, ".3f"),
        best=dict.fromkeys(columns, "max"),
        caption=f"Real predictions of networks: IoU, and IoU within 5 pixels of a true boundary; images: {counts}.",
    )
    return {f"{line['guide']} {line['method']}": {name: line[name] for name in columns} for line in table}


def choice_table(tracker: Tracker) -> None:
    """How often `signal_is="auto"` takes a signal for an average of the truth, for each way of making the signal."""
    measured = [row for row in tracker.rows if row["method"] == YARDSTICK and row["guide"] == CLEAN]
    lines = []
    for signal, dataset in in_order((row["signal"], row["dataset"]) for row in measured):
        line: dict[str, Any] = {"signal": signal, "data": dataset}
        for regime in in_order(row["regime"] for row in measured):
            labels = (signal, dataset, regime)
            found = [row for row in measured if (row["signal"], row["dataset"], row["regime"]) == labels]
            line[regime] = f"{sum(row['judged_average'] for row in found):.0f}/{len(found)}" if found else None
        lines.append(line)
    if lines:
        caption = "Signals that signal_is=auto takes for averages of the truth, by how they were made. Features always."
        tracker.table("automatic_choice", lines, caption=caption)


def seconds_table(tracker: Tracker) -> None:
    """Seconds of a fit and of a render of 32 channels: the mean over images of the same scale."""
    measured = [row for row in tracker.rows if row["signal"] == "features"]
    rows = []
    for method in in_order(row["method"] for row in measured):
        line: dict[str, Any] = {"method": method}
        for scale in in_order(row["scale"] for row in measured):
            found = [row for row in measured if (row["method"], row["scale"]) == (method, scale)]
            for name in ("fit", "render"):
                line[f"{name} x{scale}"] = sum(row[f"{name}_seconds"] for row in found) / len(found)
        rows.append(line)
    formats = {name: ".3f" for name in tables.columns(rows) if name != "method"}
    tracker.table("seconds", rows, formats=formats, caption="Seconds per image: fit, and render of 32 channels.")


def figure(means: dict[Modality, dict[str, Interval]], title: str) -> Any:
    """Means and intervals of every method, a plot for each modality; a grey line is bilinear."""
    arrow = {"min": "\N{DOWNWARDS ARROW}", "max": "\N{UPWARDS ARROW}"}
    return plots.dots(
        [
            plots.Dots(f"{modality.name} {arrow[BETTER[modality.kind]]}", column, NEUTRAL[modality.kind], (OURS,))
            for modality, column in means.items()
        ],
        title=title.partition("; scenes")[0],
    )
