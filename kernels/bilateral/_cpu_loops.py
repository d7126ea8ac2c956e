"""The loops of the `cpu` backend, compiled by Numba: tiles of pixels that share one owner cell.

A tile holds up to TILE pixels, and a row of a work array one value for each of them, so every inner loop runs over
`p` with unit stride and vectorises. For each tile: list the candidate cells (copies of a clamped border cell once,
with the logarithm of their number), score them nearest first, leave out those that cannot matter, take the softmax,
mix. Backward passes start from the same weights again, so nothing of the size of pixels times candidates outlives a
tile.

Scores are in base 2: the factors come multiplied by sqrt(log2 e), the range weight by log2 e.
"""

from __future__ import annotations

import math
from collections import namedtuple

import numba
import numpy as np

from kernels._cpu_borrow import apart, borrow
from kernels._cpu_device import empty
from kernels._cpu_exp2 import bits_of_float, exp2, ordered

TILE = 256
VECTOR = 8  # float32 that most processors of today take at once
LOG2_E = 1 / math.log(2)
# `render_tiles` mixes a group of tiles beside each other, as many as have this many bytes of weights (or of what comes
# out), so many channels at a time: that stays in the second-level cache, and memory is written in rows, not in pieces
# of a tile's width.
GROUP_BYTES, CHANNELS = 2**19, 16
# A candidate this many bits below the sum of every pixel's weights adds less than the rounding of a float32.
CUT = np.float32(24)
NEGLIGIBLE = np.float32(2.0**-24)
# Exponentials are taken relative to a reference that lies near the best score. This much above it, it is moved.
TOO_LARGE = np.float32(2.0**60)
LOWEST = np.float32(-1e30)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# Places are counted by unsigned numbers where rows are short: signed ones count from the end where they are negative,
# which Numba asks of every place unless it sees that they are not, and then nothing is a vector.
FIRST, WHOLE = np.uint64(0), np.uint64(VECTOR)

# Rows of `pixels`; the guide's channels follow from COLOUR on, filled up with zeros to a multiple of 3. EXTRA is the
# part of the colour distance that channels after the third add, and stays 0 without such.
X, Y, RADIUS, REFERENCE, TOTAL, MEAN, SCRATCH, EXTRA, COLOUR = range(9)
# Columns of the key table; the guide's channels on the LR grid follow from KEY_COLOUR on, likewise.
UX, UY, VX, VY, R, EIGEN, KEY_COLOUR = range(7)

# One image. guide (G, H, W); table (h w, 6 + 3 ceil(G / 3)), see the columns above; signal (h w, C); valid (h, w);
# radius (H, W) or empty where it is max_radius everywhere; offsets (K, 3) of dy, dx, squared distance, nearest first;
# tiles (T, 6) of owner row and column, top, bottom, left, right; centres of the cells by axis, HR pixels.
Problem = namedtuple(
    "Problem",
    "guide table signal valid radius offsets max_radius clamp tiles centres_y centres_x scale_y scale_x",
)
# Scratch of one thread. Listed candidates: `keys` (K, 2) row and column, `bias`, `ring`. Live candidates, after
# `_weigh_tile`: `cells` (K, 3) row, column and flat index, `places` (K, 2) x and y relative to the owner, `distances`
# and `weights` (K, TILE).
Work = namedtuple("Work", "pixels box keys bias ring slots cells places distances weights")

# What `render_tiles` keeps of a group of at most T tiles: `weights` (T, K, pixels), the softmax, and `cells` (T, K, 3)
# of every tile's `counts` (T) candidates; `mixed` (channels, pixels and a vector) of one tile, `rows` of all.
Group = namedtuple("Group", "weights cells counts mixed rows")

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


