"""Tables of the experiment `report`: rows as plain values, from studies and runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from experiments._report_figures import best_first, number_format
from experiments._report_runs import Broken, Run
from experiments._report_studies import AROUND, SCORE, Choice, Estimate, Labels, Line, Study, once, selected, text
from ua import tables
from ua.statistics import Interval
from ua.tracking import Row

INTERVAL = "95 %"


def lines_in_order(study: Study, block: Labels) -> list[Line]:
    """The rows of a table: by their keys; scores, and more than two keys, the best of the main measure first."""
    lines = study.within(block)
    ranked = len(study.axes) > 2 or study.measures == [SCORE]
    return best_first(study, lines) if ranked else lines


def heading(study: Study, line: Line) -> dict[str, Any]:
    """Swept keys, labels and step of a row."""
    numbers = {key: dict(zip(study.values[key], study.numbers[key], strict=True)) for key in study.numbers}
    keys: dict[str, Any] = dict.fromkeys(study.keys)
    for key, value in zip(study.keys, line.setting or (), strict=False):
        keys[key] = plain(numbers[key][value]) if key in numbers else value
    step = {} if study.last(line) is None else {"step": study.last(line)}
    return {**keys, **dict(line.labels), **step}


def plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def shown(study: Study, block: Labels) -> list[Row]:
    """The rows of a table for reading: a mean and its interval for each measure."""
    forms = formats(study, block)
    rows = []
    for line in lines_in_order(study, block):
        row = heading(study, line)
        for key, value in study.place(line).items():
            row[key] = plain(float(study.look(key, value))) if key in study.numbers else value
        for measure in study.measures:
            there = study.final(line).get(measure)
            row[measure] = None if there is None else there.mean
            row[f"{measure} {INTERVAL}"] = None if there is None else interval_text(there.interval, forms[measure])
        rows.append(row)
    numbers = {name for measure in study.measures for name in (measure, f"{measure} {INTERVAL}")}
    names = once(name for row in rows for name in row)
    filled = [name for name in names if name not in numbers or any(row.get(name) is not None for row in rows)]
    columns = sorted(filled, key=lambda name: name in numbers)  # headings first, however many the first row has
    return [{name: row.get(name) for name in columns} for row in rows]


def formats(study: Study, block: Labels) -> dict[str, str]:
    """Measure -> the format of its column."""
    found = {}
    for measure in study.measures:
        finals = [study.final(line) for line in study.within(block)]
        found[measure] = number_format([final[measure].mean for final in finals if measure in final])
    return found


def interval_text(interval: Interval, form: str) -> str | None:
    if interval.low != interval.low:  # one image has none
        return None
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def best_lines(study: Study, block: Labels) -> dict[str, list[Line]]:
    """Measure -> the lines whose mean looks best, none where all look the same."""
    forms = formats(study, block)
    found: dict[str, list[Line]] = {}
    for measure, which in study.better.items():
        there = {line: study.final(line)[measure].mean for line in study.within(block) if measure in study.final(line)}
        if not which or not there:
            continue
        looks = {line: format(value, forms[measure]) for line, value in there.items()}
        winner = format((min if which == "min" else max)(there.values()), forms[measure])
        if len(set(looks.values())) > 1:
            found[measure] = [line for line in there if looks[line] == winner]
    return found


def csv_of(study: Study) -> str:
    """Every mean of a study at its last step, of all blocks, with interval and count; unrounded."""
    rows = []
    for block in study.blocks:
        for line in lines_in_order(study, block):
            runs = study.runs_of(line)
            row = {**dict(block), **heading(study, line), "runs": " ".join(run.name for run in runs)}
            for measure, there in study.final(line).items():
                row |= cells(measure, there)
            rows.append(row)
    first = [
        *study.keys,
        *once(name for line in study.lines for name, _ in (*line.block, *line.labels)),
        "step",
        "runs",
    ]
    return csv_text(rows, first)


def cells(measure: str, there: Estimate) -> Row:
    low, high = (None if end != end else end for end in (there.interval.low, there.interval.high))
    return {measure: there.mean, f"{measure}_low": low, f"{measure}_high": high, f"{measure}_n": there.count}


def tidy(studies: Sequence[Study], choice: Choice) -> str:
    """Every selected row of every run with its swept keys, for pandas."""
    keys = once(key for study in studies for key in study.keys)
    labels = once(name for study in studies for run in study.runs for name in run.labels)
    rows = []
    for study in studies:
        for run in study.runs:
            own = {
                "experiment": study.experiment,
                "run": run.name,
                "finished": run.finished,
                "seed": run.keys.get("seed"),
            }
            own |= {key: csv_value(there[run.name]) for key, there in study.table.items()}
            rows += [own | row for row in run.rows if selected(run, row, choice.where)]
    return csv_text(rows, ["experiment", "run", "finished", "seed", *keys, *labels, "step"])


def csv_value(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else text(value)


def csv_text(rows: Sequence[Row], first: Sequence[str] = ()) -> str:
    there = tables.columns(rows)
    columns = [*(name for name in once(first) if name in there), *(name for name in there if name not in first)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row.get(name) is None else row[name] for name in columns])
    return file.getvalue()


def run_rows(runs: Sequence[Run], broken: Sequence[Broken], studies: Sequence[Study], used: Sequence[Run]) -> list[Row]:
    """A row for each run folder: what it was, in which state, where and when."""
    every = once(key for study in studies for key in study.keys if key not in AROUND)
    tables_of = {run.name: study.table for study in studies for run in study.runs}
    seeds = len({run.keys.get("seed") for run in runs}) > 1
    rows: list[Row] = []
    for run in runs:
        row: Row = {"run": run.name, "experiment": run.experiment, "state": state(run, used)}
        table = tables_of.get(run.name, {})
        row |= {key: csv_value(table[key][run.name]) if key in table else None for key in every}
        row |= {"seed": run.keys.get("seed")} if seeds else {}
        row |= {"rows": len(run.rows), "started": run.environment.get("started"), "commit": run.commit}
        rows.append(row | {"device": run.device})
    return [*rows, *({"run": each.name, "state": f"broken: {each.reason}"} for each in broken)]


def state(run: Run, used: Sequence[Run]) -> str:
    if run.finished:
        return "finished"
    return "unfinished" if any(run is other for other in used) else "unfinished, not used"
