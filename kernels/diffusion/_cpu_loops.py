"""The loops of the `cpu` backend, compiled by Numba: one channel of one image at a time, which stays in the cache, so
that all steps cost what one pass over the memory costs. Every inner loop has unit stride and vectorises.

An axis of the grid is a table by pixel: the first cell that a pixel lies in, and the share of the pixel in it; the rest
of the pixel lies in the next cell.
"""

from __future__ import annotations

from collections import namedtuple

import numba
import numpy as np

from kernels._cpu_borrow import borrow
from kernels._cpu_device import empty

# One image. across and down (H, W): to the next pixel and to the one below, 0 where there is none; valid (h, w), the
# share that a cell gives back; row_cell, row_part: first cell of every pixel row, and how much of the row lies in it;
# col_part: likewise; col_start (w + 1): of every cell the first pixel column that begins in it; area: pixels a cell;
# steps (n, 3): keep, momentum and rate of every step (`kernels.diffusion._schedule`).
Problem = namedtuple("Problem", "across down valid row_cell row_part col_start col_part area steps")
# Scratch of one thread. plane (H, W): an iterate; rows (2, more than W): the row that flows and the one below it, by
# turns; falling (W,): what flows into the row from above; columns (h, W): sums over the pixels of every row of cells;
# lacking (h, w): of the last step; given (2, h, W): what every row of cells gives to its pixels, of the last two steps
# by turns; nothing (h, w): zeros.
Work = namedtuple("Work", "plane rows falling columns lacking given nothing")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
ZERO, ONE = np.float32(0), np.float32(1)
VECTOR = 8  # numbers; rows of scratch start with one, and end one later than needed: they are read one pixel too far


