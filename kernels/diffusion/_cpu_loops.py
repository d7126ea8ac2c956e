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

# One image. across and down (H, W), already times the rate: to the next pixel and to the one below, 0 where there is
# none; valid (h, w), the share that a cell gives back;
# row_cell, row_part: first cell of every pixel row, and how much of the row lies in it; col_part: likewise; col_start
# (w + 1): of every cell the first pixel column that begins in it; area: pixels a cell.
Problem = namedtuple("Problem", "across down valid row_cell row_part col_start col_part area momentum steps")
# Scratch of one thread. planes (3, H, W); rows (2, more than W): the row that flows and the one below, by turns;
# falling (W,): what flows into the row from above; given (h, W): what every row of cells gives to its pixels; columns
# (h, W): sums over the pixels of every row of cells; lacking (2, h, w): of the last two steps, by turns.
Work = namedtuple("Work", "planes rows falling given columns lacking")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
# Of one row: a call would cost as much as the row.
inlined = numba.njit(nogil=True, fastmath=True, error_model="numpy", inline="always")
ZERO, ONE = np.float32(0), np.float32(1)
SPARE = 8  # numbers behind a row, which is read one pixel too far; a vector, so that the next row starts with one


def make_work(height: int, width: int, rows: int, cols: int) -> Work:
    """Scratch memory for one thread."""
    work = Work(
        planes=empty(3, height, width),
        rows=empty(2, width + SPARE),
        falling=empty(width),
        given=empty(rows, width),
        columns=empty(rows, width),
        lacking=np.empty((2, rows, cols), np.float32),
    )
    work.rows[:] = 0  # what nothing flows to must be finite all the same
    return work


@compiled
def diffuse_planes(problem, work, start, signal, out):
    """(C, H, W), (C, h, w) -> out (C, H, W): all steps of `kernels.diffusion.reference.diffuse`.

    `out` may be `start` where the steps are even. What cells lack after a step is not added to its result but to the
    rows that the next step makes of it.
    """
    problem, work = _borrow_problem(problem), _borrow_work(work)
    start, signal, out = borrow(start), borrow(signal), borrow(out)
    for channel in range(len(start)):
        x = previous = start[channel]
        work.given[:] = ZERO
        work.lacking[:] = ZERO
        for step in range(1, problem.steps + 1):
            result = out[channel] if (problem.steps - step) % 2 == 0 else work.planes[0]
            _step(x, previous, problem.momentum, result, problem, work)
            x, previous = result, x
            now, before = work.lacking[step % 2], work.lacking[(step + 1) % 2]
            _sum_columns(work.columns, problem, now)
            momentum = problem.momentum if step < problem.steps else ZERO
            for i in range(now.shape[0]):
                for j in range(now.shape[1]):
                    now[i, j] = problem.valid[i, j] * (signal[channel, i, j] - now[i, j])
                    before[i, j] = now[i, j] + momentum * (now[i, j] - before[i, j])
            _widen(before, problem, work.given)
        _give(x, problem, work.given, out[channel])


