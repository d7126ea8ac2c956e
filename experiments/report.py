"""Reading the results: tables, figures and one page about any number of run folders, which it never touches.

    python -m ua.run experiment=report runs=multirun/2026-01-01_12-00-00
    python -m ua.run experiment=report 'runs=[outputs,multirun]' 'measures=[psnr,miou]' 'where={method: fit, scale: 16}'

report.html in the run folder of the report is all of it in one file; tables/ and figures/ hold the parts, and
tables/rows.csv every row of every run with its swept keys, for pandas. The same runs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments import _report_figures as figures
from experiments import _report_page as page
from experiments import _report_tables as tables
from experiments._report_runs import Broken, Run, find_runs
from experiments._report_studies import SCORE, Choice, Labels, Study, scores, studies
from ua.tracking import Tracker, write_text


@dataclass(frozen=True)
class Config:
    """What the YAML of this experiment holds.

    Attributes:
        runs: a folder or a list of folders; every run folder in them is read, however deep it lies.
        measures: value columns of metrics.csv; none: all that vary. Errors with units of their own (*_rmse, *_angle)
            are shown as ratios to those of bilinear wherever rows of it lie beside all others.
        where: label or configuration key -> value or list of values: which rows count. Rows without the label, and
            runs without the key, stay.
        by: labels that means are not taken over; none: method, guide, scale, regime, data sets whose errors are not
            ratios, and as many others as a person still reads.
        pool: keys whose values are repeats of one setting, and labels that means are taken over.
        better: measure -> "min" or "max", where its name does not say it.
        unfinished: whether the rows of runs count that did not end (yet).
        pictures: megabytes that the runs' own pictures may take in the page; 0: none.
        title: of the page; none: the names of the experiments.
    """

    runs: Any
    measures: list[str] = field(default_factory=list)
    where: dict[str, Any] | None = None
    by: list[str] = field(default_factory=list)
    pool: list[str] = field(default_factory=lambda: ["seed"])
    better: dict[str, str] | None = None
    unfinished: bool = False
    pictures: float = 12.0
    title: str = ""

    def __post_init__(self) -> None:
        roots = self.runs if isinstance(self.runs, list | tuple) else [self.runs]
        if not roots or not all(isinstance(root, str) and root for root in roots):
            raise ValueError(f"runs must be a folder or a list of folders, got {self.runs!r}")
        if self.pictures < 0:
            raise ValueError(f"pictures must be >= 0 (megabytes), got {self.pictures}")

    @property
    def roots(self) -> list[str]:
        return [*self.runs] if isinstance(self.runs, list | tuple) else [self.runs]


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Writes report.html, tables and figures.

    Returns:
        The summary: how many runs, and for each experiment its swept keys and, for each measure, the best setting.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: no runs, none that can be read or counts, or a measure, label, key or value that no run has.
    """
    runs, broken = find_runs(config.roots)
    used = usable(runs, broken, config, tracker)
    choice = Choice(config.measures, config.where or {}, config.by, config.pool, config.better or {})
    found = studies(used, choice)
    write_tables(found, choice, tracker)
    listing = tables.run_rows(runs, broken, found, used)
    write_text(tracker.folder / "tables" / "runs.csv", tables.csv_text(listing))
    tracker.table("runs", listing, caption="The runs that were read.")
    for study in found:
        if (ranked := scores(study)) is not None:
            write_table(ranked, (), tracker)
            write_text(tracker.folder / "tables" / f"{figures.file_name('all', ranked)}.csv", tables.csv_of(ranked))
            part_charts(ranked, (), config, tracker)
    blocks = [(study, block) for study in found for block in page.shown_blocks(study)]
    parts = [(study, block, part_charts(study, block, config, tracker)) for study, block in blocks]
    content = page.Content(config.title, command_of(tracker), runs, broken, used, found, parts, config.pictures)
    write_text(tracker.folder / "report.html", page.html(content))
    return {
        "runs": len(runs),
        "unfinished": sum(not run.finished for run in runs),
        "broken": len(broken),
        "experiments": {study.experiment: conclusion(study) for study in found},
    }


def usable(runs: Sequence[Run], broken: Sequence[Broken], config: Config, tracker: Tracker) -> list[Run]:
    """The runs whose rows count; says which do not."""
    for each in broken:
        tracker.say(f"{each.name} cannot be read: {each.reason}")
    for run in runs:
        if not run.finished:
            tracker.say(f"{run.name} is unfinished: its rows are {'used' if config.unfinished else 'left out'}")
    used = [run for run in runs if run.finished or config.unfinished]
    if not used:
        raise ValueError(
            f"runs={', '.join(config.roots)}: {len(broken)} broken and {len(runs)} unfinished runs, none to report on "
            "(unfinished=true takes the rows that there are)"
        )
    return used


def write_tables(found: Sequence[Study], choice: Choice, tracker: Tracker) -> None:
    """All means, block by block for reading and in one file for each study, and all rows."""
    folder = tracker.folder / "tables"
    for study in found:
        for block in study.blocks:
            write_table(study, block, tracker)
        write_text(folder / f"{figures.file_name('all', study)}.csv", tables.csv_of(study))
    write_text(folder / "rows.csv", tables.tidy(found, choice))


def part_charts(study: Study, block: Labels, config: Config, tracker: Tracker) -> list[figures.Chart]:
    """The figures of a block, which are also written as PNG."""
    charts = figures.charts(study, block, bool(config.measures))
    for chart in charts:
        tracker.figure(chart.name, figures.figure(chart))
    return charts


def write_table(study: Study, block: Labels, tracker: Tracker) -> None:
    rows = tables.shown(study, block)
    tracker.table(
        figures.file_name("means", study, block),
        rows,
        formats=tables.formats(study, block),
        best={name: which for name, which in study.better.items() if which and name in rows[0]},
        caption=f"{page.block_title(study, block)}. {figures.means_words(study, block)}",
    )


def conclusion(study: Study) -> dict[str, Any]:
    """Swept keys, and the best of every measure by block."""
    best = {}
    for block in study.blocks:
        winners = tables.best_lines(study, block)
        best[page.block_title(study, block)] = {
            measure: {"best": [study.about(line) for line in lines], "mean": study.final(lines[0])[measure].mean}
            for measure, lines in winners.items()
        }
    return {"keys": study.keys, **best_score(study), "best": best}


def best_score(study: Study) -> dict[str, Any]:
    """The lowest score with its setting, in full; nothing where the runs have none."""
    if (ranked := scores(study)) is None:
        return {}
    line = figures.best_first(ranked, ranked.within(()))[0]
    return {SCORE: {"best": tables.heading(ranked, line), "mean": ranked.final(line)[SCORE].mean}}


def command_of(tracker: Tracker) -> str:
    """What started this report, from its own record; without one, what would."""
    environment = json.loads((tracker.folder / "environment.json").read_text(encoding="utf-8"))
    return environment.get("command") or "python -m ua.run experiment=report runs=FOLDER"
