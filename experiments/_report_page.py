"""The page of the experiment `report`: one HTML file that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import _report_figures as figures
from experiments import _report_tables as tables
from experiments._report_figures import best_first
from experiments._report_measures import REFERENCE, is_number
from experiments._report_runs import Broken, Run
from experiments._report_studies import SCORE, Estimate, Labels, Line, Study, named, once, scores, text
from ua import plots

TEMPLATE = Path(__file__).with_name("_report_page.html")
PICTURE_WIDTH = 1400  # pixels: sharp on a desk at twice the size that a phone needs
WIDE = 800  # pixels: wider ones, with many panels or plots, are scrolled on a phone and not shrunk to nothing
MOST_ROWS = 120  # of a table in the page; the files have all
MOST_BLOCKS = 24  # of an experiment in the page, each with a table and figures of its own; the files have all tables
FOLDED = 2  # more pictures of one kind than this are folded away
# Colours of the figures -> the page's own, which its style sheet has for light and dark.
THEME = {
    "#000000": "var(--ink)",
    "#dddddd": "var(--rule)",
    plots.GREY.lower(): "var(--muted)",
    plots.BLUE.lower(): "var(--blue)",
    plots.VERMILION.lower(): "var(--vermilion)",
    plots.GREEN.lower(): "var(--green)",
    plots.PURPLE.lower(): "var(--purple)",
    plots.ORANGE.lower(): "var(--orange)",
    plots.SKY.lower(): "var(--sky)",
}
DASHES = {"-": "", "--": "6 3", ":": "1.5 3", "-.": "7 3 1.5 3"}

Part = tuple[Study, Labels, Sequence[figures.Chart]]


@dataclass(frozen=True)
class Content:
    """What the page is about: runs that were found, those that count, and what was made of them."""

    title: str
    command: str
    runs: Sequence[Run]
    broken: Sequence[Broken]
    used: Sequence[Run]
    studies: Sequence[Study]
    parts: Sequence[Part]
    megabytes: float


def html(content: Content) -> str:
    """The page; every text in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    pictures = Pictures(content.megabytes)
    names = once(run.experiment for run in content.used)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=content.title or (", ".join(names) if len(names) < 4 else f"{len(names)} experiments"),
        lead=lead(content),
        command=content.command,
        studies=[study_view(study, content.parts, number, pictures) for number, study in enumerate(content.studies)],
        runs=run_table(content),
        broken=content.broken,
        facts=facts(content.runs),
        commands=[(run.name, run.environment.get("command") or "unknown") for run in content.runs],
        left_out=pictures.left_out,
    )
    return page.rstrip() + "\n"


def lead(content: Content) -> str:
    """The first sentence: how many runs, where and when."""
    used, dates = content.used, once(day(run) for run in content.used)
    commits, devices = once(run.commit for run in used), once(run.device for run in used)
    words = [plural(len(used), "run")]
    words += [f"at commit {commits[0]}" if len(commits) == 1 else f"at {len(commits)} commits"]
    words += [f"on {devices[0]}" if len(devices) == 1 else f"on {len(devices)} devices"]
    when = dates[0] if len(dates) == 1 else f"{min(dates)} to {max(dates)}"
    left_out = len(content.runs) - len(used)
    more = [f"{plural(left_out, 'unfinished run')} left out"] if left_out else []
    more += [f"{plural(len(content.broken), 'folder')} could not be read"] if content.broken else []
    return f"{' '.join(words)}, {when}." + (f" {'; '.join(more).capitalize()}." if more else "")


def day(run: Run) -> str:
    return str(run.environment.get("started") or "date unknown")[:10]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def study_view(study: Study, parts: Sequence[Part], number: int, pictures: Pictures) -> dict[str, Any]:
    """What the template shows of one experiment."""
    own = [(block, charts) for other, block, charts in parts if other is study]
    several = len(own) > 1
    return {
        "id": f"experiment-{number}",
        "heading": "Results" if all(other is study for other, _, _ in parts) else study.experiment,
        "varied": [(key, ", ".join(study.look(key, one) for one in values)) for key, values in study.values.items()],
        "score": score_view(study, number),
        "notes": notes(study),
        "blocks": [
            {
                "id": f"experiment-{number}-{place}",
                "title": named(block) if several and block else "",
                "table": mean_table(study, block),
                "charts": [chart_view(chart, f"c{number}-{place}-{rank}") for rank, chart in enumerate(charts)],
            }
            for place, (block, charts) in enumerate(own)
        ],
        "pictures": pictures.of(study),
    }


def score_view(study: Study, number: int) -> dict[str, Any] | None:
    """The settings ranked by the score of their runs, None where there are no scores."""
    ranked = scores(study)
    if ranked is None:
        return None
    best = best_first(ranked, ranked.within(()))[0]
    mean = ranked.final(best)[SCORE].mean
    charts = figures.charts(ranked, (), True)
    return {
        "id": f"experiment-{number}-score",
        "sentence": f"The lowest score is {mean:.3g}, of {ranked.about(best) if ranked.axes else 'the only setting'}.",
        "table": mean_table(ranked, ()),
        "charts": [chart_view(chart, f"s{number}-{rank}") for rank, chart in enumerate(charts)],
    }


