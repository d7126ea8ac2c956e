"""The loops of the `cpu` backend, compiled by Numba: some rows of cells at a time, one candidate's offset after the
other, so that every inner loop has unit stride and vectorises.

Planes have a margin as wide as the disc's radius, whose cells are unknown: a candidate of any cell is `shift` places
further in memory. A plane is flat, and so are the margins in it that lie between the cells of some rows.
"""

from __future__ import annotations

import math
from collections import namedtuple

import numba
import numpy as np

from kernels._cpu_borrow import borrow
from kernels._cpu_exp2 import exp2, ordered

# One image in planes of n places. values (C, n); colours (G, n); known (n,): 1 or 0; shifts (K,): from a cell to its
# candidate; opposite (K,): where the shift back stands; dy, dx (K,): from the candidate to the cell, HR pixels.
Problem = namedtuple("Problem", "values colours known shifts opposite dy dx")
# What the steps change. raw, first, second (4, n): parameters and Adam's moments; initial: where they started; ranged
# (n,): 1, or 0 where there is no range term; factors (5, n): ux, uy, vx, vy and r of every source; apart (K, n):
# squared colour distance to the candidates; by_score (K, n): d loss / d score, 0 where there is no candidate.
State = namedtuple("State", "raw initial ranged first second factors apart by_score")
Constants = namedtuple("Constants", "rounding prior beta_1 beta_2 rate epsilon")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
ZERO, ONE, TWO, THREE = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
LOWEST = np.float32(-1e30)  # the score of what is no candidate
LEAST_TOTAL = np.float32(0.5)  # weights are relative to the highest, so that their sum is 0 or at least 1
TO_BASE_2 = np.float32(-0.5 / math.log(2))  # from (x' / sigma_x)^2 + ... to the score
THETA = 2  # row of `raw`


@compiled
def start(problem, state, begin, end):
    """`apart` and the first `factors` of the places from `begin` to before `end`."""
    problem, state = _borrow_problem(problem), _borrow_state(state)
    for k in range(len(problem.shifts)):
        apart, shift = state.apart[k, begin:end], problem.shifts[k]
        apart[:] = ZERO
        for g in range(len(problem.colours)):
            here, there = problem.colours[g, begin:end], problem.colours[g, begin + shift : end + shift]
            for i in range(end - begin):
                apart[i] += (here[i] - there[i]) * (here[i] - there[i])
    _make_factors(state, begin, end)


@compiled
def predict(problem, state, constants, begin, end):
    """`by_score` of the cells from `begin` to before `end`."""
    problem, state = _borrow_problem(problem), _borrow_state(state)
    weights = np.empty((len(problem.shifts), end - begin), np.float32)
    _weigh(problem, state, begin, weights)
    state.by_score[:, begin:end] = ZERO
    slope = np.empty(end - begin, np.float32)
    for channel in range(len(problem.values)):
        _add_channel(problem, state, constants, channel, begin, weights, slope)
    slope[:] = ZERO
    for k in range(len(weights)):
        weight, by_score = weights[k], state.by_score[k, begin:end]
        for i in range(len(weight)):
            slope[i] += weight[i] * by_score[i]
    for k in range(len(weights)):
        weight, by_score = weights[k], state.by_score[k, begin:end]
        for i in range(len(weight)):
            by_score[i] = weight[i] * (by_score[i] - slope[i])


@ordered
def _weigh(problem, state, begin, weights):
    """weights (K, m) of the candidates of m cells: sums of 1, or 0 where there is nothing to predict."""
    count = weights.shape[1]
    peak, total = np.full(count, LOWEST, np.float32), np.zeros(count, np.float32)
    for k in range(len(weights)):
        first, score = begin + problem.shifts[k], weights[k]
        known, apart = problem.known[first : first + count], state.apart[k, begin : begin + count]
        ux, uy, vx, vy, r = _sources(state.factors, first, count)
        dy, dx = problem.dy[k], problem.dx[k]
        for i in range(count):
            u, v = ux[i] * dx + uy[i] * dy, vx[i] * dx + vy[i] * dy
            one = TO_BASE_2 * (u * u + v * v + r[i] * apart[i])
            score[i] = one if known[i] > ZERO else LOWEST
            peak[i] = max(peak[i], score[i])
    for k in range(len(weights)):
        first, weight = begin + problem.shifts[k], weights[k]
        known = problem.known[first : first + count]
        for i in range(count):
            weight[i] = known[i] * exp2(weight[i] - peak[i])
            total[i] += weight[i]
    _to_reciprocals(problem.known[begin : begin + count], total)
    for k in range(len(weights)):
        weight = weights[k]
        for i in range(count):
            weight[i] *= total[i]


@ordered
def _to_reciprocals(known, total):
    """total <- known / total, or 0 where there is no weight.

    A single weight must come out as 1, which the estimate that vectorised division is does not give: what is left of a
    rounded one, times a narrow range's 1 / sigma_r^2, would be a gradient.
    """
    for i in range(len(total)):
        quotient = known[i] / total[i] if total[i] > LEAST_TOTAL else ZERO
        total[i] = known[i] if total[i] == ONE else quotient


