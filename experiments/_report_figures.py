"""Figures of the experiment `report`: convergence, and what the swept keys do, as plots that `ua.plots` draws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments._report_studies import Estimate, Labels, Line, Study, estimate, named, once
from ua import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (plots.BLUE, plots.VERMILION, plots.GREEN, plots.PURPLE, plots.ORANGE, plots.SKY, plots.GREY)
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
ARROWS = {"max": " \N{UPWARDS ARROW}", "min": " \N{DOWNWARDS ARROW}", "": ""}
PLAIN = ((plots.BLACK, "--"), (plots.GREY, ":"), (plots.BLACK, "-."))  # of few baselines
MARGINALS = 6  # measures that marginal plots show, where none were asked for
MOST = 6  # methods (or combinations of other labels) with heat maps of their own, or a line over a swept key
COLOURED_LEVELS = 4  # as many baselines need colours to be told apart, fewer leave the colours to the lines
CURVES = 12  # of one convergence plot: more cannot be told apart
LEAST_FILLED = 0.5  # of a grid: below, a heat map would be mostly holes


@dataclass(frozen=True)
class Chart:
    """Small plots of one kind that share a legend."""

    name: str
    title: str
    caption: str
    plots: Sequence[plots.BandPlot | plots.HeatMap]
    legend: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def figure(chart: Chart) -> Figure:
    """All plots of a chart in one figure, for its PNG."""
    heats = [plot for plot in chart.plots if isinstance(plot, plots.HeatMap)]
    if heats:
        return plots.heat_maps(heats, title=chart.title)
    return plots.bands([plot for plot in chart.plots if isinstance(plot, plots.BandPlot)], title=chart.title)


def single(plot: plots.BandPlot | plots.HeatMap) -> Figure:
    """One plot alone, for a page that has the legend in its own words."""
    if isinstance(plot, plots.HeatMap):
        return plots.heat_maps([plot])
    return plots.bands([plot], legend=False)


def charts(study: Study, block: Labels, measures_chosen: bool) -> list[Chart]:
    """Every figure of one block of a study: of the swept keys first, then convergence."""
    found = []
    lines = [line for line in study.within(block) if line.setting is not None]
    if len(study.axes) == 2 and filled(study) >= LEAST_FILLED:
        found += [heat_maps(study, block, labels, measures_chosen) for labels in compared(lines)[:MOST]]
    elif len(study.axes) == 1:
        found.append(one_key(study, block))
    elif len(study.settings) > len(study.axes):  # else keys change together, and no plot tells them apart
        found += marginals(study, block, measures_chosen)
    return [chart for chart in [*found, convergence(study, block)] if chart.plots]


def compared(lines: Sequence[Line]) -> list[Labels]:
    """The labels of lines that more than one setting has: with one there is nothing to draw over a key."""
    counts = Counter(line.labels for line in lines)
    return [labels for labels in once(line.labels for line in lines) if counts[labels] > 1]


def filled(study: Study) -> float:
    """The share of the cells of a two-key grid that runs fill."""
    first, second = study.axes
    there = {tuple(study.place(line)[key] for key in study.axes) for line in study.lines if line.setting is not None}
    return len(there) / (len(study.values[first]) * len(study.values[second]))


def without_timings(measures: Sequence[str], measures_chosen: bool) -> Sequence[str]:
    """The measures worth a heat map: timings are noise beside scores, unless asked for or all there is."""
    return measures if measures_chosen else [name for name in measures if not name.endswith("_seconds")] or measures


def heat_maps(study: Study, block: Labels, labels: Labels, measures_chosen: bool) -> Chart:
    """A heat map for each measure over the two swept keys."""
    down, across = study.axes
    rows, columns = study.values[down], study.values[across]
    maps = []
    for measure in without_timings(study.measures, measures_chosen):
        values = np.full((len(rows), len(columns)), np.nan)
        for line in study.within(block):
            if line.labels == labels and line.setting is not None and measure in study.final(line):
                place = study.place(line)
                values[rows.index(place[down]), columns.index(place[across])] = study.final(line)[measure].mean
        if np.isfinite(values).any():
            better = study.better[measure]
            words = (study.short(across), study.short(down))
            wide, tall = ([study.look(key, value) for value in study.values[key]] for key in (across, down))
            form = number_format([value for value in values.ravel() if np.isfinite(value)])
            maps.append(plots.HeatMap(values, wide, tall, measure + ARROWS[better], *words, form, better))
    title = ", ".join(filter(None, [f"{study.short(down)} and {study.short(across)}", named(block), named(labels)]))
    caption = f"Means over {count_words(study, block)}{last_step(study, block)}; a frame: one best cell."
    return Chart(file_name("heat_maps", study, block, labels), title, caption, maps)


def one_key(study: Study, block: Labels) -> Chart:
    """Every measure against the one key that was swept, a band for each method, what it does not touch as levels."""
    (key,) = study.axes
    lines = study.within(block)
    every = compared([line for line in lines if line.setting is not None])
    groups = every[:MOST]
    style = styles(study, [Line(None, block, labels) for labels in groups])
    plotted = []
    for measure in study.measures:
        bands = []
        for labels in groups:
            there = {
                study.place(line)[key]: study.final(line)[measure]
                for line in lines
                if line.setting is not None and line.labels == labels and measure in study.final(line)
            }
            name = study.about(Line(None, block, labels))
            bands.append(band_over_key(study, key, name, there, style[name]))
        bands = [band for band in bands if band.x]
        if bands:
            plotted.append(over_key(study, key, measure, [*bands, *levels(study, block, measure)]))
    caption = f"{means_words(study, block)}{only(groups, every)}"
    return Chart(file_name("key", study, block), titled(study.short(key), block), caption, plotted, legend_of(plotted))


def marginals(study: Study, block: Labels, measures_chosen: bool) -> list[Chart]:
    """For each swept key the measures against it, averaged over all settings of the other keys."""
    directed = [name for name in study.measures if study.better[name]]
    measures = study.measures if measures_chosen else (directed or study.measures)[:MARGINALS]
    lines = [line for line in study.within(block) if line.setting is not None]
    every = compared(lines)
    groups = every[:MOST]
    style = styles(study, [Line(None, block, labels) for labels in groups])
    found = []
    for key in study.axes:
        plotted = []
        for measure in measures:
            bands = []
            for labels in groups:
                there = pooled(study, [line for line in lines if line.labels == labels], key, measure)
                name = study.about(Line(None, block, labels))
                bands.append(band_over_key(study, key, name, there, style[name]))
            if bands := [band for band in bands if band.x]:
                plotted.append(over_key(study, key, measure, [*bands, *levels(study, block, measure)]))
        caption = f"The other keys: means over all of their settings. {means_words(study, block)}{only(groups, every)}"
        name = file_name(f"marginal_{study.short(key)}", study, block)
        found.append(Chart(name, titled(study.short(key), block), caption, plotted, legend_of(plotted)))
    return found


def pooled(study: Study, lines: Sequence[Line], key: str, measure: str) -> dict[str, Estimate]:
    """Value of a key -> estimate over all lines with it: of each image the mean over the lines."""
    there: dict[str, dict[Any, list[float]]] = {}
    for line in lines:
        if line.setting is None or measure not in study.final(line):
            continue
        members = there.setdefault(study.place(line)[key], {})
        for member, value in study.final(line)[measure].members.items():
            members.setdefault(member, []).append(value)
    return {value: estimate(members) for value, members in there.items()}


def convergence(study: Study, block: Labels) -> Chart:
    """Every measure against the step; lines without steps as levels."""
    every = [line for line in study.within(block) if len([step for step in study.lines[line] if step is not None]) > 1]
    lines = best_first(study, every)[:CURVES] if len(every) > CURVES else every
    style = styles(study, lines)
    plotted = []
    for measure in study.measures:
        bands = []
        for line in lines:
            steps = [step for step, there in study.lines[line].items() if step is not None and measure in there]
            intervals = [study.lines[line][step][measure].interval for step in steps]
            if steps:
                bands.append(plots.Band(study.about(line), steps, intervals, style[study.about(line)]))
        if bands:
            ticks = sorted({step for band in bands for step in band.x})
            ticks = thinned(ticks)
            title = measure + ARROWS[study.better[measure]]
            everything = [*bands, *levels(study, block, measure)]
            plotted.append(plots.BandPlot(everything, title, "step", ticks=ticks))
    caption = f"Means over {count_words(study, block)}; bands: 95 % bootstrap intervals.{only(lines, every)}"
    title = titled("convergence", block)
    return Chart(file_name("convergence", study, block), title, caption, plotted, legend_of(plotted))


def best_first(study: Study, lines: Sequence[Line]) -> list[Line]:
    """Lines by their last mean of the main measure; those of no setting, and those without it, last."""
    sign = -1 if study.better[study.main] == "max" else 1

    def rank(line: Line) -> tuple[bool, bool, float]:
        there = study.final(line).get(study.main)
        return line.setting is None, there is None, sign * there.mean if there else 0.0

    return sorted(lines, key=rank)


def only(drawn: Sequence[Any], every: Sequence[Any]) -> str:
    return f" Drawn are {len(drawn)} of {len(every)} lines; where= chooses others." if len(drawn) < len(every) else ""


def levels(study: Study, block: Labels, measure: str) -> list[plots.Band]:
    """What no swept key touches, or has no steps beside lines that have, as horizontal lines."""
    stepped = any(study.last(line) is not None for line in study.within(block))
    lines = [
        line
        for line in study.within(block)
        if measure in study.final(line) and study.last(line) is None and (line.setting is None or stepped)
    ]
    if len({line.setting for line in lines}) > 1:
        lines = [line for line in lines if line.setting is None]
    names = once(line.labels for line in study.within(block) if study.last(line) is None)
    each = plots.baseline_styles()
    if len(names) < COLOURED_LEVELS:
        each = [{"color": colour, "linestyle": dash} for colour, dash in PLAIN]
    return [
        plots.Band(
            study.about(line),
            [],
            [study.final(line)[measure].interval],
            each[names.index(line.labels) % len(each)],
            True,
        )
        for line in lines
    ]


def styles(study: Study, lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Name of a line -> how it is drawn: with two swept keys a colour for the one, dashes for the other."""
    names = once(study.about(line) for line in lines)
    in_settings = all(line.setting is not None for line in lines)
    if in_settings and len(study.axes) == 2 and len(once(line.labels for line in lines)) == 1:
        first, second = (study.values[key] for key in study.axes)
        if len(first) <= len(COLOURS) and len(second) <= len(DASHES):
            found = {}
            for line in lines:
                numbers = [study.values[key].index(study.place(line)[key]) for key in study.axes]
                found[study.about(line)] = {"color": COLOURS[numbers[0]], "linestyle": DASHES[numbers[1]]}
            return found
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        }
        for number, name in enumerate(names)
    }