def make_work(height: int, width: int, rows: int, cols: int) -> Work:
    """Scratch memory for one thread."""
    work = Work(
        plane=empty(height, width),
        rows=empty(2, (width // VECTOR + 2) * VECTOR),
        falling=empty(width),
        columns=empty(rows, width),
        lacking=np.empty((rows, cols), np.float32),
        given=empty(2, rows, width),
        nothing=np.zeros((rows, cols), np.float32),
    )
    work.rows[:] = 0  # what nothing flows to must be finite all the same
    return work


@compiled
def diffuse_planes(problem, work, out, signal):
    """All steps of `kernels.diffusion.reference.diffuse` in place: out (C, H, W), signal (C, h, w).

    What cells lack after a step is not added to its result but to the rows that the next steps make of it.
    """
    problem, work = _borrow_problem(problem), _borrow_work(work)
    out, signal = borrow(out), borrow(signal)
    for channel in range(len(out)):
        x, other = out[channel], work.plane
        other[:] = ZERO
        work.given[:] = ZERO
        for k in range(len(problem.steps)):
            _step(x, other, work.given[k % 2], work.given[(k + 1) % 2], problem.steps[k], problem, work)
            _ask(problem, work, signal[channel], work.given[(k + 1) % 2])
            x, other = other, x
        _give(x, work.given[len(problem.steps) % 2], problem, out[channel])


@compiled
def transposed_planes(problem, work, out, d_signal):
    """The gradient of `diffuse_planes` in place: out (C, H, W), from that of the result to that of the start.

    `problem.steps` are those of the transpose. Between them cells lack what makes their averages 0, and the sum of that
    is the gradient of the signal, d_signal (C, h, w).
    """
    problem, work = _borrow_problem(problem), _borrow_work(work)
    out, d_signal = borrow(out), borrow(d_signal)
    for channel in range(len(out)):
        x, other = out[channel], work.plane
        other[:] = ZERO
        work.given[:] = ZERO
        d_signal[channel] = ZERO
        _sum_rows(x, problem, work.columns)
        for k in range(len(problem.steps)):
            _ask(problem, work, work.nothing, work.given[k % 2])
            for i in range(work.lacking.shape[0]):
                for j in range(work.lacking.shape[1]):
                    d_signal[channel, i, j] -= problem.area * work.lacking[i, j]
            _step(x, other, work.given[k % 2], work.given[(k + 1) % 2], problem.steps[k], problem, work)
            x, other = other, x
        out[channel] = x


@compiled
def _step(x, result, given, given_before, by, problem, work):
    """One pass over a plane: `result`, which is the iterate before `x`, becomes the one after it.

    Both are without what their cells give: `given`, `given_before`. `work.columns` become the sums of the result.
    """
    # Slices of rows and functions of them would be easier to read, and count references: 30 calls a row.
    height, width = x.shape
    keep, momentum, rate = by[0], by[1], by[2]
    across, down, row_cell, row_part = problem.across, problem.down, problem.row_cell, problem.row_part
    rows, falling, columns = work.rows, work.falling, work.columns
    falling[:] = ZERO
    columns[:] = ZERO
    for ahead in range(height + 1):
        i, here, below = ahead - 1, (ahead + 1) % 2, ahead % 2
        if ahead < height:  # what flows: the row and what its cells give
            cell, part = row_cell[ahead], row_part[ahead]
            for j in range(width):
                rows[below, j] = x[ahead, j] + part * given[cell, j]
            if part < ONE:
                for j in range(width):
                    rows[below, j] += (ONE - part) * given[cell + 1, j]
        if i < 0:
            continue
        cell, part = row_cell[i], row_part[i]
        if part < ONE:
            for j in range(width):
                result[i, j] += (ONE - part) * given_before[cell + 1, j]
        left = ZERO
        for j in range(width):  # each flow is computed once for both pixels
            y = rows[here, j]
            right = across[i, j] * (rows[here, j + 1] - y)
            fallen = down[i, j] * (rows[below, j] - y)
            moved = y - (result[i, j] + part * given_before[cell, j])
            result[i, j] = keep * y + momentum * moved + rate * ((right - left) + (fallen - falling[j]))
            left, falling[j] = right, fallen
        for j in range(width):
            columns[cell, j] += part * result[i, j]
        if part < ONE:
            for j in range(width):
                columns[cell + 1, j] += (ONE - part) * result[i, j]


@compiled
def _give(x, given, problem, out):
    """`x` with what its rows of cells give."""
    for i in range(x.shape[0]):
        cell, part = problem.row_cell[i], problem.row_part[i]
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + part * given[cell, j]
        if part < ONE:
            for j in range(x.shape[1]):
                out[i, j] += (ONE - part) * given[cell + 1, j]


@compiled
def _sum_rows(x, problem, columns):
    """Sums over the pixels of every row of cells, column by column."""
    columns[:] = ZERO
    for i in range(x.shape[0]):
        cell, part = problem.row_cell[i], problem.row_part[i]
        for j in range(x.shape[1]):
            columns[cell, j] += part * x[i, j]
        if part < ONE:
            for j in range(x.shape[1]):
                columns[cell + 1, j] += (ONE - part) * x[i, j]


@compiled
def _ask(problem, work, wanted, given):
    """What cells lack of what is wanted, from the sums in `work.columns`, and what that gives to their pixels."""
    cells = work.lacking
    _sum_columns(work.columns, problem, cells)
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            cells[i, j] = problem.valid[i, j] * (wanted[i, j] - cells[i, j])
    _widen(cells, problem, given)


@compiled
def _sum_columns(columns, problem, cells):
    """Averages over the cells from the sums over their rows."""
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            first, last = problem.col_start[j], problem.col_start[j + 1]
            total = (ONE - problem.col_part[first - 1]) * columns[i, first - 1] if first > 0 else ZERO
            some, parts = columns[i, first:last], problem.col_part[first:last]
            for k in range(len(some)):
                total += parts[k] * some[k]
            cells[i, j] = total / problem.area


@compiled
def _widen(cells, problem, columns):
    """(h, w) -> (h, W): the value of every cell in each of its columns."""
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            first, last = problem.col_start[j], problem.col_start[j + 1]
            if first > 0:
                columns[i, first - 1] += (ONE - problem.col_part[first - 1]) * cells[i, j]
            some, parts = columns[i, first:last], problem.col_part[first:last]
            for k in range(len(some)):
                some[k] = parts[k] * cells[i, j]


@compiled
def _borrow_problem(problem):
    return Problem(
        borrow(problem.across),
        borrow(problem.down),
        borrow(problem.valid),
        borrow(problem.row_cell),
        borrow(problem.row_part),
        borrow(problem.col_start),
        borrow(problem.col_part),
        problem.area,
        borrow(problem.steps),
    )


@compiled
def _borrow_work(work):
    return Work(
        borrow(work.plane),
        borrow(work.rows),
        borrow(work.falling),
        borrow(work.columns),
        borrow(work.lacking),
        borrow(work.given),
        borrow(work.nothing),
    )
