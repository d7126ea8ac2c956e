"""What the runs of one experiment say together: the keys in which they differ, and means over images.

A *setting* is what a run was run with: the values of all swept keys. Runs of one setting (its seeds) are pooled: the
values that they have for one image are averaged before images are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiments._report_measures import (
    METHOD,
    OWN_UNITS,
    REFERENCE,
    Pair,
    direction,
    is_cost,
    is_number,
    of_several,
    varying_measures,
    with_ratios,
)
from experiments._report_runs import Run
from ua import plugins
from ua.statistics import Interval, bootstrap_mean
from ua.tracking import Row

UNITS = ("scene", "image")  # what is resampled, the first that rows have: views of a scene are not independent
SIGNAL = "signal"
FACTORS = (METHOD, "guide", "scale", "regime")  # what experiments are about: means are never taken over them unasked
OF_IMAGES = ("dataset", "split")  # what kind of image it is, and no condition that it was measured under
READABLE = 40  # combinations of other labels that a person may still want to read
ABSENT = "absent"
SCORE = "score"
AROUND = ("commit", "device")  # differ without being asked to

Setting = tuple[str, ...]
Labels = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Choice:
    """What to read out of the rows; see `experiments.report.Config`."""

    measures: Sequence[str] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    by: Sequence[str] = ()
    pool: Sequence[str] = ("seed",)  # keys and labels
    better: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """What one row of a table and one curve of a plot are about.

    Attributes:
        setting: None where all settings gave the same (a baseline that no swept key touches).
        block: labels that tables are apart by. labels: those that tell lines of one table apart.
    """

    setting: Setting | None
    block: Labels
    labels: Labels


@dataclass(frozen=True)
class Estimate:
    """A mean over images (scenes, runs) with its 95 % bootstrap interval; `members`: the mean on each of them."""

    interval: Interval
    members: Mapping[Hashable, float] = field(repr=False)

    @property
    def mean(self) -> float:
        return self.interval.mean

    @property
    def count(self) -> int:
        return len(self.members)


@dataclass
class Study:
    """All runs of one experiment.

    Attributes:
        table: key -> run name -> value, of the keys in which the runs differ, commit and device among them.
        axes: those of them that are worth an axis; the others change together with one of these.
        values: key -> its values in order, as text.
        numbers: key -> the same as numbers, for keys that have nothing else.
        settings: setting -> its runs.
        measures: value columns, in their order.
        better: measure -> "min", "max" or "" where nothing is known.
        unit: what is resampled: "scene", "image" or "run".
        averaged: label -> values, of the labels that vary and are averaged over, signals aside.
        mixed: measures that several signals have and that are averaged over these.
        constant: label -> its one value.
        lines: line -> step (None where there is none) -> measure -> estimate.
        dropped: how many values were not finite, and are left out.
    """

    experiment: str
    runs: list[Run]
    table: dict[str, dict[str, Any]]
    axes: list[str]
    values: dict[str, list[str]]
    numbers: dict[str, list[float]]
    settings: dict[Setting, list[Run]]
    measures: list[str]
    better: dict[str, str]
    unit: str
    averaged: dict[str, list[Any]]
    mixed: list[str]
    constant: dict[str, Any]
    lines: dict[Line, dict[int | None, dict[str, Estimate]]]
    dropped: int

    @property
    def keys(self) -> list[str]:
        return [*self.table]

    def place(self, line: Line) -> dict[str, str]:
        """Key -> value of a line, nothing where it belongs to no setting."""
        return dict(zip(self.table, line.setting or (), strict=False))

    def short(self, key: str) -> str:
        """The last word of a swept key, where no other one ends like it."""
        last = key.rpartition(".")[2]
        return last if sum(other.rpartition(".")[2] == last for other in self.keys) == 1 else key

    @property
    def blocks(self) -> list[Labels]:
        return once(line.block for line in self.lines)

    @property
    def main(self) -> str:
        """The measure that settings are ordered by: the first with a direction that is no cost."""
        directed = [name for name in self.measures if self.better[name]]
        return next((name for name in directed if not is_cost(name)), (directed or self.measures)[0])

    def look(self, key: str, value: str) -> str:
        """A value of a swept key for people: 3 significant digits, more only where two would look the same."""
        if key not in self.numbers:
            return value
        for digits in range(3, 10):
            looks = [rounded(number, digits) for number in self.numbers[key]]
            look = looks[self.values[key].index(value)]
            if looks.count(look) == 1:
                return look
        return value

    def within(self, block: Labels) -> list[Line]:
        return [line for line in self.lines if line.block == block]

    def about(self, line: Line) -> str:
        """What a line is, in words: its swept keys, and its labels where those tell lines apart."""
        place = self.place(line)
        keys = [f"{self.short(key)} {self.look(key, place[key])}" for key in self.axes if key in place]
        alone = bool(keys) and len(once(other.labels for other in self.lines if other.setting is not None)) == 1
        return ", ".join([*keys, *([named(line.labels)] if line.labels and not alone else [])]) or "mean"

    def runs_of(self, line: Line) -> list[Run]:
        """The runs that a line is pooled from."""
        every = [run for runs in self.settings.values() for run in runs]
        return every if line.setting is None else self.settings[line.setting]

    def last(self, line: Line) -> int | None:
        """The greatest step of a line, None where it has none."""
        return max((step for step in self.lines[line] if step is not None), default=None)

    def final(self, line: Line) -> dict[str, Estimate]:
        """The estimates at the last step."""
        return self.lines[line][self.last(line)]


def studies(runs: Sequence[Run], choice: Choice) -> list[Study]:
    """One study for each experiment that has rows left.

    Raises:
        ValueError: a name in `choice` that no run knows, or a selection that leaves no row.
    """
    check(runs, choice)
    found = []
    for experiment in once(run.experiment for run in runs):
        members = [run for run in runs if run.experiment == experiment]
        study = one_study(experiment, members, choice)
        if study is not None:
            found.append(study)
    if not found and any(run.rows for run in runs):
        raise ValueError(f"where={dict(choice.where)}: no row of any run is like that")
    return found


def scores(study: Study) -> Study | None:
    """The same settings with `score` of the runs' summaries as their only measure, None where none is there."""
    lines: Lines = {}
    for setting, runs in study.settings.items():
        members: dict[Hashable, list[float]] = {run.name: [run.score] for run in runs if run.score is not None}
        if members:
            lines[Line(setting, (), ())] = {None: {SCORE: estimate(members)}}
    if not lines:
        return None
    only: dict[str, Any] = {"measures": [SCORE], "better": {SCORE: "min"}, "unit": "run", "lines": lines}
    nothing: dict[str, Any] = {"averaged": {}, "mixed": [], "constant": {}, "dropped": 0}
    return replace(study, experiment=f"{study.experiment} {SCORE}", **only, **nothing)