def make_work(channels: int, candidates: int, max_radius: int) -> Work:
    """Scratch memory for one thread: a guide of so many channels, so many candidates, this largest radius."""
    rows = -(-candidates // 8) * 8
    pixels = empty(COLOUR + -(-channels // 3) * 3, TILE)
    pixels[:] = 0  # channels that fill up a last group of three stay 0
    return Work(
        pixels=pixels,
        box=np.empty((2 + channels, 2), np.float32),
        keys=np.empty((rows, 2), np.int64),
        bias=np.empty(rows, np.float32),
        ring=np.empty(rows, np.float32),
        slots=np.empty((2 * max_radius + 1) ** 2, np.int64),
        cells=np.empty((rows, 3), np.int64),
        places=np.empty((rows, 2), np.float32),
        distances=empty(rows, TILE),
        weights=empty(rows, TILE),
    )


def make_group(channels: int, candidates: int, pixels: int) -> Group:
    """Scratch memory for one thread of `render_tiles`: so many channels and candidates, tiles of at most `pixels`."""
    keys, block = -(-candidates // 8) * 8, min(CHANNELS, channels)
    pixels = -(-pixels // VECTOR) * VECTOR
    tiles = max(1, GROUP_BYTES // (4 * max(keys, block) * pixels))
    return Group(
        weights=empty(tiles, keys, pixels),
        cells=np.empty((tiles, keys, 3), np.int64),
        counts=np.empty(tiles, np.int64),
        mixed=empty(block, pixels + VECTOR),
        rows=empty(block, (tiles + VECTOR) * pixels),  # every row ends a vector later than needed
    )


@compiled
def _borrow_problem(problem):
    return Problem(
        borrow(problem.guide),
        borrow(problem.table),
        borrow(problem.signal),
        borrow(problem.valid),
        borrow(problem.radius),
        borrow(problem.offsets),
        problem.max_radius,
        problem.clamp,
        borrow(problem.tiles),
        borrow(problem.centres_y),
        borrow(problem.centres_x),
        problem.scale_y,
        problem.scale_x,
    )


@compiled
def _borrow_work(work):
    return Work(
        borrow(work.pixels),
        borrow(work.box),
        borrow(work.keys),
        borrow(work.bias),
        borrow(work.ring),
        borrow(work.slots),
        borrow(work.cells),
        borrow(work.places),
        borrow(work.distances),
        borrow(work.weights),
    )


@compiled
def _borrow_group(group):
    return Group(
        borrow(group.weights), borrow(group.cells), borrow(group.counts), borrow(group.mixed), borrow(group.rows)
    )


@compiled
def _load_tile(problem, pixels, row, col, top, bottom, left, right):
    """Position relative to the owner, squared radius and colour of every pixel; returns the range of the radii."""
    p = 0
    for y in range(top, bottom):
        for x in range(left, right):
            pixels[X, p] = np.float32(x - problem.centres_x[col])
            pixels[Y, p] = np.float32(y - problem.centres_y[row])
            p += 1
    for g in range(problem.guide.shape[0]):
        p = 0
        for y in range(top, bottom):
            for x in range(left, right):
                pixels[COLOUR + g, p] = problem.guide[g, y, x]
                p += 1
    if problem.radius.size == 0:
        pixels[RADIUS, :p] = np.float32(problem.max_radius * problem.max_radius)
        return problem.max_radius, problem.max_radius
    smallest, largest = problem.radius[top, left], problem.radius[top, left]
    p = 0
    for y in range(top, bottom):
        for x in range(left, right):
            radius = problem.radius[y, x]
            smallest, largest = min(smallest, radius), max(largest, radius)
            pixels[RADIUS, p] = np.float32(radius * radius)
            p += 1
    return smallest, largest


@compiled
def _list_candidates(problem, work, row, col, smallest, largest):
    """Cell, log2 of the count, and squared distance of every candidate, nearest first; returns how many.

    Copies of a border cell within the smallest radius of the tile are one entry, since every pixel counts all of
    them; farther ones stay apart, because each pixel's own radius decides about them.
    """
    rows, cols = problem.valid.shape
    keys, bias, ring, slots = work.keys, work.bias, work.ring, work.slots
    side = 2 * problem.max_radius + 1
    if problem.clamp:
        slots[:] = -1
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
        if problem.clamp and squared <= smallest * smallest:
            slot = (key_row - row + problem.max_radius) * side + key_col - col + problem.max_radius
            if slots[slot] >= 0:
                bias[slots[slot]] += ONE
                continue
            slots[slot] = n
        keys[n, 0] = key_row
        keys[n, 1] = key_col
        bias[n] = ONE
        ring[n] = np.float32(squared)
        n += 1
    for k in range(n):
        bias[k] = np.log2(bias[k]) if bias[k] > ONE else ZERO
    return n


@compiled
def _smallest(pixels, row, sign, n):
    """sign * min(sign * row), by folding halves: LLVM does not vectorise a minimum as a reduction."""
    for p in range(n):
        pixels[SCRATCH, p] = sign * pixels[row, p]
    while n > 8:
        half = (n + 1) // 2
        for p in range(n - half):
            pixels[SCRATCH, p] = min(pixels[SCRATCH, p], pixels[SCRATCH, p + half])
        n = half
    low = pixels[SCRATCH, 0]
    for p in range(1, n):
        low = min(low, pixels[SCRATCH, p])
    return sign * low


@compiled
def _measure_box(pixels, n, box):
    """Smallest and largest position and colour of the tile, for the bounds."""
    for i in range(2):  # positions rise along the tile
        box[i, 0] = pixels[i, 0]
        box[i, 1] = pixels[i, n - 1]
    for i in range(2, box.shape[0]):
        box[i, 0] = _smallest(pixels, COLOUR + i - 2, ONE, n)
        box[i, 1] = _smallest(pixels, COLOUR + i - 2, -ONE, n)


@compiled
def _outside(value, low, high):
    """Distance from a value to an interval."""
    return max(max(low - value, value - high), ZERO)


@compiled
def _score_bound(table, key, bias, dx, dy, box):
    """No pixel of the tile scores this key higher: distances to the boxes, and the weakest axis of the Gaussian."""
    away_x, away_y = _outside(dx, box[0, 0], box[0, 1]), _outside(dy, box[1, 0], box[1, 1])
    bound = bias - table[key, EIGEN] * (away_x * away_x + away_y * away_y)
    for g in range(box.shape[0] - 2):
        away = _outside(table[key, KEY_COLOUR + g], box[2 + g, 0], box[2 + g, 1])
        bound -= table[key, R] * away * away
    return bound


@ordered
def _score(ux, uy, vx, vy, dx, dy, r, distance, bias):
    """log2 of the weight of a key, DESIGN section 1, from the offset and the squared colour distance to it."""
    along = ux * dx + uy * dy
    across = vx * dx + vy * dy
    return bias - (along * along + across * across + r * distance)


@compiled
def _measure_extra(pixels, n, table, key):
    """Row EXTRA: squared colour distance in the guide's channels after the third."""
    for p in range(n):
        pixels[EXTRA, p] = ZERO
    for g in range(3, table.shape[1] - KEY_COLOUR):
        key_colour = table[key, KEY_COLOUR + g]
        for p in range(n):
            d = pixels[COLOUR + g, p] - key_colour
            pixels[EXTRA, p] += d * d


@compiled
def _weigh_row(pixels, n, table, key, bias, key_x, key_y, distances, weights, k):
    """Row k: exponentials of one key's scores relative to row REFERENCE; returns their sum."""
    ux, uy, vx, vy, r = table[key, UX], table[key, UY], table[key, VX], table[key, VY], table[key, R]
    g0, g1, g2 = table[key, KEY_COLOUR], table[key, KEY_COLOUR + 1], table[key, KEY_COLOUR + 2]
    together = ZERO
    for p in range(n):
        d0 = pixels[COLOUR, p] - g0
        d1 = pixels[COLOUR + 1, p] - g1
        d2 = pixels[COLOUR + 2, p] - g2
        d = pixels[EXTRA, p] + d0 * d0 + d1 * d1 + d2 * d2
        score = _score(ux, uy, vx, vy, pixels[X, p] - key_x, pixels[Y, p] - key_y, r, d, bias)
        e = exp2(score - pixels[REFERENCE, p])
        distances[k, p] = d
        weights[k, p] = e
        together += e
    return together


@compiled
def _mask_row(pixels, n, ring, weights, k):
    """No weight where the key lies beyond a pixel's radius; returns the sum of what is left."""
    together = ZERO
    for p in range(n):
        weights[k, p] = weights[k, p] if ring <= pixels[RADIUS, p] else ZERO
        together += weights[k, p]
    return together


@compiled
def _move_reference(pixels, n, table, key, bias, ring, key_x, key_y, distances, weights, count):
    """Make this key's scores the reference where they are better and count; scale the weights and sums so far to it."""
    ux, uy, vx, vy, r = table[key, UX], table[key, UY], table[key, VX], table[key, VY], table[key, R]
    for p in range(n):
        score = _score(ux, uy, vx, vy, pixels[X, p] - key_x, pixels[Y, p] - key_y, r, distances[count, p], bias)
        score = score if ring <= pixels[RADIUS, p] else LOWEST
        moved = max(score, pixels[REFERENCE, p])
        down = pixels[REFERENCE, p] - moved
        # Weights may be as large as 2^60, so those of a reference 124 bits below are nothing; exp2 reaches half as far.
        half = exp2(HALF * down)
        pixels[SCRATCH, p] = half * half if down > np.float32(-124) else ZERO
        pixels[REFERENCE, p] = moved
        pixels[TOTAL, p] *= pixels[SCRATCH, p]
    for k in range(count):
        for p in range(n):
            weights[k, p] *= pixels[SCRATCH, p]


@compiled
def _add_rows(pixels, n, weights, first, last):
    """Add rows [first, last) of the weights to row TOTAL, four at a time; their number is a multiple of 8."""
    for k in range(first, last, 4):
        for p in range(n):
            pixels[TOTAL, p] += (weights[k, p] + weights[k + 1, p]) + (weights[k + 2, p] + weights[k + 3, p])


@compiled
def _lowest_total(pixels, n):
    """Lower bound, over the pixels, of the log2 of the sum of weights so far; smallest sum relative to REFERENCE."""
    for p in range(n):
        exponent = (bits_of_float(pixels[TOTAL, p]) >> np.int32(23)) - np.int32(127)
        pixels[MEAN, p] = pixels[REFERENCE, p] + np.float32(exponent)
    return _smallest(pixels, MEAN, ONE, n), _smallest(pixels, TOTAL, ONE, n)


@compiled
def _weigh_tile(problem, work, row, col, top, bottom, left, right):
    """Everything up to the unnormalised weights, and in row TOTAL one over their sums; returns how many are live.

    Candidates that matter to no pixel are left out. Rows of zeros fill `weights` up to a multiple of 8. A pixel that
    no candidate reaches has TOTAL 0: it gets no weight.
    """
    n = (bottom - top) * (right - left)
    cols = problem.valid.shape[1]
    pixels, table, weights, distances = work.pixels, problem.table, work.weights, work.distances
    smallest, largest = _load_tile(problem, pixels, row, col, top, bottom, left, right)
    listed = _list_candidates(problem, work, row, col, smallest, largest)
    _measure_box(pixels, n, work.box)
    pixels[TOTAL, :n] = ZERO
    pixels[REFERENCE, :n] = LOWEST  # so the first candidate of a pixel moves it
    everywhere = np.float32(smallest * smallest)
    scale_y, scale_x = np.float32(problem.scale_y), np.float32(problem.scale_x)
    count, added = 0, 0
    lowest_log, lowest = LOWEST, ZERO
    for i in range(listed):
        key_row, key_col, bias, ring = work.keys[i, 0], work.keys[i, 1], work.bias[i], work.ring[i]
        key = key_row * cols + key_col
        key_x, key_y = np.float32(key_col - col) * scale_x, np.float32(key_row - row) * scale_y
        if _score_bound(table, key, bias, key_x, key_y, work.box) < lowest_log - CUT:
            continue
        if table.shape[1] > KEY_COLOUR + 3:
            _measure_extra(pixels, n, table, key)
        together = _weigh_row(pixels, n, table, key, bias, key_x, key_y, distances, weights, count)
        if ring > everywhere:
            together = _mask_row(pixels, n, ring, weights, count)
        if together > TOO_LARGE:
            _move_reference(pixels, n, table, key, bias, ring, key_x, key_y, distances, weights, count)
            together = _weigh_row(pixels, n, table, key, bias, key_x, key_y, distances, weights, count)
            if ring > everywhere:
                together = _mask_row(pixels, n, ring, weights, count)
            lowest = ZERO
        if together < NEGLIGIBLE * lowest:  # the next candidate takes its row
            continue
        work.cells[count, 0], work.cells[count, 1], work.cells[count, 2] = key_row, key_col, key
        work.places[count, 0], work.places[count, 1] = key_x, key_y
        count += 1
        if count >= 8 and count & (count - 1) == 0:  # the nearest ones decide: look after 8, 16, 32, ...
            _add_rows(pixels, n, weights, added, count)
            added = count
            lowest_log, lowest = _lowest_total(pixels, n)
    padded = (count + 7) // 8 * 8
    for k in range(count, padded):
        weights[k, :n] = ZERO
        work.cells[k, 2] = work.cells[0, 2]
    _add_rows(pixels, n, weights, added, padded)
    for p in range(n):
        pixels[TOTAL, p] = ONE / pixels[TOTAL, p] if pixels[TOTAL, p] > ZERO else ZERO
    return count


@compiled
def _mix(weights, cells, count, signal, first, last, out, n):
    """out[c - first, p] = sum_k signal[cell k, c] weights[k, p], first <= c < last, eight candidates at a time."""
    out[: last - first, :n] = ZERO
    for k in range(0, count, 8):
        k0, k1, k2, k3 = cells[k, 2], cells[k + 1, 2], cells[k + 2, 2], cells[k + 3, 2]
        k4, k5, k6, k7 = cells[k + 4, 2], cells[k + 5, 2], cells[k + 6, 2], cells[k + 7, 2]
        for c in range(first, last):
            s0, s1, s2, s3 = signal[k0, c], signal[k1, c], signal[k2, c], signal[k3, c]
            s4, s5, s6, s7 = signal[k4, c], signal[k5, c], signal[k6, c], signal[k7, c]
            for p in range(n):
                near = (s0 * weights[k, p] + s1 * weights[k + 1, p]) + (s2 * weights[k + 2, p] + s3 * weights[k + 3, p])
                far = (s4 * weights[k + 4, p] + s5 * weights[k + 5, p]) + (
                    s6 * weights[k + 6, p] + s7 * weights[k + 7, p]
                )
                out[c - first, p] += near + far


@compiled
def _project(signal, key, gradient, out, row, n):
    """out[row, p] = sum_c signal[key, c] gradient[c, p], four channels at a time; gradient has a multiple of 4 rows."""
    out[row, :n] = ZERO
    for c in range(0, signal.shape[1], 4):
        s0, s1, s2, s3 = signal[key, c], signal[key, c + 1], signal[key, c + 2], signal[key, c + 3]
        for p in range(n):
            near = s0 * gradient[c, p] + s1 * gradient[c + 1, p]
            far = s2 * gradient[c + 2, p] + s3 * gradient[c + 3, p]
            out[row, p] += near + far


@compiled
def _add_moments(pixels, weights, distances, k, cells, places, low, slopes, s0, s1, s2, s3, row, n, moments):
    """Add to the moments of a live candidate's cell: sums of d score times dx^2, dx dy, dy^2, colour distance.

    d loss / d weight, times TOTAL, is the sum of rows `row` to `row + 3` of `slopes` times s0 to s3; the softmax
    takes its mean (row MEAN of `pixels`) away. Row 0 of `moments` is key row `low`.
    """
    key_x, key_y = places[k, 0], places[k, 1]
    xx, xy, yy, colour = ZERO, ZERO, ZERO, ZERO
    for p in range(n):
        near = s0 * slopes[row, p] + s1 * slopes[row + 1, p]
        far = s2 * slopes[row + 2, p] + s3 * slopes[row + 3, p]
        d = weights[k, p] * (near + far - pixels[MEAN, p])
        dx = pixels[X, p] - key_x
        dy = pixels[Y, p] - key_y
        d_dx = d * dx
        d_dy = d * dy
        xx += d_dx * dx
        xy += d_dx * dy
        yy += d_dy * dy
        colour += d * distances[k, p]
    key_row, key_col = cells[k, 0] - low, cells[k, 1]
    moments[key_row, key_col, 0] += xx
    moments[key_row, key_col, 1] += xy
    moments[key_row, key_col, 2] += yy
    moments[key_row, key_col, 3] += colour


@compiled
def _add_products(weights, k, rows, d_signal, key_row, key_col, n):
    """d_signal[key_row, key_col, c] += sum_p weights[k, p] rows[c, p], four channels at a time."""
    for c in range(0, d_signal.shape[2], 4):
        a0, a1, a2, a3 = ZERO, ZERO, ZERO, ZERO
        for p in range(n):
            w = weights[k, p]
            a0 += w * rows[c, p]
            a1 += w * rows[c + 1, p]
            a2 += w * rows[c + 2, p]
            a3 += w * rows[c + 3, p]
        d_signal[key_row, key_col, c] += a0
        d_signal[key_row, key_col, c + 1] += a1
        d_signal[key_row, key_col, c + 2] += a2
        d_signal[key_row, key_col, c + 3] += a3


@compiled
def _keep_weights(work, count, n, group, place):
    """The softmax of a tile's candidates, as `_mix` takes it, until its group is mixed."""
    group.counts[place] = count
    for k in range((count + 7) // 8 * 8):
        group.cells[place, k, 2] = work.cells[k, 2]  # all that `_mix` looks at
        for p in range(n):
            group.weights[place, k, p] = work.weights[k, p] * work.pixels[TOTAL, p]


@compiled
def _lay_tile(mixed, rows, channels, height, width, left, pitch):
    """A tile (channels, height x width) from column `left` on into rows of `pitch` pixels, whole vectors at a time.

    What lies beyond the tile is written over by the next one, or lies beyond the group. Numbers are uint64: FIRST.
    """
    apart()
    for c in range(channels):
        for y in range(height):
            source, target = y * width, y * pitch + left
            for begin in range(FIRST, width, WHOLE):
                for p in range(WHOLE):
                    rows[c, target + begin + p] = mixed[c, source + begin + p]


@compiled
def _store_rows(rows, pitch, out, first, last, top, bottom, left, right):
    """Rows of a group into channels [first, last) of the image. Numbers are uint64: FIRST."""
    apart()
    for c in range(first, last):
        for y in range(top, bottom):
            source = (y - top) * pitch
            for x in range(left, right):
                out[c, y, x] = rows[c - first, source + (x - left)]


@compiled
def _load_gradient(gradient, pixels, top, bottom, left, right, rows):
    """d loss / d out of a tile, times TOTAL; 0 where no candidate reaches, whatever the gradient holds there."""
    begin, width = np.uint64(left), np.uint64(right - left)  # unsigned: FIRST
    for c in range(gradient.shape[0]):
        for y in range(top, bottom):
            p = np.uint64(y - top) * width
            for x in range(width):
                scale = pixels[TOTAL, p + x]
                rows[c, p + x] = gradient[c, y, begin + x] * scale if scale > ZERO else ZERO


@compiled
def _l1_tile(pixels, mixed, channels, n):
    """Sum of |render - guide|; `mixed` becomes its gradient times TOTAL, and row MEAN the mean slope times TOTAL."""
    pixels[MEAN, :n] = ZERO
    loss = ZERO
    for c in range(channels):
        for p in range(n):
            total = pixels[TOTAL, p]
            value = mixed[c, p] * total
            difference = value - pixels[COLOUR + c, p]
            loss += abs(difference)
            slope = total if difference > ZERO else (-total if difference < ZERO else ZERO)
            mixed[c, p] = slope
            pixels[MEAN, p] += slope * value
    return loss


@compiled
def render_tiles(problem, work, group, first, last, out):
    """Render tiles [first, last) into out (C, H, W); 0 where no candidate reaches.

    A group of tiles beside each other is weighed first, then mixed some channels at a time.
    """
    problem, work, group, out = _borrow_problem(problem), _borrow_work(work), _borrow_group(group), borrow(out)
    tiles = problem.tiles
    while first < last:
        end = first
        while end < min(last, first + len(group.counts)) and tiles[end, 2] == tiles[first, 2]:
            row, col, top, bottom, left, right = tiles[end]
            count = _weigh_tile(problem, work, row, col, top, bottom, left, right)
            _keep_weights(work, count, (bottom - top) * (right - left), group, end - first)
            end += 1
        _mix_group(problem, group, first, end, out)
        first = end


@compiled
def _mix_group(problem, group, first, last, out):
    """Mix tiles [first, last), which are beside each other and whose weights are kept, into `out`."""
    channels, block = len(out), len(group.mixed)
    top, bottom, begin, end = (
        problem.tiles[first, 2],
        problem.tiles[first, 3],
        problem.tiles[first, 4],
        problem.tiles[last - 1, 5],
    )
    height, pitch = np.uint64(bottom - top), np.uint64(end - begin) + WHOLE
    for c in range(0, channels, block):
        stop = min(c + block, channels)
        for t in range(first, last):
            left, right, place = problem.tiles[t, 4], problem.tiles[t, 5], t - first
            n = (bottom - top) * (right - left)
            whole = (n + VECTOR - 1) // VECTOR * VECTOR  # a few pixels more take less time than those after the last
            _mix(
                group.weights[place],
                group.cells[place],
                group.counts[place],
                problem.signal,
                c,
                stop,
                group.mixed,
                whole,
            )
            _lay_tile(
                group.mixed,
                group.rows,
                np.uint64(stop - c),
                height,
                np.uint64(right - left),
                np.uint64(left - begin),
                pitch,
            )
        _store_rows(
            group.rows,
            pitch,
            out,
            np.uint64(c),
            np.uint64(stop),
            np.uint64(top),
            np.uint64(bottom),
            np.uint64(begin),
            np.uint64(end),
        )


@compiled
def fit_tiles(problem, work, first, last, mixed, moments, low):
    """Sum of |render - guide| over tiles [first, last), where the signal is an LR version of the guide.

    Adds to `moments` (key rows from `low` on, w, 4), see `_add_moments`. `mixed` is scratch, one row of zeros to
    begin with for each column of the signal.
    """
    problem, work, mixed, moments = _borrow_problem(problem), _borrow_work(work), borrow(mixed), borrow(moments)
    pixels, cells, places, weights, distances = work.pixels, work.cells, work.places, work.weights, work.distances
    signal, channels = problem.signal, problem.guide.shape[0]
    slopes = np.zeros((4, TILE), np.float32)
    loss = 0.0
    for t in range(first, last):
        row, col, top, bottom, left, right = problem.tiles[t]
        n = (bottom - top) * (right - left)
        count = _weigh_tile(problem, work, row, col, top, bottom, left, right)
        _mix(weights, cells, count, signal, 0, channels, mixed, n)
        loss += _l1_tile(pixels, mixed, channels, n)
        for k in range(count):
            key = cells[k, 2]
            if mixed.shape[0] == 4:
                s0, s1, s2, s3 = signal[key, 0], signal[key, 1], signal[key, 2], signal[key, 3]
                _add_moments(pixels, weights, distances, k, cells, places, low, mixed, s0, s1, s2, s3, 0, n, moments)
            else:
                _project(signal, key, mixed, slopes, 0, n)
                _add_moments(
                    pixels, weights, distances, k, cells, places, low, slopes, ONE, ZERO, ZERO, ZERO, 0, n, moments
                )
    return loss


@compiled
def backward_tiles(problem, work, first, last, gradient, rows, slopes, moments, d_signal, low):
    """Gradients of the render over tiles [first, last), from d loss / d out (C, H, W).

    Adds to `moments` (key rows from `low` on, w, 4), see `_add_moments`, and to `d_signal` (the same rows, w, columns
    of the signal). `rows` (columns, TILE) and `slopes` (K + 3, TILE), zeros to begin with, are scratch.
    """
    problem, work = _borrow_problem(problem), _borrow_work(work)
    gradient, rows, slopes = borrow(gradient), borrow(rows), borrow(slopes)
    moments, d_signal = borrow(moments), borrow(d_signal)
    pixels, cells, places, weights, distances = work.pixels, work.cells, work.places, work.weights, work.distances
    for t in range(first, last):
        row, col, top, bottom, left, right = problem.tiles[t]
        n = (bottom - top) * (right - left)
        count = _weigh_tile(problem, work, row, col, top, bottom, left, right)
        _load_gradient(gradient, pixels, top, bottom, left, right, rows)
        pixels[MEAN, :n] = ZERO
        for k in range(count):
            _project(problem.signal, cells[k, 2], rows, slopes, k, n)
            for p in range(n):
                pixels[MEAN, p] += weights[k, p] * pixels[TOTAL, p] * slopes[k, p]
        for k in range(count):
            _add_moments(
                pixels, weights, distances, k, cells, places, low, slopes, ONE, ZERO, ZERO, ZERO, k, n, moments
            )
            _add_products(weights, k, rows, d_signal, cells[k, 0] - low, cells[k, 1], n)


@compiled
def write_anisotropic(raw, floor, epsilon, table):
    """Into the key table: factors in base 2, range weight, smallest eigenvalue, from one image's raw maps (4, h w).

    The raw maps are log sigma_x, log sigma_y, theta with theta = pi tanh(raw), log sigma_r.
    """
    for q in range(raw.shape[1]):
        sigma_x, sigma_y = max(np.exp(raw[0, q]), floor), max(np.exp(raw[1, q]), floor)
        sigma_r, theta = max(np.exp(raw[3, q]), floor), np.pi * np.tanh(raw[2, q])
        along, across = LOG2_E / (2 * sigma_x * sigma_x + epsilon), LOG2_E / (2 * sigma_y * sigma_y + epsilon)
        cos, sin = np.cos(theta), np.sin(theta)
        table[q, UX], table[q, UY] = np.sqrt(along) * cos, np.sqrt(along) * sin
        table[q, VX], table[q, VY] = -np.sqrt(across) * sin, np.sqrt(across) * cos
        table[q, R] = LOG2_E / (2 * sigma_r * sigma_r + epsilon)
        table[q, EIGEN] = min(along, across) * (1 - 1e-6)


@compiled
def write_radius(raw, floor, cells_per_pixel, largest, cols, radius):
    """Into (H, W): clamp(ceil(cells_per_pixel * max(sigma_x, sigma_y)), 1, largest), bilinear between the centres."""
    height, width = radius.shape
    rows = raw.shape[1] // cols
    sigma = np.empty((rows, cols), np.float32)
    for q in range(raw.shape[1]):
        sigma[q // cols, q % cols] = cells_per_pixel * max(np.exp(max(raw[0, q], raw[1, q])), floor)
    line = np.empty(cols + 1, np.float32)
    for y in range(height):
        v = max((y + HALF) * np.float32(rows / height) - HALF, ZERO)
        i = min(int(v), rows - 1)
        below, down = min(i + 1, rows - 1), v - np.float32(i)
        for j in range(cols):
            line[j] = sigma[i, j] + down * (sigma[below, j] - sigma[i, j])
        line[cols] = line[cols - 1]
        for x in range(width):
            u = max((x + HALF) * np.float32(cols / width) - HALF, ZERO)
            j = min(np.int32(u), np.int32(cols - 1))
            mixed = line[j] + (u - np.float32(j)) * (line[j + 1] - line[j])
            radius[y, x] = min(max(np.ceil(mixed - np.float32(1e-3)), ONE), np.float32(largest))


@compiled
def step_anisotropic(raw, moments, values, floor, epsilon, first, second, step, rate):
    """One Adam step (betas .9 and .999, eps 1e-8, as torch.optim.Adam) of one image's raw maps (4, h w), in place.

    `moments` (h w, 4) are those of `_add_moments`, summed over a loss of so many `values`. `first` and `second` (4, h
    w) are Adam's averages; `step` counts from 1. With a = 1 / (2 sigma_x^2 + epsilon), c likewise of sigma_y, r of
    sigma_r, and M the matrix of the moments in the rotated frame: d log sigma_x = 4 sigma_x^2 a^2 M_xx, d log sigma_y
    = 4 sigma_y^2 c^2 M_yy, d theta = 2 (c - a) M_xy.
    """
    gradient = np.empty(4)
    correction_1, correction_2 = 1 - 0.9**step, np.sqrt(1 - 0.999**step)
    for q in range(raw.shape[1]):
        moves_x, moves_y, moves_r = np.exp(raw[0, q]) > floor, np.exp(raw[1, q]) > floor, np.exp(raw[3, q]) > floor
        sigma_x, sigma_y = max(np.exp(raw[0, q]), floor), max(np.exp(raw[1, q]), floor)
        sigma_r = max(np.exp(raw[3, q]), floor)
        a, c = 1 / (2 * sigma_x * sigma_x + epsilon), 1 / (2 * sigma_y * sigma_y + epsilon)
        r = 1 / (2 * sigma_r * sigma_r + epsilon)
        tanh = np.tanh(raw[2, q])
        cos, sin = np.cos(np.pi * tanh), np.sin(np.pi * tanh)
        xx, xy, yy, colour = moments[q, 0], moments[q, 1], moments[q, 2], moments[q, 3]
        along = cos * cos * xx + 2 * cos * sin * xy + sin * sin * yy
        across = sin * sin * xx - 2 * cos * sin * xy + cos * cos * yy
        mixed = cos * sin * (yy - xx) + (cos * cos - sin * sin) * xy
        gradient[0] = 4 * sigma_x * sigma_x * a * a * along if moves_x else 0
        gradient[1] = 4 * sigma_y * sigma_y * c * c * across if moves_y else 0
        gradient[2] = 2 * (c - a) * mixed * np.pi * (1 - tanh * tanh)
        gradient[3] = 4 * sigma_r * sigma_r * r * r * colour if moves_r else 0
        for i in range(4):
            g = gradient[i] / values
            first[i, q] = 0.9 * first[i, q] + 0.1 * g
            second[i, q] = 0.999 * second[i, q] + 0.001 * g * g
            raw[i, q] -= rate / correction_1 * first[i, q] / (np.sqrt(second[i, q]) / correction_2 + 1e-8)
