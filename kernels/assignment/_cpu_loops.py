"""The loops of the `cpu` backend, compiled by Numba: a row of cells at a time, and in every cell its classes alone.

Most pixels of a cell lie in it as a whole; loops over these have unit stride and vectorise. One at either end may lie
in two cells, and has the mean of their factors by area.
"""

from __future__ import annotations

from collections import namedtuple

import numba
import numpy as np

from kernels._cpu_borrow import borrow

# One image. scores (C, H, W); shares (h, w, C); counts (h, w) and classes (h, w, most): the classes of every cell;
# asking (h, w): whether a cell's shares are kept; known (H, W): 1, or 0 for pixels that do not count; coverage (h, w):
# of every cell by known pixels, in pixels; rows, cols: an `Axis` each.
Problem = namedtuple("Problem", "scores shares counts classes asking known coverage rows cols")
# Of every pixel the first cell that it lies in, and how much of it does (what is left lies in the next cell); of every
# cell its pixels, from `first` to before `behind`, and those of them that lie in it as a whole.
Axis = namedtuple("Axis", "cell part first behind whole_first whole_behind")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
ONE = np.float32(1)


@compiled
def _borrow_problem(problem):
    return Problem(
        borrow(problem.scores),
        borrow(problem.shares),
        borrow(problem.counts),
        borrow(problem.classes),
        borrow(problem.asking),
        borrow(problem.known),
        borrow(problem.coverage),
        _borrow_axis(problem.rows),
        _borrow_axis(problem.cols),
    )


@compiled
def _borrow_axis(axis):
    return Axis(
        borrow(axis.cell),
        borrow(axis.part),
        borrow(axis.first),
        borrow(axis.behind),
        borrow(axis.whole_first),
        borrow(axis.whole_behind),
    )


@compiled
def balance(problem, row, factors, least_share, least_score, out):
    """New factors of one row of cells: (h, w, C) -> out (h, w, C)."""
    problem, factors, out = _borrow_problem(problem), borrow(factors), borrow(out)
    scores, cols = problem.scores, problem.cols
    sums = np.zeros((factors.shape[1], factors.shape[2]), np.float32)
    weights = np.empty(scores.shape[2], np.float32)
    for y in range(problem.rows.first[row], problem.rows.behind[row]):
        _sum_odds(problem, y, factors, least_score, weights)
        inside = _part(problem.rows, y, row)
        for x in range(len(weights)):
            weights[x] = inside * problem.known[y, x] / weights[x]
        for col in range(factors.shape[1]):
            first, behind = cols.whole_first[col], cols.whole_behind[col]
            for number in range(problem.counts[row, col]):
                c = problem.classes[row, col, number]
                total = np.float32(0)
                for x in range(first, behind):
                    total += weights[x] * _cube(scores[c, y, x], least_score)
                total *= _factor_of_row(problem, y, col, c, factors)
                for x in range(cols.first[col], first):
                    total += _shared(problem, y, x, col, c, factors) * weights[x] * _cube(scores[c, y, x], least_score)
                for x in range(behind, cols.behind[col]):
                    total += _shared(problem, y, x, col, c, factors) * weights[x] * _cube(scores[c, y, x], least_score)
                sums[col, c] += total
    _new_factors(problem, row, factors, sums, least_share, out)


@compiled
def _new_factors(problem, row, factors, sums, least_share, out):
    for col in range(factors.shape[1]):
        if not problem.asking[row, col]:
            out[row, col] = factors[row, col]
            continue
        out[row, col] = 0
        total = np.float32(0)
        for number in range(problem.counts[row, col]):
            c = problem.classes[row, col, number]
            kept = max(sums[col, c] / problem.coverage[row, col], least_share)
            out[row, col, c] = factors[row, col, c] * problem.shares[row, col, c] / kept
            total += out[row, col, c]
        for number in range(problem.counts[row, col]):
            out[row, col, problem.classes[row, col, number]] /= total


@compiled
def probabilities(problem, top, bottom, factors, least_score, out):
    """The pixels of the rows from `top` to before `bottom`: out (C, H, W)."""
    problem, factors, out = _borrow_problem(problem), borrow(factors), borrow(out)
    width = problem.scores.shape[2]
    sums = np.empty(width, np.float32)
    for y in range(top, bottom):
        _sum_odds(problem, y, factors, least_score, sums)
        for x in range(width):
            sums[x] = ONE / sums[x]
        for c in range(out.shape[0]):
            for x in range(width):
                out[c, y, x] = 0
        _add_row(problem, y, factors, least_score, sums, out, y, 1)


@compiled
def _sum_odds(problem, y, factors, least_score, sums):
    """Sum over the classes of score^3 times factor, of every pixel of the row y."""
    ones, total = np.ones_like(sums), sums.reshape(1, 1, len(sums))
    sums[:] = 0
    _add_row(problem, y, factors, least_score, ones, total, 0, 0)


@compiled
def _add_row(problem, y, factors, least_score, weights, out, line, apart):
    """Adds score^3 times factor times `weights`, of the pixel row y, to a line of out (C, H, W).

    apart: 1 to the plane of each class, 0 all to the first.
    """
    for row in range(problem.rows.cell[y], problem.rows.cell[y] + 2):
        inside = _part(problem.rows, y, row)
        if inside == 0:
            continue
        for col in range(factors.shape[1]):
            for number in range(problem.counts[row, col]):
                c = problem.classes[row, col, number]
                factor = inside * factors[row, col, c]
                _add_class(problem, c, y, factor, col, least_score, weights, out, c * apart, line)


@compiled
def _add_class(problem, c, y, factor, col, least_score, weights, out, plane, line):
    """The same of one class of one cell."""
    scores, cols = problem.scores, problem.cols
    first, behind = cols.whole_first[col], cols.whole_behind[col]
    for x in range(first, behind):
        out[plane, line, x] += factor * weights[x] * _cube(scores[c, y, x], least_score)
    for x in range(cols.first[col], first):
        out[plane, line, x] += _part(cols, x, col) * factor * weights[x] * _cube(scores[c, y, x], least_score)
    for x in range(behind, cols.behind[col]):
        out[plane, line, x] += _part(cols, x, col) * factor * weights[x] * _cube(scores[c, y, x], least_score)


@compiled
def _shared(problem, y, x, col, c, factors):
    """The factor of class c at a pixel that lies in the column `col` of cells and another, times its part in `col`."""
    first, part = problem.cols.cell[x], problem.cols.part[x]
    factor = part * _factor_of_row(problem, y, first, c, factors)
    if part < ONE:
        factor += (ONE - part) * _factor_of_row(problem, y, first + 1, c, factors)
    return factor * _part(problem.cols, x, col)


@compiled
def _factor_of_row(problem, y, col, c, factors):
    """The factor of class c in the column `col` of cells, at the pixel row y."""
    row, inside = problem.rows.cell[y], problem.rows.part[y]
    if inside == ONE:
        return factors[row, col, c]
    return inside * factors[row, col, c] + (ONE - inside) * factors[row + 1, col, c]


@compiled
def _part(axis, pixel, cell):
    """How much of a pixel lies in a cell."""
    if axis.cell[pixel] == cell:
        return axis.part[pixel]
    if axis.cell[pixel] + 1 == cell:
        return ONE - axis.part[pixel]
    return np.float32(0)


@compiled
def _cube(score, least):
    bounded = min(max(score, least), ONE)
    return bounded * bounded * bounded
