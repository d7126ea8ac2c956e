"""The loops of the `cpu` backend, compiled by Numba: one channel of one image at a time, which fits the second-level
cache, so that all steps cost what one pass over the memory costs. Every inner loop has unit stride and vectorises.

An axis of the grid is a table of three rows: the first cell that a pixel lies in, the share of the pixel in it, and the
rest of the pixel, which lies in the next cell.
"""

from __future__ import annotations

from collections import namedtuple

import numba
import numpy as np

# One image. across (H, W - 1) and down (H + 1, W), with nothing before the first row and behind the last, already times
# the rate; valid (h, w), the share that a cell gives back;
# row_cell, col_cell: first cell of every pixel; row_part, col_part: how much of the pixel lies in it; area: pixels a
# cell.
Problem = namedtuple("Problem", "across down valid row_cell row_part col_cell col_part area momentum steps")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
ONE = np.float32(1)


@compiled
def diffuse_planes(problem, start, signal, out):
    """(C, H, W), (C, h, w) -> out (C, H, W): all steps of `kernels.diffusion.reference.diffuse`."""
    _, height, width = start.shape
    x, previous, _ = _planes(height, width)
    columns, lacking = _scratch(signal.shape[1], signal.shape[2], width)
    given = np.empty_like(columns)
    window, row = np.zeros((3, width), np.float32), np.empty(width, np.float32)
    for channel in range(len(start)):
        x[:] = start[channel]
        previous[:] = x
        given[:] = 0
        for _ in range(problem.steps):
            _step(x, previous, problem, given, window, row, columns)
            x, previous = previous, x
            _sum_columns(columns, problem, lacking)
            for i in range(lacking.shape[0]):
                for j in range(lacking.shape[1]):
                    lacking[i, j] = problem.valid[i, j] * (signal[channel, i, j] - lacking[i, j])
            _widen(lacking, problem, given)
        _give(x, problem, given)
        out[channel] = x


@compiled
def _step(x, previous, problem, given, window, row, columns):
    """One pass over a plane: give back what cells lacked, extrapolate, let flow; the result overwrites `previous`.

    given (h, W): what every row of cells gives to its pixels, added to x here. columns (h, W): sums of the result over
    the pixels of every row of cells. window (3, W): extrapolated rows around the one that flows.
    """
    across, down, momentum = problem.across, problem.down, problem.momentum
    height, width = x.shape
    columns[:] = 0
    for ahead in range(height + 1):
        if ahead < height:
            cell, part, slot = problem.row_cell[ahead], problem.row_part[ahead], ahead % 3
            if part < ONE:
                for j in range(width):
                    x[ahead, j] += (ONE - part) * given[cell + 1, j]
            for j in range(width):
                x[ahead, j] += part * given[cell, j]
            for j in range(width):
                window[slot, j] = x[ahead, j] + momentum * (x[ahead, j] - previous[ahead, j])
        i = ahead - 1
        if i < 0:
            continue
        here, above, below = i % 3, (i + 2) % 3, (i + 1) % 3
        # One long expression: a pass over a row costs its start more than its arithmetic.
        for j in range(1, width - 1):
            row[j] = (
                window[here, j]
                + across[i, j - 1] * (window[here, j - 1] - window[here, j])
                + across[i, j] * (window[here, j + 1] - window[here, j])
                + down[i, j] * (window[above, j] - window[here, j])
                + down[i + 1, j] * (window[below, j] - window[here, j])
            )
        _flow_ends(window, here, above, below, across, down, i, row)
        cell, part = problem.row_cell[i], problem.row_part[i]
        for j in range(width):
            previous[i, j] = row[j]
            columns[cell, j] += part * row[j]
        if part < ONE:
            for j in range(width):
                columns[cell + 1, j] += (ONE - part) * row[j]