@compiled
def _sources(factors, first, count):
    """The five factors of `count` sources."""
    behind = first + count
    return (
        factors[0, first:behind],
        factors[1, first:behind],
        factors[2, first:behind],
        factors[3, first:behind],
        factors[4, first:behind],
    )


@compiled
def _add_channel(problem, state, constants, channel, begin, weights, slope):
    """To `by_score`: d loss / d weight of one channel."""
    values, count = problem.values[channel], weights.shape[1]
    slope[:] = ZERO
    for k in range(len(weights)):
        first, weight = begin + problem.shifts[k], weights[k]
        others = values[first : first + count]
        for i in range(count):
            slope[i] += weight[i] * others[i]
    own, channels = values[begin : begin + count], np.float32(len(problem.values))
    for i in range(count):
        error = slope[i] - own[i]
        slope[i] = error / (np.sqrt(error * error + constants.rounding) * channels)
    for k in range(len(weights)):
        first, by_weight = begin + problem.shifts[k], state.by_score[k, begin : begin + count]
        others = values[first : first + count]
        for i in range(count):
            by_weight[i] += slope[i] * others[i]


@compiled
def step(problem, state, constants, number, begin, end):
    """Adam's step `number`, counted from 1, of the sources from `begin` to before `end`, and their new factors."""
    problem, state = _borrow_problem(problem), _borrow_state(state)
    slope = np.zeros((4, end - begin), np.float32)
    _add_pairs(problem, state, begin, slope)
    raw, r = state.raw[:, begin:end], state.factors[4, begin:end]
    for i in range(end - begin):
        turned = np.exp(raw[0, i] - raw[1, i])
        slope[THETA, i] *= turned - ONE / turned
        slope[3, i] *= r[i]
    _descend(state, constants, number, begin, slope)
    _make_factors(state, begin, end)


@compiled
def _add_pairs(problem, state, begin, slope):
    """To slope (4, m): sums over the cells that have a source as a candidate, of d score times u^2, v^2, u v, apart."""
    count = slope.shape[1]
    ux, uy, vx, vy, _ = _sources(state.factors, begin, count)
    along, across, turned, colour = slope[0], slope[1], slope[2], slope[3]
    for k in range(len(problem.shifts)):
        back = problem.opposite[k]
        first, dy, dx = begin + problem.shifts[k], problem.dy[back], problem.dx[back]
        given, apart = state.by_score[back, first : first + count], state.apart[k, begin : begin + count]
        for i in range(count):
            u, v = ux[i] * dx + uy[i] * dy, vx[i] * dx + vy[i] * dy
            along[i] += given[i] * u * u
            across[i] += given[i] * v * v
            turned[i] += given[i] * u * v
            colour[i] += given[i] * apart[i]


@compiled
def _descend(state, constants, number, begin, slope):
    """One step of Adam; the prior's part is added to the slopes (4, m) here."""
    so_far_1, so_far_2 = ONE - constants.beta_1**number, ONE - constants.beta_2**number
    behind = begin + slope.shape[1]
    for n in range(4):
        pull = ZERO if n == THETA else TWO * constants.prior / THREE
        raw, initial = state.raw[n, begin:behind], state.initial[n, begin:behind]
        first, second, given = state.first[n, begin:behind], state.second[n, begin:behind], slope[n]
        for i in range(len(raw)):
            by = given[i] + pull * (raw[i] - initial[i])
            first[i] = constants.beta_1 * first[i] + (ONE - constants.beta_1) * by
            second[i] = constants.beta_2 * second[i] + (ONE - constants.beta_2) * by * by
            raw[i] -= constants.rate * first[i] / so_far_1 / (np.sqrt(second[i] / so_far_2) + constants.epsilon)


@compiled
def _make_factors(state, begin, end):
    for i in range(begin, end):
        cos, sin = np.cos(state.raw[THETA, i]), np.sin(state.raw[THETA, i])
        narrow_x, narrow_y = np.exp(-state.raw[0, i]), np.exp(-state.raw[1, i])
        state.factors[0, i], state.factors[1, i] = cos * narrow_x, sin * narrow_x
        state.factors[2, i], state.factors[3, i] = -sin * narrow_y, cos * narrow_y
        state.factors[4, i] = state.ranged[i] * np.exp(-TWO * state.raw[3, i])


@compiled
def _borrow_problem(problem):
    return Problem(
        borrow(problem.values),
        borrow(problem.colours),
        borrow(problem.known),
        borrow(problem.shifts),
        borrow(problem.opposite),
        borrow(problem.dy),
        borrow(problem.dx),
    )


@compiled
def _borrow_state(state):
    return State(
        borrow(state.raw),
        borrow(state.initial),
        borrow(state.ranged),
        borrow(state.first),
        borrow(state.second),
        borrow(state.factors),
        borrow(state.apart),
        borrow(state.by_score),
    )
