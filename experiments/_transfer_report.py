"""Tables and figures of the experiment `transfer` from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments._bench import PREDICTION, YARDSTICK
from experiments._effects import (
    BETTER,
    EXPLANATION,
    FORMATS,
    Effect,
    against,
    coverage,
    dots,
    in_order,
    intervals,
    mean_table,
    paired_table,
)
from ua import tables
from ua.tracking import Row, Tracker

OURS = "default"


def report(tracker: Tracker, scales: Sequence[int]) -> dict[str, Any]:
    """Writes all tables and figures; returns means by regime, modality and method."""
    against_bilinear = against(tracker.rows)
    summary: dict[str, Any] = {}
    for regime in in_order(effect.regime for effect in against_bilinear):
        name = f"transfer_{regime}"
        part = [effect for effect in against_bilinear if effect.regime == regime]
        means = intervals(part)
        what = f"LR signal: {regime}; {coverage(part)}"
        mean_table(tracker, name, means, f"{EXPLANATION} {what}.")
        for scale in scales:
            scale_table(tracker, f"{name}_x{scale}", [effect for effect in part if effect.scale == scale], what)
        others = [method for method in in_order(effect.method for effect in part) if method != OURS]
        paired_table(tracker, f"{name}_paired", part, [(OURS, other) for other in others], what)
        tracker.figure(name, dots(means, f"LR signal: {regime}", (OURS,)))
        summary[regime] = {
            modality.name: {method: interval.mean for method, interval in methods.items()}
            for modality, methods in means.items()
        }
    if predicted := [row for row in tracker.rows if row["signal"] == PREDICTION]:
        summary["predictions"] = prediction_table(tracker, predicted)
    choice_table(tracker)
    seconds_table(tracker)
    return summary


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


def prediction_table(tracker: Tracker, rows: Sequence[Row]) -> dict[str, Any]:
    """IoU of the judged classes, whole and in the band, a pair of columns for each group; returns the means."""
    groups = in_order(row["dataset"] for row in rows)
    table = []
    for method in in_order(row["method"] for row in rows):
        line: dict[str, Any] = {"method": method}
        for group in groups:
            found = [row for row in rows if (row["method"], row["dataset"]) == (method, group)]
            for score, title in (("iou", "IoU"), ("band_iou", "band IoU")):
                values = [row[score] for row in found if score in row]
                line[f"{group} {title}"] = sum(values) / len(values) if values else None
        table.append(line)
    columns = [name for name in tables.columns(table) if name != "method"]
    counts = {group: len({row["image"] for row in rows if row["dataset"] == group}) for group in groups}
    tracker.table(
        "predictions",
        table,
        formats=dict.fromkeys(columns, ".3f"),
        best=dict.fromkeys(columns, "max"),
        caption=f"Real predictions of networks: IoU, and IoU within 5 pixels of a true boundary; images: {counts}.",
    )
    return {line["method"]: {name: line[name] for name in columns} for line in table}


def choice_table(tracker: Tracker) -> None:
    """How often `signal_is="auto"` takes a signal for an average of the truth, for each way of making the signal."""
    measured = [row for row in tracker.rows if row["method"] == YARDSTICK]
    lines = []
    for signal, dataset in in_order((row["signal"], row["dataset"]) for row in measured):
        line: dict[str, Any] = {"signal": signal, "data": dataset}
        for regime in in_order(row["regime"] for row in measured):
            labels = (signal, dataset, regime)
            found = [row for row in measured if (row["signal"], row["dataset"], row["regime"]) == labels]
            line[regime] = f"{sum(row['judged_average'] for row in found):.0f}/{len(found)}" if found else None
        lines.append(line)
    if lines:
        caption = "Signals that signal_is=auto takes for averages of the truth, by how they were made."
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