def band_over_key(
    study: Study, key: str, name: str, there: Mapping[str, Estimate], style: Mapping[str, Any]
) -> plots.Band:
    values = [value for value in study.values[key] if value in there]
    places = axis(study, key)
    return plots.Band(name, [places[value] for value in values], [there[value].interval for value in values], style)


def over_key(study: Study, key: str, measure: str, bands: Sequence[plots.Band]) -> plots.BandPlot:
    title = measure + ARROWS[study.better[measure]]
    values = study.values[key]
    if is_line(study, key):
        return plots.BandPlot(bands, title, study.short(key), ticks=thinned(study.numbers[key]))
    return plots.BandPlot(bands, title, study.short(key), x_names=[study.look(key, value) for value in values])


def axis(study: Study, key: str) -> dict[str, float]:
    """Value of a key -> its x."""
    places = study.numbers[key] if is_line(study, key) else range(len(study.values[key]))
    return dict(zip(study.values[key], map(float, places), strict=True))


def is_line(study: Study, key: str) -> bool:
    """Whether a key has an axis of numbers, which is logarithmic; negative numbers are shown as categories."""
    return key in study.numbers and min(study.numbers[key]) >= 0


def thinned(ticks: Sequence[float], most: int = 7) -> list[float]:
    """At most so many ticks, the first and last among them."""
    if len(ticks) <= most:
        return [*ticks]
    chosen = np.unique(np.linspace(0, len(ticks) - 1, most).round().astype(int))
    return [ticks[place] for place in chosen]