def notes(study: Study) -> list[str]:
    """What a reader must know about the means."""
    found = []
    if study.constant:
        there = (f"{name} {text(value)}" for name, value in study.constant.items())
        found.append(f"The same in every row: {', '.join(there)}.")
    if study.averaged:
        there = (f"{name} ({few(list(map(text, values)))})" for name, values in study.averaged.items())
        found.append(f"Means are taken over {'; '.join(there)}.")
    if study.mixed:
        found.append(f"{', '.join(study.mixed)}: means over all signals.")
    if ratios := [name for name in study.measures if name.endswith(f"/ {REFERENCE}")]:
        found.append(
            f"{', '.join(ratios)}: image by image, error divided by that of {REFERENCE} under the same conditions; "
            "tables/rows.csv has the errors themselves."
        )
    pooled = {len(runs) for runs in study.settings.values()}
    if max(pooled) > 1:
        counts = f"{min(pooled)} to {max(pooled)}" if len(pooled) > 1 else str(max(pooled))
        found.append(f"Each setting was run {counts} times; its runs are pooled.")
    if study.dropped:
        found.append(f"{study.dropped} values were not finite and are left out.")
    if left_out := [named(block) for block in study.blocks[MOST_BLOCKS:]]:
        file = f"tables/{figures.file_name('all', study)}.csv"
        found.append(f"{plural(len(left_out), 'more table')} ({few(left_out, 3)}) can be read in {file}.")
    return found


def shown_blocks(study: Study) -> list[Labels]:
    return study.blocks[:MOST_BLOCKS]


def few(values: Sequence[str], most: int = 8) -> str:
    return ", ".join(values) if len(values) <= most else f"{', '.join(values[:most])} and {len(values) - most} more"


def block_title(study: Study, block: Labels) -> str:
    return f"{study.experiment}, {named(block)}" if block else study.experiment


def mean_table(study: Study, block: Labels) -> dict[str, Any]:
    """A table of means: what a row is about in its first cell, then a cell for each measure."""
    lines = tables.lines_in_order(study, block)
    measures = [name for name in study.measures if any(name in study.final(line) for line in lines)]
    forms, best = tables.formats(study, block), tables.best_lines(study, block)
    labels = once(name for line in lines for name, _ in line.labels)
    return {
        "heads": [*map(study.short, study.axes), *labels] or ["all rows"],
        "columns": [
            {"name": name, "arrow": figures.ARROWS[study.better[name]].strip(), "count": counts(study, lines, name)}
            for name in measures
        ],
        "rows": [
            {
                "heads": row_heads(study, line, labels),
                "reference": line.setting is None and bool(study.keys),
                "cells": [
                    cell(study.final(line).get(name), forms[name], line in best.get(name, ())) for name in measures
                ],
            }
            for line in lines[:MOST_ROWS]
        ],
        "caption": figures.means_words(study, block),
        "more": max(0, len(lines) - MOST_ROWS),
        "file": f"tables/{figures.file_name('all', study)}.csv",
    }


def row_heads(study: Study, line: Line, labels: Sequence[str]) -> list[str]:
    """A cell for each swept key and label; those of no setting have one for all."""
    there, place = dict(line.labels), study.place(line)
    if study.axes and not place:
        return [named(line.labels) or study.experiment]
    keys = [study.look(key, place[key]) for key in study.axes]
    dash = "\N{EN DASH}"
    return [*keys, *(text(there[name]) if name in there else dash for name in labels)] or [study.experiment]


def counts(study: Study, lines: Sequence[Line], measure: str) -> str:
    there = [study.final(line)[measure].count for line in lines if measure in study.final(line)]
    low, high = min(there), max(there)
    return f"n = {low}" if low == high else f"n = {low}\N{EN DASH}{high}"


def cell(there: Estimate | None, form: str, best: bool) -> dict[str, Any]:
    if there is None:
        return {"mean": "\N{EN DASH}", "interval": "", "best": False}
    low, high = there.interval.low, there.interval.high
    interval = "" if math.isnan(low) else f"{low:{form}}\N{EN DASH}{high:{form}}"
    if low < 0:
        interval = f"{low:{form}} to {high:{form}}"
    return {"mean": format(there.mean, form), "interval": interval, "best": best}


def chart_view(chart: figures.Chart, mark: str) -> dict[str, Any]:
    """A chart as inline SVG, one for each plot, and its legend."""
    return {
        "title": chart.title,
        "caption": chart.caption,
        "legend": [{"name": name, **swatch(style)} for name, style in chart.legend.items()],
        "svgs": [
            themed(plots.svg(figures.single(plot)), f"{mark}-{number}", described(plot))
            for number, plot in enumerate(chart.plots)
        ],
    }