def check(runs: Sequence[Run], choice: Choice) -> None:
    """Refuses names that no run knows: a typo would otherwise select nothing, or everything."""
    labels = once(name for run in runs for name in run.labels)
    measures = once(name for run in runs for name in run.measures)
    keys = once(name for run in runs for name in run.keys)
    if not any(run.rows for run in runs):
        labels = measures = [*choice.measures, *choice.better, *choice.by]  # nothing to compare with
    for argument, given, accepted in (
        ("measure in measures", choice.measures, measures),
        ("measure in better", choice.better, measures),
        ("label in by", choice.by, labels),
        ("key or label in pool", choice.pool, ["seed", *keys, *labels]),
    ):
        for name in given:
            if name not in accepted:
                raise ValueError(plugins.unknown(argument, name, accepted))
    for name, which in choice.better.items():
        if which not in ("min", "max"):
            raise ValueError(plugins.unknown(f"direction in better.{name}", which, ("min", "max")))
    for name, wanted in choice.where.items():
        if name not in (*labels, "step", *keys):
            raise ValueError(plugins.unknown("label or key in where", name, [*labels, "step", *keys]))
        there = once(value for run in runs for value in [run.keys.get(name), *(row.get(name) for row in run.rows)])
        texts = [text(value) for value in there if value is not None]
        for value in listed(wanted):
            if text(value) not in texts:
                raise ValueError(plugins.unknown(f"value in where.{name}", value, texts))


