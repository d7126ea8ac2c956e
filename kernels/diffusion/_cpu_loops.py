"""The loops of the `cpu` backend, compiled by Numba: one channel of one image at a time, which stays in the cache, so
that all steps cost what one pass over the memory costs. Every inner loop has unit stride and vectorises.

Columns are a table by pixel: the first cell that a pixel lies in, and the share of the pixel in it; the rest of the
pixel lies in the next cell. Rows are a table of runs: rows in succession of which this is the same.
"""

from __future__ import annotations

from collections import namedtuple

import numba
import numpy as np

from kernels._cpu_borrow import apart, borrow
from kernels._cpu_device import empty

# One image. across and down (H, W): to the next pixel and to the one below, 0 where there is none; valid (h, w), the
# share that a cell gives back; run (H), the run of every row; run_cell, run_part (R): first cell of every run, and how
# much of each row lies in it; col_part (W): likewise of every column; col_start (w + 1): of every cell the first pixel
# column that begins in it; area: pixels a cell; steps (n, 3): keep, momentum and rate of every step
# (`kernels.diffusion._schedule`).
Problem = namedtuple("Problem", "across down valid run run_cell run_part col_start col_part area steps")
# Scratch of one thread. plane (H, W): an iterate; rows (2, more than W): the row that flows and the one below it, by
# turns; falling (W,): what flows into the row from above; sums (R, more than W): of the rows of every run; columns
# (h, W): of every row of cells, and then what these give; lacking (h, w): of the last step; given (2, R, more than W):
# what every run gets, of the last two steps by turns; nothing (h, w): zeros.
Work = namedtuple("Work", "plane rows falling sums columns lacking given nothing")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
ZERO, ONE = np.float32(0), np.float32(1)
ROWS = 4  # of cells that are summed up side by side
BEFORE = np.uint64(1)  # Numba lets signed numbers count from the end, which asks a question of every place
VECTOR = 8  # numbers; rows of scratch start with one, and end one later than needed: they are read one pixel too far


