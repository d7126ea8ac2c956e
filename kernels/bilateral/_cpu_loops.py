"""The loops of the `cpu` backend, compiled by Numba: tiles of pixels that share one owner cell.

A tile holds up to TILE pixels, and a row of a work array one value for each of them, so every inner loop runs over `p` with
unit stride and vectorises. For each tile: list the candidate cells (copies of a clamped border cell once, with the logarithm
of their number), score them nearest first, leave out those that cannot matter, take the softmax, mix. Backward passes start
from the same weights again, so nothing of the size of pixels times candidates outlives a tile.

Scores are in base 2: the factors come multiplied by sqrt(log2 e), the range weight by log2 e.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE = 256
# Channels that are mixed at a time: 64 rows of a tile stay in the second-level cache beside the weights.
CHANNELS = 64
# A candidate this many bits below the best one of every pixel adds less than the rounding of a float32.
CUT = np.float32(26)
NEGLIGIBLE = np.float32(2.0**-26)
LOWEST = np.float32(-1e30)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# Beyond any weight that matters, and far from denormal numbers, which processors handle slowly.
SMALLEST_EXPONENT = np.float32(-64)
# 2^f on [-.5, .5] with relative error 8e-8, weighted least squares driven to equal ripples.
E0, E1, E2, E3, E4, E5 = (
    np.float32(c) for c in (1.00000007, 0.69314697, 0.2402212, 0.05550713, 0.00967554, 0.00132765)
)

# Rows of the pixel work array; the guide's channels follow from COLOUR on.
X, Y, RADIUS, BEST, INVERSE, MEAN, COLOUR = 0, 1, 2, 3, 4, 5, 6
# Columns of the key table; the guide's channels on the LR grid follow from KEY_COLOUR on.
UX, UY, VX, VY, R, EIGEN, KEY_COLOUR = 0, 1, 2, 3, 4, 5, 6

# One image. guide (G, H, W); table (h w, 6 + G), see the columns above; signal (h w, C); valid (h, w); radius (H, W) or empty
# where it is max_radius everywhere; offsets (K, 3) of dy, dx, squared distance, nearest first; tiles (T, 6) of owner row and
# column, top, bottom, left, right; centres of the cells by axis, HR pixels.
Problem = namedtuple(
    "Problem",
    "guide table signal valid radius offsets max_radius clamp tiles centres_y centres_x scale_y scale_x",
)
# What a tile needs; weights, distances and cells hold its live candidates after `_weigh_tile`.
Work = namedtuple("Work", "pixels scratch box keys bias ring slots places cells scores distances weights")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@intrinsic
def _float_from_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@compiled
def exp2(x):
    """2^x of a float32 x <= 0: polynomial for the fraction, exponent bits for the integer part."""
    x = max(x, SMALLEST_EXPONENT)
    whole = np.int32(x - HALF)
    f = x - np.float32(whole)
    power = ((((E5 * f + E4) * f + E3) * f + E2) * f + E1) * f + E0
    return power * _float_from_bits((whole + np.int32(127)) << np.int32(23))


@compiled
def _make_work(problem):
    candidates = (problem.offsets.shape[0] + 7) // 8 * 8
    channels = problem.guide.shape[0]
    side = 2 * problem.max_radius + 1
    return Work(
        np.empty((COLOUR + channels, TILE), np.float32),
        np.empty(TILE, np.float32),
        np.empty((2 + channels, 2), np.float32),
        np.empty(candidates, np.int64),
        np.empty(candidates, np.float32),
        np.empty(candidates, np.float32),
        np.empty(side * side, np.int64),
        np.empty(candidates, np.int64),
        np.empty(candidates, np.int64),
        np.empty((candidates, TILE), np.float32),
        np.empty((candidates, TILE), np.float32),
        np.empty((candidates, TILE), np.float32),
    )


@compiled
def _load_tile(problem, work, row, col, top, bottom, left, right):
    """Position relative to the owner, squared radius and colour of every pixel; returns the smallest and largest radius."""
    pixels = work.pixels
    p = 0
    smallest, largest = problem.max_radius, problem.max_radius
    if problem.radius.size > 0:
        smallest, largest = problem.radius[top, left], problem.radius[top, left]
    for y in range(top, bottom):
        for x in range(left, right):
            pixels[X, p] = np.float32(x - problem.centres_x[col])
            pixels[Y, p] = np.float32(y - problem.centres_y[row])
            pixels[BEST, p] = LOWEST
            radius = problem.max_radius
            if problem.radius.size > 0:
                radius = problem.radius[y, x]
                smallest, largest = min(smallest, radius), max(largest, radius)
            pixels[RADIUS, p] = np.float32(radius * radius)
            p += 1
    for g in range(problem.guide.shape[0]):
        p = 0
        for y in range(top, bottom):
            for x in range(left, right):
                pixels[COLOUR + g, p] = problem.guide[g, y, x]
                p += 1
    return smallest, largest


@compiled
def _list_candidates(problem, work, row, col, smallest, largest):
    """Flat index, log2 of the count, and squared distance of every candidate, nearest first; returns how many.

    Copies of a border cell within the smallest radius of the tile are one entry, since every pixel counts all of them; farther
    ones stay apart, because each pixel's own radius decides about them.
    """
    rows, cols = problem.valid.shape
    keys, bias, ring, slots = work.keys, work.bias, work.ring, work.slots
    slots[:] = -1
    side = 2 * problem.max_radius + 1
    n = 0
    for o in range(problem.offsets.shape[0]):
        squared = problem.offsets[o, 2]
        if squared > largest * largest:
            break
        key_row = row + problem.offsets[o, 0]
        key_col = col + problem.offsets[o, 1]
        if problem.clamp:
            key_row = min(max(key_row, 0), rows - 1)
            key_col = min(max(key_col, 0), cols - 1)
        elif key_row < 0 or key_row >= rows or key_col < 0 or key_col >= cols:
            continue
        if not problem.valid[key_row, key_col]:
            continue
        slot = (key_row - row + problem.max_radius) * side + key_col - col + problem.max_radius
        if squared <= smallest * smallest and slots[slot] >= 0:
            bias[slots[slot]] += ONE
            continue
        if squared <= smallest * smallest:
            slots[slot] = n
        keys[n] = key_row * cols + key_col
        bias[n] = ONE
        ring[n] = np.float32(squared)
        n += 1
    for k in range(n):
        bias[k] = np.log2(bias[k])
    return n


@compiled
def _smallest(values, sign, n, scratch):
    """sign * min(sign * values), by folding halves: LLVM does not vectorise a minimum as a reduction."""
    for p in range(n):
        scratch[p] = sign * values[p]
    while n > 8:
        half = (n + 1) // 2
        for p in range(n - half):
            scratch[p] = min(scratch[p], scratch[p + half])
        n = half
    low = scratch[0]
    for p in range(1, n):
        low = min(low, scratch[p])
    return sign * low


@compiled
def _measure_box(work, n):
    """Smallest and largest position and colour of the tile, for the bounds."""
    box, pixels = work.box, work.pixels
    for i in range(2):  # positions rise along the tile
        box[i, 0] = pixels[i, 0]
        box[i, 1] = pixels[i, n - 1]
    for i in range(2, box.shape[0]):
        box[i, 0] = _smallest(pixels[COLOUR + i - 2], ONE, n, work.scratch)
        box[i, 1] = _smallest(pixels[COLOUR + i - 2], -ONE, n, work.scratch)


@compiled
def _outside(value, box):
    """Distance from a value to the interval of the box."""
    return max(max(box[0] - value, value - box[1]), ZERO)


@compiled
def _score_bound(key, bias, dx, dy, box):
    """No pixel of the tile scores this key higher: distances to the boxes, and the weakest axis of the Gaussian."""
    away_x, away_y = _outside(dx, box[0]), _outside(dy, box[1])
    bound = bias - key[EIGEN] * (away_x * away_x + away_y * away_y)
    for g in range(box.shape[0] - 2):
        away = _outside(key[KEY_COLOUR + g], box[2 + g])
        bound -= key[R] * away * away
    return bound


@compiled
def _measure_colours(pixels, n, key, distance):
    """Squared colour distance of every pixel to the key."""
    colour, key_colour = pixels[COLOUR], key[KEY_COLOUR]
    for p in range(n):
        distance[p] = (colour[p] - key_colour) * (colour[p] - key_colour)
    for g in range(1, key.shape[0] - KEY_COLOUR):
        colour, key_colour = pixels[COLOUR + g], key[KEY_COLOUR + g]
        for p in range(n):
            distance[p] += (colour[p] - key_colour) * (colour[p] - key_colour)


@compiled
def _score_row(pixels, n, key, bias, ring, key_x, key_y, distance, score):
    """Scores of one key, LOWEST where it lies beyond a pixel's radius; keeps the best score of every pixel."""
    x, y, radius, best = pixels[X], pixels[Y], pixels[RADIUS], pixels[BEST]
    ux, uy, vx, vy, r = key[UX], key[UY], key[VX], key[VY], key[R]
    for p in range(n):
        dx = x[p] - key_x
        dy = y[p] - key_y
        along = ux * dx + uy * dy
        across = vx * dx + vy * dy
        s = bias - along * along - across * across - r * distance[p]
        s = s if ring <= radius[p] else LOWEST
        score[p] = s
        best[p] = max(s, best[p])