@dataclass(frozen=True)
class Selection:
    """The rows of one experiment that count, errors as ratios, and the measures to read; better: as in `Choice`."""

    pairs: list[Pair]
    measures: list[str]
    better: Mapping[str, str]


def selection(runs: Sequence[Run], choice: Choice) -> Selection:
    pairs = [(run, row) for run in runs for row in run.rows if selected(run, row, choice.where)]
    columns = once(name for run in runs for name in run.measures)
    pairs, called = with_ratios(pairs, [name for name in columns if name.endswith(OWN_UNITS)])
    columns = [called.get(name, name) for name in columns]
    results = [name for name in columns if not name.endswith(f"_{REFERENCE}")] or columns
    chosen = [called.get(name, name) for name in choice.measures] or varying_measures(results, pairs)
    better = {called.get(name, name): which for name, which in choice.better.items()}
    return Selection(pairs, [name for name in columns if name in chosen], better)


def one_study(experiment: str, runs: list[Run], choice: Choice) -> Study | None:
    """The study of runs of one experiment, None where nothing is left that was measured."""
    there = selection(runs, choice)
    rows = [row for _, row in there.pairs]
    kept = [run for run in runs if any(other is run for other, _ in there.pairs)]
    table = swept(kept, choice.pool)
    setting = {run.name: tuple(text(values[run.name]) for values in table.values()) for run in kept}
    values = {key: ordered(of_runs.values()) for key, of_runs in table.items()}
    texts = {key: [text(value) for value in found] for key, found in values.items()}

    labels = once(name for run in runs for name in run.labels)
    apart, unit = kept_apart(rows, labels, there.measures, choice)
    block = [name for name in apart if name != METHOD] if METHOD in apart and unit != "run" else []
    in_block = [name for name in apart if name not in block]
    found, dropped = samples(there.pairs, setting, block, in_block, unit, there.measures)
    lines = estimates(with_references(found), place(rows, [*texts.values()], block, in_block))
    lines = of_measures(lines, there.measures if choice.measures else telling(there.measures, lines))
    if not lines:
        return None
    measures = measured(there.measures, lines, unit)
    seen = {name: ordered(row[name] for row in rows if name in row) for name in labels if name not in UNITS}
    return Study(
        experiment=experiment,
        runs=kept,
        table=table,
        axes=axes_of(table, kept),
        values=texts,
        numbers={key: [*map(float, found)] for key, found in values.items() if all(map(is_number, found))},
        settings={each: [run for run in kept if setting[run.name] == each] for each in dict.fromkeys(setting.values())},
        measures=measures,
        better={name: there.better.get(name, direction(name)) for name in measures},
        unit=unit,
        averaged={name: many for name, many in seen.items() if len(many) > 1 and name not in (*apart, SIGNAL)},
        mixed=[] if SIGNAL in apart else of_several(SIGNAL, measures, rows),
        constant={name: many[0] for name, many in seen.items() if len(many) == 1},
        lines=lines,
        dropped=dropped,
    )


def measured(measures: Sequence[str], lines: Lines, unit: str) -> list[str]:
    """The measures that lines have; costs after scores, in benchmarks in their own order."""
    there = {name for steps in lines.values() for each in steps.values() for name in each}
    return sorted((name for name in measures if name in there), key=lambda name: unit != "run" and is_cost(name))