def make_work(height: int, width: int, rows: int, cols: int, runs: int) -> Work:
    """Scratch memory for one thread."""
    # An odd number of vectors: rows of scratch then lie at many places of a page. Of too many at one place, as where
    # rows fill pages, the first-level cache keeps none.
    wide = (width // VECTOR + 2 | 1) * VECTOR
    whole = -(-rows // ROWS) * ROWS
    work = Work(
        plane=empty(height, width),
        rows=empty(2, wide),
        falling=empty(width),
        sums=empty(runs, wide),
        columns=empty(whole, width),
        lacking=np.empty((whole, cols), np.float32),
        given=empty(2, runs, wide),
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
            _step(x, other, problem.steps[k], work.given[k % 2], work.given[(k + 1) % 2], problem, work)
            _ask(problem, work, signal[channel], work.given[(k + 1) % 2])
            x, other = other, x
        _give(x, work.given[len(problem.steps) % 2], problem.run, out[channel])


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
        _sum_rows(x, problem.run, work.sums)
        for k in range(len(problem.steps)):
            _ask(problem, work, work.nothing, work.given[k % 2])
            for i in range(d_signal.shape[1]):
                for j in range(d_signal.shape[2]):
                    d_signal[channel, i, j] -= problem.area * work.lacking[i, j]
            _step(x, other, problem.steps[k], work.given[k % 2], work.given[(k + 1) % 2], problem, work)
            x, other = other, x
        out[channel] = x


@compiled
def _step(x, result, by, given, given_before, problem, work):
    """One pass over a plane: `result`, which is the iterate before `x`, becomes the one after it.

    Both are without what their cells give: `given`, `given_before`. `work.sums` become those of the result.
    """
    # Slices of rows and functions of them would be easier to read, and count references: 30 calls a row.
    apart()
    keep, momentum, rate = by[0], by[1], by[2]
    across, down, run = problem.across, problem.down, problem.run
    rows, falling, sums = work.rows, work.falling, work.sums
    height, width = x.shape
    falling[:] = ZERO
    sums[:] = ZERO
    for j in range(width):
        rows[0, j] = x[0, j] + given[0, j]
    for i in range(height):
        here, below, ahead = i % 2, (i + 1) % 2, min(i + 1, height - 1)  # below the last row, where nothing flows
        own, other = run[i], run[ahead]
        left = ZERO
        for j in range(width):  # each flow is computed once for both pixels
            y, under = rows[here, j], x[ahead, j] + given[other, j]
            right = across[i, j] * (rows[here, j + 1] - y)
            fallen = down[i, j] * (under - y)
            moved = y - (result[i, j] + given_before[own, j])
            new = keep * y + momentum * moved + rate * ((right - left) + (fallen - falling[j]))
            result[i, j] = new
            sums[own, j] += new
            left, falling[j], rows[below, j] = right, fallen, under


@compiled
def _give(x, given, run, out):
    """`x` with what its runs give."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + given[run[i], j]


@compiled
def _sum_rows(x, run, sums):
    """Sums over the rows of every run, column by column."""
    sums[:] = ZERO
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            sums[run[i], j] += x[i, j]


@compiled
def _ask(problem, work, wanted, given):
    """What cells lack of what is wanted, from `work.sums`, and what that gives to the pixels of every run."""
    cells = work.lacking
    _runs_to_cells(work.sums, problem.run_cell, problem.run_part, work.columns)
    _sum_columns(work.columns, problem.col_start, problem.col_part, problem.area, cells)
    for i in range(wanted.shape[0]):
        for j in range(wanted.shape[1]):
            cells[i, j] = problem.valid[i, j] * (wanted[i, j] - cells[i, j])
    _widen(cells, problem.col_start, problem.col_part, work.columns)
    _cells_to_runs(work.columns, problem.run_cell, problem.run_part, given)


@compiled
def _runs_to_cells(sums, run_cell, run_part, columns):
    """Sums over the rows of every run -> over those of every row of cells."""
    apart()
    columns[:] = ZERO
    for run in range(sums.shape[0]):
        cell, part = run_cell[run], run_part[run]
        for j in range(columns.shape[1]):
            columns[cell, j] += part * sums[run, j]
        if part < ONE:
            for j in range(columns.shape[1]):
                columns[cell + 1, j] += (ONE - part) * sums[run, j]


@compiled
def _cells_to_runs(columns, run_cell, run_part, given):
    """What rows of cells give -> what their runs get."""
    apart()
    for run in range(given.shape[0]):
        cell, part = run_cell[run], run_part[run]
        for j in range(columns.shape[1]):
            given[run, j] = part * columns[cell, j]
        if part < ONE:
            for j in range(columns.shape[1]):
                given[run, j] += (ONE - part) * columns[cell + 1, j]


@compiled
def _sum_columns(columns, col_start, col_part, area, cells):
    """Averages over the cells from the sums over their rows, of ROWS rows of cells at a time."""
    apart()
    for i in range(0, cells.shape[0], ROWS):
        for j in range(cells.shape[1]):
            first, last = col_start[j], col_start[j + 1]
            a, b, c, d = ZERO, ZERO, ZERO, ZERO
            if first > 0:
                k, part = first - BEFORE, ONE - col_part[first - BEFORE]
                a, b, c, d = (
                    part * columns[i, k],
                    part * columns[i + 1, k],
                    part * columns[i + 2, k],
                    part * columns[i + 3, k],
                )
            for k in range(first, last):
                a += col_part[k] * columns[i, k]
                b += col_part[k] * columns[i + 1, k]
                c += col_part[k] * columns[i + 2, k]
                d += col_part[k] * columns[i + 3, k]
            cells[i, j], cells[i + 1, j], cells[i + 2, j], cells[i + 3, j] = a / area, b / area, c / area, d / area


@compiled
def _widen(cells, col_start, col_part, columns):
    """(h, w) -> (h, W): the value of every cell in each of its columns."""
    apart()
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            first, last = col_start[j], col_start[j + 1]
            if first > 0:
                columns[i, first - BEFORE] += (ONE - col_part[first - BEFORE]) * cells[i, j]
            for k in range(first, last):
                columns[i, k] = col_part[k] * cells[i, j]


@compiled
def _borrow_problem(problem):
    return Problem(
        borrow(problem.across),
        borrow(problem.down),
        borrow(problem.valid),
        borrow(problem.run),
        borrow(problem.run_cell),
        borrow(problem.run_part),
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
        borrow(work.sums),
        borrow(work.columns),
        borrow(work.lacking),
        borrow(work.given),
        borrow(work.nothing),
    )
