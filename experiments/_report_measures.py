"""Measured values for the experiment `report`: which of them are good, cost or vary, and errors as ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments._report_runs import Run
from ua.tracking import Row

METHOD = "method"
REFERENCE = "bilinear"
OWN_UNITS = ("_rmse", "_angle")  # endings of errors in pixels, metres, degrees: no mean over data sets makes sense
COSTS = {"second", "seconds", "mb", "bytes"}  # differ from run to run even where nothing else does
SMALL_IS_GOOD = {"loss", "rmse", "mae", "mse", "error", "angle", "lpips", "ratio", *COSTS}
LARGE_IS_GOOD = {"psnr", "ssim", "iou", "miou", "cosine", "delta1", "accuracy", "precision", "recall"}

Pair = tuple[Run, Row]


def with_ratios(pairs: Sequence[Pair], measures: Sequence[str]) -> tuple[list[Pair], dict[str, str]]:
    """The rows with these measures as ratios to the method `REFERENCE`, and measure -> what it is called then.

    A measure stays as it is where a row lacks a reference: of the same run with the same labels, method aside.
    """
    references: dict[Any, Row] = {}
    for run in {run.name: run for run, _ in pairs}.values():  # all of its rows: the selection may be without them
        references |= {about(run, row): row for row in run.rows if row.get(METHOD) == REFERENCE}
    beside = [references.get(about(run, row), {}) for run, row in pairs]
    called = {
        name: f"{name} / {REFERENCE}"
        for name in measures
        if all(name in other for (_, row), other in zip(pairs, beside, strict=True) if name in row)
    }
    return [(run, compared(row, other, called)) for (run, row), other in zip(pairs, beside, strict=True)], called


def compared(row: Row, reference: Row, called: Mapping[str, str]) -> Row:
    """A row with the measures in `called` as ratios; NaN, which is left out, where there is no error to divide by."""
    ratios = {name: row[name] / reference[name] if reference[name] else math.nan for name in called if name in row}
    return {called.get(name, name): ratios.get(name, value) for name, value in row.items()}


def about(run: Run, row: Row) -> tuple[Any, ...]:
    """What a row has in common with those of other methods."""
    return run.name, *(row.get(name) for name in run.labels if name != METHOD)


def varying_measures(columns: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    """The columns of numbers, without those that are the same in every row."""
    found = {name: {row[name] for _, row in pairs if is_number(row.get(name))} for name in columns}
    several = [name for name in columns if len(found[name]) > 1]
    return several or [name for name in columns if found[name]]


def of_several(label: str, measures: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The measures that rows of more than one value of a label have."""
    return [name for name in measures if len({row[label] for row in rows if name in row and label in row}) > 1]


def direction(measure: str) -> str:
    """Which values of a measure are better, "min" or "max", told by the words of its name; "" where they do not say."""
    words = measure.removesuffix(f" / {REFERENCE}").lower().split("_")
    if words[-2:] == ["per", "second"]:
        return "max"
    if SMALL_IS_GOOD & set(words):
        return "min"
    return "max" if LARGE_IS_GOOD & set(words) else ""


def is_cost(measure: str) -> bool:
    return bool(COSTS & set(measure.lower().split("_")))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