def swatch(style: Mapping[str, Any]) -> dict[str, str]:
    """How a line looks in the legend."""
    colour, dash = str(style.get("color", "#000000")).lower(), style.get("linestyle", "-")
    dashes = DASHES[dash] if isinstance(dash, str) else " ".join(str(2 * part) for part in dash[1])
    return {"colour": THEME.get(colour, colour), "dashes": dashes}


def themed(svg: str, mark: str, description: str) -> Any:
    """An SVG with the page's colours, ids that are its own and a description; markup that needs no more escaping."""
    from markupsafe import Markup, escape

    for colour, name in THEME.items():
        svg = svg.replace(colour, name)
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{mark}-", svg)
    width, height = re.findall(r'^<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    opening = f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {width} {height}">'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: opening, svg, count=1))


def described(plot: plots.BandPlot | plots.HeatMap) -> str:
    """What a picture shows, for those who cannot see it."""
    if isinstance(plot, plots.HeatMap):
        there = [value for value in plot.values.ravel().tolist() if not math.isnan(value)]
        return (
            f"{plot.title}: heat map over {plot.y_label} and {plot.x_label}, "
            f"{min(there):{plot.form}} to {max(there):{plot.form}}"
        )
    ends = [
        f"{band.name} {band.y[0].mean:.3g}" + (f" to {band.y[-1].mean:.3g}" if len(band.y) > 1 else "")
        for band in plot.bands
    ]
    return f"{plot.title} against {plot.x_label}: {'; '.join(ends)}"


class Pictures:
    """The runs' own pictures, downscaled, as long as the page has room; `left_out` names the others."""

    def __init__(self, megabytes: float) -> None:
        self.room = megabytes * 1e6
        self.left_out: list[str] = []

    def of(self, study: Study) -> list[dict[str, Any]]:
        """The pictures in the figures folders of a study, those of one name together, so that runs can be compared."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for setting, runs in study.settings.items():
            about = study.about(Line(setting, (), ())) if study.axes else ""
            for run in runs:
                for path in sorted((run.folder / "figures").glob("*.png")):
                    if (fitted := self.fitted(path, run)) is not None:
                        caption = f"{run.name}: {about}" if about else run.name
                        view = {**fitted, "caption": caption, "alt": f"{path.stem} of run {caption}"}
                        groups.setdefault(path.stem, []).append(view)
        return [
            {"name": name, "pictures": there, "folded": len(there) > FOLDED} for name, there in sorted(groups.items())
        ]

    def fitted(self, path: Path, run: Run) -> dict[str, Any] | None:
        """The picture as a data address with its size, None where there is no room or it cannot be read."""
        from PIL import Image

        name = f"{run.name}/figures/{path.name}"
        if self.room <= 0:
            self.left_out.append(name)
            return None
        file = io.BytesIO()
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGBA") if picture.mode in ("P", "LA") else picture.copy()
        except OSError:
            self.left_out.append(f"{name} (no picture)")
            return None
        small.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH), Image.Resampling.LANCZOS, reducing_gap=2.0)
        small.save(file, format="WEBP", quality=86, method=1)
        data = base64.b64encode(file.getvalue()).decode("ascii")
        if len(data) > self.room:
            self.left_out.append(name)
            return None
        self.room -= len(data)
        width, height = small.size
        address = f"data:image/webp;base64,{data}"
        return {"data": address, "width": width, "height": height, "wide": width > 1.5 * height and width > WIDE}


def run_table(content: Content) -> dict[str, Any]:
    """The runs as a table: column names, and cells with whether they are numbers."""
    rows = tables.run_rows(content.runs, content.broken, content.studies, content.used)
    columns = once(name for row in rows for name in row)
    looks = {
        (key, value): study.look(key, value)
        for study in content.studies
        for key, values in study.values.items()
        for value in values
    }
    return {
        "columns": columns,
        "rows": [
            [
                {
                    "text": "\N{EN DASH}"
                    if row.get(name) is None
                    else looks.get((name, value := text(row[name])), value),
                    "number": is_number(row.get(name)),
                }
                for name in columns
            ]
            for row in rows
        ],
    }


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What the runs ran on; several values where they differ."""
    versions = once(name for run in runs for name in run.environment.get("versions") or {})
    there = {
        "commit": once(run.environment.get("commit") for run in runs),
        "device": once(run.device for run in runs),
        "threads": once(run.environment.get("threads") for run in runs),
        "system": once(run.environment.get("system") for run in runs),
        "python": once(run.environment.get("python") for run in runs),
        "started": [earliest] if (earliest := span(runs)) else [],
        "versions": [
            f"{name} {' or '.join(once((run.environment.get('versions') or {}).get(name, '?') for run in runs))}"
            for name in versions
        ],
    }
    known = {name: [text(value) for value in values if value is not None] for name, values in there.items()}
    return [(name, ", ".join(values)) for name, values in known.items() if values]


def span(runs: Sequence[Run]) -> str:
    """When the first and the last run started."""
    starts = sorted(str(run.environment["started"]) for run in runs if run.environment.get("started"))
    return "" if not starts else starts[0] if starts[0] == starts[-1] else f"{starts[0]} to {starts[-1]}"