@compiled
def transposed_planes(problem, gradient, d_start, d_signal):
    """Gradients of `diffuse_planes`: (C, H, W) -> d_start (C, H, W), d_signal (C, h, w).

    A result is a polynomial in P = (I - U V A)(I - rate L) applied to `start`, plus another one applied to U V signal;
    both come from the recurrence of the steps, without and with a constant forcing, so the transposed ones do, too.
    """
    _, height, width = gradient.shape
    x, previous, y = _planes(height, width)
    columns, lacking = _scratch(d_signal.shape[1], d_signal.shape[2], width)
    for channel in range(len(gradient)):
        for forced in range(2):
            for i in range(height):
                for j in range(width):
                    x[i, j] = gradient[channel, i, j] * (ONE - forced)
                    previous[i, j] = x[i, j]
            for _ in range(problem.steps):
                _extrapolate(x, previous, problem.momentum, y)
                _average(y, problem, columns, lacking)
                for i in range(lacking.shape[0]):
                    for j in range(lacking.shape[1]):
                        lacking[i, j] *= -problem.valid[i, j]
                _spread(y, problem, columns, lacking)
                _flow(y, problem, previous)
                x, previous = previous, x
                if forced == 1:
                    for i in range(height):
                        for j in range(width):
                            x[i, j] += gradient[channel, i, j]
            if forced == 0:
                d_start[channel] = x
        _average(x, problem, columns, lacking)
        for i in range(lacking.shape[0]):
            for j in range(lacking.shape[1]):
                d_signal[channel, i, j] = problem.valid[i, j] * lacking[i, j] * problem.area


@compiled
def _planes(height, width):
    size = (height, width)
    return np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)


@compiled
def _scratch(rows, cols, width):
    """Sums of every row of cells by column, and a map of the cells."""
    return np.empty((rows, width), np.float32), np.empty((rows, cols), np.float32)


@compiled
def _extrapolate(x, previous, momentum, y):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = x[i, j] + momentum * (x[i, j] - previous[i, j])


@compiled
def _flow_ends(rows, here, above, below, across, down, i, out):
    """The first and the last pixel of a row of y - rate L y, which have one neighbour less (or none)."""
    last = len(out) - 1
    for j in (0, last):
        out[j] = rows[here, j]
        if j > 0:
            out[j] += across[i, j - 1] * (rows[here, j - 1] - rows[here, j])
        if j < last:
            out[j] += across[i, j] * (rows[here, j + 1] - rows[here, j])
        out[j] += down[i, j] * (rows[above, j] - rows[here, j]) + down[i + 1, j] * (rows[below, j] - rows[here, j])


@compiled
def _flow(y, problem, z):
    """z = y - rate L y."""
    across, down = problem.across, problem.down
    height, width = y.shape
    for i in range(height):  # beyond the image nothing conducts, so that any row will do
        above, below = max(i - 1, 0), min(i + 1, height - 1)
        for j in range(1, width - 1):
            z[i, j] = (
                y[i, j]
                + across[i, j - 1] * (y[i, j - 1] - y[i, j])
                + across[i, j] * (y[i, j + 1] - y[i, j])
                + down[i, j] * (y[above, j] - y[i, j])
                + down[i + 1, j] * (y[below, j] - y[i, j])
            )
        _flow_ends(y, i, above, below, across, down, i, z[i])


@compiled
def _average(x, problem, columns, cells):
    """Exact average over every cell."""
    height, width = x.shape
    columns[:] = 0
    for i in range(height):
        cell, part = problem.row_cell[i], problem.row_part[i]
        for j in range(width):
            columns[cell, j] += part * x[i, j]
        if part < ONE:
            for j in range(width):
                columns[cell + 1, j] += (ONE - part) * x[i, j]
    _sum_columns(columns, problem, cells)


@compiled
def _sum_columns(columns, problem, cells):
    """Averages over the cells from the sums over their rows."""
    rows, cols = cells.shape
    cells[:] = 0
    for i in range(rows):
        for j in range(columns.shape[1]):
            cell, part = problem.col_cell[j], problem.col_part[j]
            cells[i, cell] += part * columns[i, j]
            if part < ONE:
                cells[i, cell + 1] += (ONE - part) * columns[i, j]
        for j in range(cols):
            cells[i, j] /= problem.area


@compiled
def _spread(x, problem, columns, cells):
    """Adds the value of every cell to its pixels."""
    _widen(cells, problem, columns)
    _give(x, problem, columns)


@compiled
def _widen(cells, problem, columns):
    """(h, w) -> (h, W): the value of every cell in each of its columns."""
    for i in range(cells.shape[0]):
        for j in range(columns.shape[1]):
            cell, part = problem.col_cell[j], problem.col_part[j]
            columns[i, j] = part * cells[i, cell]
            if part < ONE:
                columns[i, j] += (ONE - part) * cells[i, cell + 1]


@compiled
def _give(x, problem, columns):
    """Adds to every pixel what its row of cells gives."""
    height, width = x.shape
    for i in range(height):
        cell, part = problem.row_cell[i], problem.row_part[i]
        for j in range(width):
            x[i, j] += part * columns[cell, j]
        if part < ONE:
            for j in range(width):
                x[i, j] += (ONE - part) * columns[cell + 1, j]