def legend_of(plotted: Sequence[plots.BandPlot]) -> dict[str, Mapping[str, Any]]:
    return {band.name: band.style for plot in plotted for band in plot.bands}


def number_format(values: Sequence[float]) -> str:
    """A format of so many decimals that the largest has three or four digits, the smallest at least one.

    One for a whole column, so that its decimal points stand below each other.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return ".0f"
    if max(sizes) >= 1e6:
        return ".3g"
    large, small = (math.floor(math.log10(one(sizes))) for one in (max, min))
    return f".{min(7, max(0, 3 - large if large >= 0 else 2 - large, -small))}f"


def count_words(study: Study, block: Labels) -> str:
    """How many images means are over, in words; not every image has every truth."""
    counts = [estimate.count for line in study.within(block) for estimate in study.final(line).values()]
    low, high = min(counts), max(counts)
    noun = study.unit if high == 1 else f"{study.unit}s"
    return f"{high} {noun}" if low == high else f"{low} to {high} {noun}"


def means_words(study: Study, block: Labels) -> str:
    """What the numbers of a table or of a plot over a key are."""
    over = count_words(study, block)
    intervals = "" if over.startswith("1 ") and " to " not in over else " with 95 % bootstrap intervals"
    return f"Means over {over}{intervals}{last_step(study, block)}."


def last_step(study: Study, block: Labels) -> str:
    steps = {step for line in study.within(block) if (step := study.last(line)) is not None}
    return f", step {steps.pop()}" if len(steps) == 1 else ", at the last step" if steps else ""


def titled(what: str, block: Labels) -> str:
    return f"{what}, {named(block)}" if block else what


def file_name(kind: str, study: Study, *labels: Labels) -> str:
    words = [study.experiment, kind, *(str(value) for each in labels for _, value in each)]
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in "_".join(words))
