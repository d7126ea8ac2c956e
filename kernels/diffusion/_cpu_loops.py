"""The loops of the `cpu` backend, compiled by Numba: one channel of one image at a time, which fits the second-level
cache, so that all steps cost what one pass over the memory costs. Every inner loop has unit stride and vectorises.

An axis of the grid is a table of three rows: the first cell that a pixel lies in, the share of the pixel in it, and the
rest of the pixel, which lies in the next cell.
"""

from __future__ import annotations

from collections import namedtuple

import numba
import numpy as np

# One image. across (H, W - 1), down (H - 1, W), already times the rate; valid (h, w), the share that a cell gives back;
# row_cell, col_cell: first cell of every pixel; row_part, col_part: how much of the pixel lies in it; area: pixels a
# cell.
Problem = namedtuple("Problem", "across down valid row_cell row_part col_cell col_part area momentum steps")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
ONE = np.float32(1)


@compiled
def diffuse_planes(problem, start, signal, out):
    """(C, H, W), (C, h, w) -> out (C, H, W): all steps of `kernels.diffusion.reference.diffuse`."""
    _, height, width = start.shape
    x, previous, y = _planes(height, width)
    columns, lacking = _scratch(signal.shape[1], signal.shape[2], width)
    for channel in range(len(start)):
        x[:] = start[channel]
        previous[:] = x
        for _ in range(problem.steps):
            _extrapolate(x, previous, problem.momentum, y)
            _flow(y, problem, previous)
            x, previous = previous, x
            _average(x, problem, columns, lacking)
            for i in range(lacking.shape[0]):
                for j in range(lacking.shape[1]):
                    lacking[i, j] = problem.valid[i, j] * (signal[channel, i, j] - lacking[i, j])
            _spread(x, problem, columns, lacking)
        out[channel] = x


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
def _flow(y, problem, z):
    """z = y - rate L y."""
    across, down = problem.across, problem.down
    height, width = y.shape
    for i in range(height):
        for j in range(width):
            z[i, j] = y[i, j]
        for j in range(width - 1):
            z[i, j] += across[i, j] * (y[i, j + 1] - y[i, j])
        for j in range(1, width):
            z[i, j] += across[i, j - 1] * (y[i, j - 1] - y[i, j])
        if i + 1 < height:
            for j in range(width):
                z[i, j] += down[i, j] * (y[i + 1, j] - y[i, j])
        if i > 0:
            for j in range(width):
                z[i, j] += down[i - 1, j] * (y[i - 1, j] - y[i, j])


@compiled
def _average(x, problem, columns, cells):
    """Exact average over every cell."""
    height, width = x.shape
    rows, cols = cells.shape
    columns[:] = 0
    for i in range(height):
        cell, part = problem.row_cell[i], problem.row_part[i]
        for j in range(width):
            columns[cell, j] += part * x[i, j]
        if part < ONE:
            for j in range(width):
                columns[cell + 1, j] += (ONE - part) * x[i, j]
    cells[:] = 0
    for i in range(rows):
        for j in range(width):
            cell, part = problem.col_cell[j], problem.col_part[j]
            cells[i, cell] += part * columns[i, j]
            if part < ONE:
                cells[i, cell + 1] += (ONE - part) * columns[i, j]
        for j in range(cols):
            cells[i, j] /= problem.area


@compiled
def _spread(x, problem, columns, cells):
    """Adds the value of every cell to its pixels."""
    height, width = x.shape
    for i in range(cells.shape[0]):
        for j in range(width):
            cell, part = problem.col_cell[j], problem.col_part[j]
            columns[i, j] = part * cells[i, cell]
            if part < ONE:
                columns[i, j] += (ONE - part) * cells[i, cell + 1]
    for i in range(height):
        cell, part = problem.row_cell[i], problem.row_part[i]
        for j in range(width):
            x[i, j] += part * columns[cell, j]
        if part < ONE:
            for j in range(width):
                x[i, j] += (ONE - part) * columns[cell + 1, j]
