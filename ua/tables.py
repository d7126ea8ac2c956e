"""Tables for papers and pages: the same rows as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def markdown(
    rows: Sequence[Mapping[str, Any]],
    *,
    formats: Mapping[str, str] | None = None,
    best: Mapping[str, str] | None = None,
    caption: str = "",
) -> str:
    """A Markdown table, numbers to the right, the best of a column in bold.

    Args:
        rows: column name -> value; a column that a row lacks is shown as a dash, as None and NaN are.
        formats: column -> format specification, e.g. {"psnr": ".2f"}; numbers without one are shown as they are.
        best: column -> "max" or "min": which value is set in bold, with all that look equal to it (unless that is
            every one).
        caption: a line above the table.

    Raises:
        ValueError: no rows, or another word in `best`.
    """
    names, cells, bold = _cells(rows, formats or {}, best or {})
    lines = [f"{caption}\n"] if caption else []
    text = [
        [f"**{cell}**" if strong else cell for cell, strong in zip(*pair, strict=True)]
        for pair in zip(cells, bold, strict=True)
    ]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in [names, *text]]
    widths = [max(3, *(len(line[column]) for line in escaped)) for column in range(len(names))]
    right = _numeric(rows, names)
    for number, line in enumerate(escaped):
        padded = [
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(line, widths, right, strict=True)
        ]
        lines.append(f"| {' | '.join(padded)} |")
        if number == 0:
            rules = [
                "-" * (width - 1) + (":" if aligned else "-") for width, aligned in zip(widths, right, strict=True)
            ]
            lines.append(f"| {' | '.join(rules)} |")
    return "\n".join(lines) + "\n"


def latex(
    rows: Sequence[Mapping[str, Any]],
    *,
    formats: Mapping[str, str] | None = None,
    best: Mapping[str, str] | None = None,
    caption: str = "",
    label: str = "",
) -> str:
    """The same table as a LaTeX float; needs the booktabs package. Arguments and errors as for `markdown`.

    `label` is what \\ref takes; no label where it is empty.
    """
    names, cells, bold = _cells(rows, formats or {}, best or {})
    text = [
        [rf"\textbf{{{_escape(cell)}}}" if strong else _escape(cell) for cell, strong in zip(*pair, strict=True)]
        for pair in zip(cells, bold, strict=True)
    ]
    alignment = "".join("r" if right else "l" for right in _numeric(rows, names))
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        *([rf"  \caption{{{_escape(caption)}}}"] if caption else []),
        *([rf"  \label{{{label}}}"] if label else []),
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        rf"    {' & '.join(_escape(name) for name in names)} \\",
        r"    \midrule",
        *(rf"    {' & '.join(line)} \\" for line in text),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all columns in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _cells(
    rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str], best: Mapping[str, str]
) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Column names, the text of every cell, and whether it is the best of its column."""
    if not rows:
        raise ValueError("rows: a table needs at least one")
    names = columns(rows)
    cells = [[_text(row.get(name), formats.get(name, "")) for name in names] for row in rows]
    bold = [[False] * len(names) for _ in rows]
    for name, which in best.items():
        if which not in ("min", "max"):
            raise ValueError(f"best[{name!r}]: accepted are 'min' and 'max', got {which!r}")
        numbers = [row[name] for row in rows if _is_number(row.get(name))]
        if not numbers:
            continue
        winner = _text((min if which == "min" else max)(numbers), formats.get(name, ""))
        column = names.index(name)
        if all(line[column] in (winner, "-") for line in cells):
            continue  # nothing to choose between
        for line, marks in zip(cells, bold, strict=True):
            marks[column] = line[column] == winner
    return names, cells, bold


def _text(value: Any, specification: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, specification) if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _numeric(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[bool]:
    """Columns whose values are all numbers or missing: they are aligned to the right."""
    return [all(row.get(name) is None or isinstance(row[name], int | float) for row in rows) for name in names]


def _escape(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)