@compiled
def _score_tile(problem, work, count, row, col, n):
    """Score the listed candidates that may matter; returns how many, with their places in the list in `places`."""
    cols = problem.valid.shape[1]
    _measure_box(work, n)
    worst_best = LOWEST
    kept = 0
    for k in range(count):
        key = problem.table[work.keys[k]]
        key_x = np.float32((work.keys[k] % cols - col) * problem.scale_x)
        key_y = np.float32((work.keys[k] // cols - row) * problem.scale_y)
        if _score_bound(key, work.bias[k], key_x, key_y, work.box) < worst_best - CUT:
            continue
        _measure_colours(work.pixels, n, key, work.distances[kept])
        _score_row(
            work.pixels, n, key, work.bias[k], work.ring[k], key_x, key_y, work.distances[kept], work.scores[kept]
        )
        work.places[kept] = k
        kept += 1
        if kept >= 8 and kept & (kept - 1) == 0:  # the nearest ones decide: look again after 8, 16, 32, ...
            worst_best = _smallest(work.pixels[BEST], ONE, n, work.scratch)
    return kept


@compiled
def _softmax_tile(work, kept, n):
    """Exponentials of the scores, with their inverse sums in row INVERSE; returns the number of live candidates.

    Candidates that matter to no pixel are left out. Rows of zeros fill `weights` up to a multiple of 8. A pixel that no
    candidate reaches has INVERSE 0: it gets no weight.
    """
    best, inverse = work.pixels[BEST], work.pixels[INVERSE]
    inverse[:n] = ZERO
    count = 0
    for k in range(kept):
        score = work.scores[k]
        weight = work.weights[count]
        together = ZERO
        for p in range(n):
            e = exp2(score[p] - best[p])
            weight[p] = e
            inverse[p] += e
            together += e
        if together < NEGLIGIBLE:  # the next candidate takes its row
            continue
        work.cells[count] = work.keys[work.places[k]]
        work.places[count] = k
        count += 1
    for k in range(count, (count + 7) // 8 * 8):
        work.weights[k, :n] = ZERO
        work.cells[k] = work.cells[0]
    for p in range(n):
        inverse[p] = ONE / inverse[p] if best[p] > LOWEST * HALF else ZERO
    return count


@compiled
def _weigh_tile(problem, work, row, col, top, bottom, left, right):
    """Everything up to the unnormalised weights; returns the number of live candidates.

    Live candidate k has its weights in `weights[k]`, its cell in `cells[k]` and its colour distances in `distances[places[k]]`.
    """
    n = (bottom - top) * (right - left)
    smallest, largest = _load_tile(problem, work, row, col, top, bottom, left, right)
    listed = _list_candidates(problem, work, row, col, smallest, largest)
    if listed == 0:
        work.pixels[INVERSE, :n] = ZERO
        return 0
    kept = _score_tile(problem, work, listed, row, col, n)
    return _softmax_tile(work, kept, n)


@compiled
def _mix(work, count, signal, first, last, out, n):
    """out[c - first, p] = sum_k signal[cell k, c] weights[k, p] for channels [first, last), eight candidates at a time."""
    weights, cells = work.weights, work.cells
    out[: last - first, :n] = ZERO
    for k in range(0, count, 8):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        s0, s1, s2, s3 = signal[cells[k]], signal[cells[k + 1]], signal[cells[k + 2]], signal[cells[k + 3]]
        s4, s5, s6, s7 = signal[cells[k + 4]], signal[cells[k + 5]], signal[cells[k + 6]], signal[cells[k + 7]]
        for c in range(first, last):
            row = out[c - first]
            a0, a1, a2, a3, a4, a5, a6, a7 = s0[c], s1[c], s2[c], s3[c], s4[c], s5[c], s6[c], s7[c]
            for p in range(n):
                near = (a0 * w0[p] + a1 * w1[p]) + (a2 * w2[p] + a3 * w3[p])
                far = (a4 * w4[p] + a5 * w5[p]) + (a6 * w6[p] + a7 * w7[p])
                row[p] += near + far


@compiled
def _project(values, gradient, out, n):
    """out[p] = sum_c values[c] gradient[c, p], four channels at a time."""
    out[:n] = ZERO
    channels = gradient.shape[0]
    whole = channels // 4 * 4
    for c in range(0, whole, 4):
        g0, g1, g2, g3 = gradient[c], gradient[c + 1], gradient[c + 2], gradient[c + 3]
        a0, a1, a2, a3 = values[c], values[c + 1], values[c + 2], values[c + 3]
        for p in range(n):
            out[p] += (a0 * g0[p] + a1 * g1[p]) + (a2 * g2[p] + a3 * g3[p])
    for c in range(whole, channels):
        g0, a0 = gradient[c], values[c]
        for p in range(n):
            out[p] += a0 * g0[p]


@compiled
def _add_moments(problem, work, k, row, col, slope, n, moments, low):
    """Add to the moments of live candidate k: sums over the pixels of d score times dx^2, dx dy, dy^2, colour distance.

    `slope` is d loss / d weight times INVERSE; the softmax takes its mean (row MEAN) away. Row 0 of `moments` is key row `low`.
    """
    cols = problem.valid.shape[1]
    x, y, mean = work.pixels[X], work.pixels[Y], work.pixels[MEAN]
    weight, distance = work.weights[k], work.distances[work.places[k]]
    key_row, key_col = work.cells[k] // cols, work.cells[k] % cols
    key_x = np.float32((key_col - col) * problem.scale_x)
    key_y = np.float32((key_row - row) * problem.scale_y)
    xx, xy, yy, colour = ZERO, ZERO, ZERO, ZERO
    for p in range(n):
        d = weight[p] * (slope[p] - mean[p])
        dx = x[p] - key_x
        dy = y[p] - key_y
        xx += d * dx * dx
        xy += d * dx * dy
        yy += d * dy * dy
        colour += d * distance[p]
    moments[key_row - low, key_col, 0] += xx
    moments[key_row - low, key_col, 1] += xy
    moments[key_row - low, key_col, 2] += yy
    moments[key_row - low, key_col, 3] += colour


@compiled
def _store_tile(mixed, inverse, out, top, bottom, left, right):
    """Normalise the channels of a tile and put them in their place."""
    width = right - left
    for c in range(out.shape[0]):
        for y in range(top, bottom):
            p = (y - top) * width
            target, source, scale = out[c, y, left:right], mixed[c, p : p + width], inverse[p : p + width]
            for x in range(width):
                target[x] = source[x] * scale[x]


@compiled
def _load_gradient(gradient, inverse, top, bottom, left, right, rows):
    """d loss / d out of a tile, times INVERSE; 0 where no candidate reaches, whatever the gradient holds there."""
    width = right - left
    for c in range(gradient.shape[0]):
        for y in range(top, bottom):
            p = (y - top) * width
            source, target, scale = gradient[c, y, left:right], rows[c, p : p + width], inverse[p : p + width]
            for x in range(width):
                target[x] = source[x] * scale[x] if scale[x] > ZERO else ZERO


@compiled
def _l1_tile(pixels, mixed, n):
    """Sum of |render - guide|; `mixed` becomes its gradient times INVERSE, and row MEAN the mean slope times INVERSE."""
    inverse, mean = pixels[INVERSE], pixels[MEAN]
    mean[:n] = ZERO
    loss = ZERO
    for c in range(mixed.shape[0]):
        row, colour = mixed[c], pixels[COLOUR + c]
        for p in range(n):
            value = row[p] * inverse[p]
            difference = value - colour[p]
            loss += abs(difference)
            sign = ONE if difference > ZERO else (-ONE if difference < ZERO else ZERO)
            row[p] = sign * inverse[p]
            mean[p] += row[p] * value
    return loss


@compiled
def render_tiles(problem, first, last, out):
    """Render tiles [first, last) into out (C, H, W); 0 where no candidate reaches."""
    work = _make_work(problem)
    channels = problem.signal.shape[1]
    mixed = np.empty((min(channels, CHANNELS), TILE), np.float32)
    for t in range(first, last):
        row, col, top, bottom, left, right = problem.tiles[t]
        count = _weigh_tile(problem, work, row, col, top, bottom, left, right)
        for c in range(0, channels, CHANNELS):
            end = min(c + CHANNELS, channels)
            _mix(work, count, problem.signal, c, end, mixed, (bottom - top) * (right - left))
            _store_tile(mixed, work.pixels[INVERSE], out[c:end], top, bottom, left, right)


@compiled
def fit_tiles(problem, first, last, low, high):
    """Sum of |render - guide| over tiles [first, last), where the signal is an LR version of the guide, and its moments.

    Returns (float, (high - low, w, 4) float64), the moments of the key rows [low, high).
    """
    work = _make_work(problem)
    mixed = np.empty((problem.guide.shape[0], TILE), np.float32)
    slope = np.empty(TILE, np.float32)
    moments = np.zeros((high - low, problem.valid.shape[1], 4))
    loss = 0.0
    for t in range(first, last):
        row, col, top, bottom, left, right = problem.tiles[t]
        n = (bottom - top) * (right - left)
        count = _weigh_tile(problem, work, row, col, top, bottom, left, right)
        _mix(work, count, problem.signal, 0, mixed.shape[0], mixed, n)
        loss += _l1_tile(work.pixels, mixed, n)
        for k in range(count):
            _project(problem.signal[work.cells[k]], mixed, slope, n)
            _add_moments(problem, work, k, row, col, slope, n, moments, low)
    return loss, moments


@compiled
def backward_tiles(problem, first, last, low, high, gradient):
    """Gradients of the render over tiles [first, last), from d loss / d out (C, H, W), for the key rows [low, high).

    Returns the moments (high - low, w, 4) float64 and the gradient of the signal (high - low, w, C) float32.
    """
    work = _make_work(problem)
    cols, channels = problem.valid.shape[1], problem.signal.shape[1]
    slopes = np.empty_like(work.scores)
    rows = np.empty((channels, TILE), np.float32)
    moments = np.zeros((high - low, cols, 4))
    d_signal = np.zeros((high - low, cols, channels), np.float32)
    for t in range(first, last):
        row, col, top, bottom, left, right = problem.tiles[t]
        n = (bottom - top) * (right - left)
        count = _weigh_tile(problem, work, row, col, top, bottom, left, right)
        _load_gradient(gradient, work.pixels[INVERSE], top, bottom, left, right, rows)
        inverse, mean = work.pixels[INVERSE], work.pixels[MEAN]
        mean[:n] = ZERO
        for k in range(count):
            _project(problem.signal[work.cells[k]], rows, slopes[k], n)
            slope, weight = slopes[k], work.weights[k]
            for p in range(n):
                mean[p] += weight[p] * inverse[p] * slope[p]
        for k in range(count):
            _add_moments(problem, work, k, row, col, slopes[k], n, moments, low)
            key_row, key_col = work.cells[k] // cols, work.cells[k] % cols
            _add_products(work.weights[k], rows, d_signal[key_row - low, key_col], n)
    return moments, d_signal


@compiled
def _add_products(weight, rows, sums, n):
    """sums[c] += sum_p weight[p] rows[c, p], four channels at a time."""
    whole = rows.shape[0] // 4 * 4
    for c in range(0, whole, 4):
        r0, r1, r2, r3 = rows[c], rows[c + 1], rows[c + 2], rows[c + 3]
        a0, a1, a2, a3 = ZERO, ZERO, ZERO, ZERO
        for p in range(n):
            a0 += weight[p] * r0[p]
            a1 += weight[p] * r1[p]
            a2 += weight[p] * r2[p]
            a3 += weight[p] * r3[p]
        sums[c] += a0
        sums[c + 1] += a1
        sums[c + 2] += a2
        sums[c + 3] += a3
    for c in range(whole, rows.shape[0]):
        r0 = rows[c]
        a0 = ZERO
        for p in range(n):
            a0 += weight[p] * r0[p]
        sums[c] += a0