def of_measures(lines: Lines, measures: Sequence[str]) -> Lines:
    """Only these measures; without steps, and lines, that have none of them."""
    found = {}
    for line, steps in lines.items():
        there = {step: {name: each[name] for name in measures if name in each} for step, each in steps.items()}
        if there := {step: each for step, each in there.items() if each}:
            found[line] = there
    return found


def telling(measures: Sequence[str], lines: Lines) -> list[str]:
    """The measures without those that are no score and the same in all lines of a block: images decide them alone."""
    return [name for name in measures if direction(name) or not same_in_blocks(name, lines)] or [*measures]


def same_in_blocks(measure: str, lines: Lines) -> bool:
    means: dict[Labels, list[str]] = {}
    for line, steps in lines.items():
        means.setdefault(line.block, []).extend(text(each[measure].mean) for each in steps.values() if measure in each)
    return any(len(there) > 1 for there in means.values()) and all(len(set(there)) <= 1 for there in means.values())


def selected(run: Run, row: Row, where: Mapping[str, Any]) -> bool:
    """Whether a row is wanted. A label that it lacks, or a key that its run lacks, says nothing against it."""
    for name, wanted in where.items():
        value = row.get(name, run.keys.get(name))
        if value is not None and text(value) not in [text(one) for one in listed(wanted)]:
            return False
    return True


