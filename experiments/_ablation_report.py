"""Tables and figures that all ablations have: means with intervals and marks of significance, and paired tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments import _effects as effects
from experiments._bench import YARDSTICK
from experiments._effects import BETTER, FORMATS, SIGNIFICANT, Effect, Modality
from ua import plots
from ua.statistics import Comparison, Interval
from ua.tracking import Tracker

RELEASED = "released"
COLOURS = (plots.GREY, plots.GREEN, plots.ORANGE, plots.VERMILION, plots.PURPLE, plots.SKY, plots.BLACK)
KEY = (
    "PSNR in dB, SSIM, cosine, mIoU and boundary mIoU in points more than bilinear (colours: of the same LR image, the "
    "one that the method fits, else bicubic); errors of depth, features and normals as ratios to bilinear (less is "
    "better). Means over scenes and scales [95 % bootstrap interval over scenes]. b+ and b-: better and worse than "
    "bilinear, r+ and r-: than {reference}, paired sign-flip p < {level}, not corrected for many tests; fewer than six "
    "scenes can have no mark"
)


def report(
    tracker: Tracker,
    name: str,
    part: Sequence[Effect],
    what: str,
    *,
    reference: str = RELEASED,
    describe: Callable[[str], Mapping[str, Any]] = lambda method: {"method": method},
    strong: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Writes tables/`name`, tables/`name`_paired and, with names in `strong`, figures/`name`.

    Args:
        tracker: where they go.
        name: of the files.
        part: the effects against bilinear.
        what: for captions: what was measured, without a full stop.
        reference: the method that all are compared with besides bilinear, where it is measured.
        describe: the first columns of a method's row.
        strong: methods that stand out in the figure; none: no figure.

    Returns:
        modality -> method -> mean.
    """
    means = effects.intervals(part)
    methods = effects.in_order(effect.method for effect in part)
    references = [method for method in (YARDSTICK, reference) if method in methods]
    pairs = [(method, other) for method in methods for other in references if method != other]
    tests = {pair: effects.compare(part, *pair) for pair in pairs}
    rows = []
    for method in methods:
        cells = {
            modality.name: marked(
                effects.cell(column.get(method), FORMATS[modality.kind]),
                modality,
                {other: tests[method, other].get(modality) for other in references if other != method},
            )
            for modality, column in means.items()
        }
        rows.append({**describe(method), **cells})
    if rows:
        key = KEY.format(reference=reference, level=SIGNIFICANT)
        tracker.table(name, rows, caption=f"{key}. {what}; {effects.coverage(part)}.")
        effects.paired_table(tracker, f"{name}_paired", part, pairs, what)
        if strong:
            tracker.figure(name, effects.dots(means, what, strong))
    return {
        modality.name: {method: interval.mean for method, interval in column.items()}
        for modality, column in means.items()
    }


def lines(
    tracker: Tracker,
    name: str,
    parts: Mapping[float, Sequence[Effect]],
    shown: Sequence[str],
    x_label: str,
    title: str,
    strong: str = "default",
) -> None:
    """Writes figures/`name`: means of every method against a number, a plot a modality of `shown`.

    The band around `strong` is its bootstrap interval.
    """
    means: dict[Modality, dict[str, dict[float, Interval]]] = {}  # modality -> method -> number -> interval
    for number, part in parts.items():
        for modality, column in effects.intervals(part).items():
            for method, interval in column.items():
                means.setdefault(modality, {}).setdefault(method, {})[number] = interval
    methods = effects.in_order(method for columns in means.values() for method in columns if method != strong)
    colours = dict(zip(methods, COLOURS * len(methods), strict=False))

    def curve(method: str, points: Mapping[float, Interval]) -> plots.Curve:
        is_strong = method == strong
        style = {"color": plots.BLUE, "linewidth": 2.2} if is_strong else {"color": colours[method], "linewidth": 1.3}
        band = [(interval.low, interval.high) for interval in points.values()] if is_strong else ()
        values = [interval.mean for interval in points.values()]
        return plots.Curve(method.replace("_", " "), list(points), values, style, band=band)

    drawn = [
        plots.Plot(
            [curve(*item) for item in means[modality].items()], effects.title_of(modality), x_label, ticks=list(parts)
        )
        for modality in sorted(means, key=lambda modality: [*shown, modality.name].index(modality.name))
        if modality.name in shown
    ]
    if drawn:
        tracker.figure(name, plots.curves([drawn], title=title))


def marked(cell: str | None, modality: Modality, comparisons: Mapping[str, Comparison | None]) -> str | None:
    """The cell and what it is significantly better or worse than."""
    if cell is None:
        return None
    marks = [
        ("b" if other == YARDSTICK else "r") + sign(comparison, modality)
        for other, comparison in comparisons.items()
        if comparison
    ]
    return " ".join([cell, *(mark for mark in marks if len(mark) > 1)])


def sign(comparison: Comparison, modality: Modality) -> str:
    """ "+" significantly better, "-" significantly worse, "" neither."""
    if comparison.p >= SIGNIFICANT:
        return ""
    return "+" if (comparison.difference.mean < 0) == (BETTER[modality.kind] == "min") else "-"