@compiled
def transposed_planes(problem, work, gradient, d_start, d_signal):
    """Gradients of `diffuse_planes`: (C, H, W) -> d_start (C, H, W), d_signal (C, h, w).

    A result is a polynomial in P = (I - U V A)(I - rate L) applied to `start`, plus another one applied to U V signal;
    both come from the recurrence of the steps, without and with a constant forcing, so the transposed ones do, too.
    """
    problem, work = _borrow_problem(problem), _borrow_work(work)
    gradient, d_start, d_signal = borrow(gradient), borrow(d_start), borrow(d_signal)
    _, height, width = gradient.shape
    x, previous, y, cells = work.planes[0], work.planes[1], work.planes[2], work.lacking[0]
    for channel in range(len(gradient)):
        for forced in range(2):
            for i in range(height):
                for j in range(width):
                    x[i, j] = gradient[channel, i, j] * (ONE - forced)
                    previous[i, j] = x[i, j]
            for _ in range(problem.steps):
                for i in range(height):
                    for j in range(width):
                        y[i, j] = x[i, j] + problem.momentum * (x[i, j] - previous[i, j])
                _average(y, problem, work.columns, cells)
                for i in range(cells.shape[0]):
                    for j in range(cells.shape[1]):
                        cells[i, j] *= -problem.valid[i, j]
                _widen(cells, problem, work.given)
                _step(y, y, ZERO, previous, problem, work)
                x, previous = previous, x
                if forced == 1:
                    for i in range(height):
                        for j in range(width):
                            x[i, j] += gradient[channel, i, j]
            if forced == 0:
                d_start[channel] = x
        _average(x, problem, work.columns, cells)
        for i in range(cells.shape[0]):
            for j in range(cells.shape[1]):
                d_signal[channel, i, j] = problem.valid[i, j] * cells[i, j] * problem.area


@compiled
def _step(x, previous, momentum, result, problem, work):
    """One pass over a plane: extrapolate, give to every row of cells, let flow; the result may overwrite `previous`.

    In `work`, `given` is taken, and `columns` become the sums of the result.
    """
    height = len(x)
    work.falling[:] = ZERO
    work.columns[:] = ZERO
    for ahead in range(height + 1):
        if ahead < height:
            row = work.rows[ahead % 2]
            cell, part = problem.row_cell[ahead], problem.row_part[ahead]
            _extrapolate_row(x[ahead], previous[ahead], momentum, part, work.given[cell], row)
            if part < ONE:
                _add_row(work.given[cell + 1], ONE - part, row)
        if ahead > 0:
            i = ahead - 1
            here, below = work.rows[i % 2], work.rows[ahead % 2]
            _flow_row(here, below, problem.across[i], problem.down[i], work.falling, result[i])
            _sum_row(result[i], problem.row_cell[i], problem.row_part[i], work.columns)


@inlined
def _extrapolate_row(x, previous, momentum, part, given, out):
    """What a row moves on to, and what its first row of cells gives it."""
    for j in range(len(x)):
        out[j] = x[j] + momentum * (x[j] - previous[j]) + part * given[j]


@inlined
def _add_row(row, factor, out):
    for j in range(len(row)):
        out[j] += factor * row[j]


@inlined
def _sum_row(row, cell, part, columns):
    """Adds a row of pixels to the sums of their rows of cells."""
    _add_row(row, part, columns[cell])
    if part < ONE:
        _add_row(row, ONE - part, columns[cell + 1])


@inlined
def _flow_row(here, below, across, down, falling, out):
    """A row of y - rate L y, each flow computed once for both pixels. falling: from above, then to the row below."""
    left = ZERO
    for j in range(len(out)):
        y = here[j]
        right = across[j] * (here[j + 1] - y)
        fallen = down[j] * (below[j] - y)
        out[j] = y + (right - left) + (fallen - falling[j])
        left, falling[j] = right, fallen


@compiled
def _average(x, problem, columns, cells):
    """Exact average over every cell."""
    columns[:] = ZERO
    for i in range(x.shape[0]):
        _sum_row(x[i], problem.row_cell[i], problem.row_part[i], columns)
    _sum_columns(columns, problem, cells)


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
def _give(x, problem, given, out):
    """Adds to every pixel what its rows of cells give."""
    for i in range(x.shape[0]):
        cell, part = problem.row_cell[i], problem.row_part[i]
        _extrapolate_row(x[i], x[i], ZERO, part, given[cell], out[i])
        if part < ONE:
            _add_row(given[cell + 1], ONE - part, out[i])


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
        problem.momentum,
        problem.steps,
    )


@compiled
def _borrow_work(work):
    return Work(
        borrow(work.planes),
        borrow(work.rows),
        borrow(work.falling),
        borrow(work.given),
        borrow(work.columns),
        borrow(work.lacking),
    )