def swept(runs: Sequence[Run], pool: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Key -> run name -> value, of every key in which runs differ; commit and device where those differ.

    A group that was exchanged as a whole (`baseline=jbu` for `baseline=bilinear`) is one key.
    """
    names = once(name for run in runs for name in run.keys)
    names = [name for name in names if name not in ("module", *pool) and not name.startswith("logger.")]
    names = once(in_all(name, runs) for name in names)
    table = {name: values_of(name, runs) for name in names}
    around: dict[str, dict[str, Any]] = {
        "commit": {run.name: run.commit for run in runs},
        "device": {run.name: run.device for run in runs},
    }
    return {name: there for name, there in {**around, **table}.items() if len(once(there.values())) > 1}


def in_all(name: str, runs: Sequence[Run]) -> str:
    """A key, or the nearest group above it that every run has, where some lack the key."""
    group = name
    while group and not all(below(run, group) for run in runs):
        group = group.rpartition(".")[0]
    return group or name


def below(run: Run, group: str) -> dict[str, Any]:
    """The keys of a run that are `group` or lie in it."""
    return {name: value for name, value in run.keys.items() if f"{name}.".startswith(f"{group}.")}


def values_of(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Run name -> value of a key; of a group the names in it, with their values where those differ as well."""
    if not any(len(below(run, name)) > 1 or name not in run.keys for run in runs):
        return {run.name: run.keys[name] for run in runs}
    parts = {run.name: {key[len(name) + 1 :]: value for key, value in below(run, name).items()} for run in runs}
    full = {run: ", ".join(f"{key} {text(value)}" for key, value in there.items()) for run, there in parts.items()}
    brief = {run: ", ".join(once(key.split(".")[0] for key in there)) for run, there in parts.items()}
    same = len(set(brief.values())) == len(set(full.values()))
    return {run: (brief if same else full)[run] or ABSENT for run in parts}


def axes_of(table: Mapping[str, Mapping[str, Any]], runs: Sequence[Run]) -> list[str]:
    """The keys that are worth an axis: of keys that change together one, and no commit or device that others decide."""
    keys = [key for key in table if key not in AROUND]
    texts = {key: [text(table[key][run.name]) for run in runs] for key in table}
    count = len(set(zip(*(texts[key] for key in table), strict=True)))
    groups: list[list[str]] = []
    for key in keys:
        group = next((group for group in groups if together(group[0], key, texts, table, count)), None)
        if group is None:
            groups.append([key])
        else:
            group.append(key)
    axes = [min(group, key=lambda key: max(map(len, texts[key]))) for group in groups]
    for key in (key for key in table if key in AROUND):
        without = {tuple(texts[axis][place] for axis in axes) for place in range(len(runs))}
        beside = {tuple(texts[axis][place] for axis in (*axes, key)) for place in range(len(runs))}
        axes += [key] if len(beside) > len(without) else []
    return axes


def together(
    first: str, second: str, texts: Mapping[str, list[str]], table: Mapping[str, Mapping[str, Any]], count: int
) -> bool:
    """Whether two keys always change together; numbers that are all different may come from a random search."""
    one, other = texts[first], texts[second]
    pairs = set(zip(one, other, strict=True))
    if not len(pairs) == len(set(one)) == len(set(other)):
        return False
    numeric = all(is_number(value) for key in (first, second) for value in table[key].values())
    return len(pairs) < count or count == 2 or not numeric


def kept_apart(
    rows: Sequence[Row], labels: Sequence[str], measures: Sequence[str], choice: Choice
) -> tuple[list[str], str]:
    """The labels that means are not taken over, and what is resampled.

    Without `by`, `FACTORS` are always kept apart; signals unless their scores tell them apart; data sets where errors
    have units of their own; other labels as long as the unit does not decide them and a person can read them.
    """
    unit = next((name for name in UNITS if any(name in row for row in rows)), "run")
    if choice.by:
        return [name for name in labels if name in choice.by], unit
    free = [name for name in labels if name not in (*UNITS, *choice.pool)]
    varying = [name for name in free if len({row.get(name) for row in rows}) > 1]
    if unit == "run":
        return varying, unit
    scores = [name for name in measures if direction(name) and not is_cost(name)]
    absolute = [name for name in measures if name.endswith(OWN_UNITS)]
    always = {*FACTORS}
    always |= {SIGNAL} if of_several(SIGNAL, scores, rows) else set()
    always |= {"dataset"} if of_several("dataset", absolute, rows) else set()
    others = [name for name in varying if name not in (*always, *OF_IMAGES, SIGNAL) and not decided(name, unit, rows)]
    readable: list[str] = []
    for name in sorted(others, key=lambda name: len({row.get(name) for row in rows})):
        if len({tuple(row.get(one) for one in (*readable, name)) for row in rows}) <= READABLE:
            readable.append(name)
    return [name for name in varying if name in (*always, *readable)], unit


def decided(label: str, unit: str, rows: Sequence[Row]) -> bool:
    """Whether every image or scene (`unit`) has one value of a label."""
    seen: dict[Any, Any] = {}
    return all(seen.setdefault(row.get(unit), row.get(label)) == row.get(label) for row in rows)


Lines = dict[Line, dict[int | None, dict[str, Estimate]]]
Samples = dict[str, dict[Hashable, list[float]]]  # measure -> image, scene or run -> values


def samples(
    pairs: Sequence[Pair],
    setting: Mapping[str, Setting],
    block: Sequence[str],
    apart: Sequence[str],
    unit: str,
    measures: Sequence[str],
) -> tuple[dict[Line, dict[int | None, Samples]], int]:
    """Line -> step -> what was measured, and how many values were not finite."""
    found: dict[Line, dict[int | None, Samples]] = {}
    dropped = 0
    for run, row in pairs:
        line = Line(setting[run.name], labels_of(row, block), labels_of(row, apart))
        there = found.setdefault(line, {}).setdefault(row.get("step"), {})
        member = run.name if unit == "run" else row.get(unit, run.name)
        for name in measures:
            value = row.get(name)
            if value is None or not is_number(value):
                continue
            if math.isfinite(value):
                there.setdefault(name, {}).setdefault(member, []).append(value)
            else:
                dropped += 1
    return found, dropped


def estimates(found: Mapping[Line, Mapping[int | None, Samples]], order: Callable[[Line], Any]) -> Lines:
    """Line -> step -> measure -> estimate, lines in their order, rows without a step first."""
    lines = {}
    for line in sorted(found, key=order):
        steps = sorted(found[line], key=lambda step: (step is not None, step or 0))
        lines[line] = {step: {name: estimate(there) for name, there in found[line][step].items()} for step in steps}
    return lines


def estimate(members: Mapping[Hashable, Sequence[float]]) -> Estimate:
    """The mean over images, each the mean of what was measured on it."""
    means = {member: sum(values) / len(values) for member, values in members.items()}
    return Estimate(bootstrap_mean([*means.values()]), means)


def with_references(found: dict[Line, dict[int | None, Samples]]) -> dict[Line, dict[int | None, Samples]]:
    """The same with lines that are equal in every setting, apart from what they cost, made one of no setting."""
    alike: dict[tuple[Labels, Labels], list[Line]] = {}
    for line in found:
        alike.setdefault((line.block, line.labels), []).append(line)
    same = [lines for lines in alike.values() if len(lines) > 1 and equal([found[line] for line in lines])]
    if len(same) == len(alike):  # nothing depends on any key: shown as it was measured
        return found
    result = dict(found)
    for lines in same:
        for line in lines:
            del result[line]
        merged: dict[int | None, Samples] = {}
        for line in lines:
            for step, samples in found[line].items():
                for name, members in samples.items():
                    for member, values in members.items():
                        merged.setdefault(step, {}).setdefault(name, {}).setdefault(member, []).extend(values)
        result[Line(None, lines[0].block, lines[0].labels)] = merged
    return result


def equal(each: Sequence[Mapping[int | None, Samples]]) -> bool:
    """Whether these measurements are the same, costs aside."""
    first, *others = [
        {
            (step, name, member): sum(values) / len(values)
            for step, samples in one.items()
            for name, members in samples.items()
            if not is_cost(name)
            for member, values in members.items()
        }
        for one in each
    ]
    return bool(first) and all(
        other.keys() == first.keys() and all(math.isclose(other[key], first[key], rel_tol=1e-6) for key in first)
        for other in others
    )


def place(
    rows: Sequence[Row], values: Sequence[Sequence[str]], block: Sequence[str], apart: Sequence[str]
) -> Callable[[Line], tuple[Any, ...]]:
    """The order of lines: blocks by their values, what all settings share last, settings by their values."""
    ranks = {name: ordered(row.get(name) for row in rows) for name in (*block, *apart)}

    def rank(labels: Labels, names: Sequence[str]) -> tuple[int, ...]:
        there = dict(labels)
        return tuple(ranks[name].index(there.get(name)) for name in names)

    def key(line: Line) -> tuple[Any, ...]:
        setting = () if line.setting is None else line.setting
        order = tuple(there.index(value) for there, value in zip(values, setting, strict=False))
        return rank(line.block, block), line.setting is None, order, rank(line.labels, apart)

    return key


def named(labels: Labels) -> str:
    """Labels in words: a method by its name alone."""
    return ", ".join(text(value) if name == METHOD else f"{name} {text(value)}" for name, value in labels)


def labels_of(row: Row, names: Sequence[str]) -> Labels:
    return tuple((name, row[name]) for name in names if name in row)


def text(value: Any) -> str:
    """A value as people write it: 16 for 16.0, [a, b] for a list."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return "none" if value is None else str(value)


def rounded(number: float, digits: int) -> str:
    """So many significant digits, whole numbers as they are."""
    if number.is_integer() and abs(number) < 1e10:
        return str(int(number))
    return f"{number:.{digits}g}" if abs(number) < 10**digits else f"{number:.0f}"


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def once(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they first come."""
    seen: dict[str, Any] = {}
    for value in values:
        seen.setdefault(text(value), value)
    return list(seen.values())


def ordered(values: Iterable[Any]) -> list[Any]:
    """Each value once: numbers by size, then the others in the order in which they first come."""
    there = once(values)
    numbers = sorted(value for value in there if is_number(value))
    return [*numbers, *(value for value in there if not is_number(value))]
