"""The Triton kernels: softmax statistics, mixing, and the four sums that make the gradients.

A *tile* is up to BP pixels of one owner cell, a block of *keys* is up to BK of its candidates, nearest first. Scores of
a block of keys and a tile live in registers and never reach memory; every pass recomputes them from the log-sum-exp.
Which candidates a cell has, and how often a clamped border repeats them, stands in small tables of the grid alone
(`_triton_tables.py`): a cell looks up its class.

Names: `i_` index, `n_` count, `o_` offset, `m_` mask, `p_` pointer; shapes stand beside the mathematics. Scores are in
base 2: the key table holds factors times sqrt(log2 e) and range weights times log2 e.

What a kernel computes for a pair of pixel p and key q, with d = p - mu_q:

    score = log2 copies - |W d|^2 - r |I(p) - g(q)|^2,    w = 2^(score - lse(p))
    slope = w (sum_c d_out(p, c) signal(q, c) - delta(p)),    delta(p) = sum_q w sum_c d_out(p, c) signal(q, c)
"""

# Annotations are evaluated: Triton reads tl.constexpr from them.
import triton
import triton.language as tl

from kernels._triton_turn import PI, cos_and_sin

# Globals that kernels read must be constexpr; write them last in a product, as Triton's interpreter needs.
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
PACKED_ZERO = tl.constexpr(128 << 8 | 128)
# Sizes differ from image to image: one compiled kernel serves all. And none must be known to be a multiple of anything:
# the hint of `tile_of` is true but for the ends of rows, and words must be read one by one there.
SIZES = ["n_rows", "n_cols", "height", "width", "n_tiles", "n_slots", "n_radii", "max_radius", "n_channels"]


@triton.jit
def first_pixel(i_cell, n_cells, n_pixels):
    """First pixel that a cell owns along one axis, as `kernels.geometry.owner_starts` in integers."""
    return ((2 * n_pixels.to(tl.int64) * i_cell + n_cells - 1) // (2 * n_cells)).to(tl.int32)


@triton.jit
def from_centre(i_first, i_cell, n_cells, n_pixels):
    """Position of a pixel relative to the centre of a cell, HR pixels: exact up to the last division."""
    doubled = (2 * i_first + 1) * n_cells.to(tl.int64) - (2 * i_cell + 1) * n_pixels.to(tl.int64)
    return doubled.to(tl.float32) / (2 * n_cells).to(tl.float32)


@triton.jit
def tile_of(i_row, i_col, i_tile, n_rows, n_cols, height, width, BP: tl.constexpr):
    """Pixels [BP] of tile `i_tile` of a cell: offset in an image plane, whether it exists, x and y from the centre."""
    top, left = first_pixel(i_row, n_rows, height), first_pixel(i_col, n_cols, width)
    bottom, right = first_pixel(i_row + 1, n_rows, height), first_pixel(i_col + 1, n_cols, width)
    place = i_tile * BP + tl.arange(0, BP)
    y, x = place // (right - left), place % (right - left)
    m_pixel = y < bottom - top
    o_pixel = (top + y) * width + left + x
    # Where a row of the cell ends it is not so; but nothing says where a row begins, so words are read one by one,
    # and what follows is that threads run along pixels. Triton 3.6, if not told, has them run along channels.
    tl.max_contiguous(o_pixel, [2])
    b_x = from_centre(left, i_col, n_cols, width) + x.to(tl.float32)
    b_y = from_centre(top, i_row, n_rows, height) + y.to(tl.float32)
    return o_pixel, m_pixel, b_x, b_y


@triton.jit
def load_planes(p_planes, offsets, mask, stride, N: tl.constexpr):
    """The same places of N planes, as a tuple of float32 blocks."""
    planes = ()
    for n in tl.static_range(N):
        planes = planes + (tl.load(p_planes + n * stride + offsets, mask=mask, other=0.0).to(tl.float32),)
    return planes


@triton.jit
def load_rows(p_rows, i_row, mask, N: tl.constexpr):
    """Rows of N values each, as a tuple of N float32 blocks: one address a row, its values at constant offsets."""
    values = ()
    for n in tl.static_range(N):
        values = values + (tl.load(p_rows + i_row * N + n, mask=mask, other=0.0).to(tl.float32),)
    return values


@triton.jit
def keys_of(
    p_keys, p_table, p_valid, i_class, i_row, i_col, first, count, n_rows, n_cols, height, width, n_slots,
    G: tl.constexpr, BK: tl.constexpr,
):
    """Keys [BK] from the list of a cell's class: which count, flat index, x and y from its centre, 5 + G values."""
    place = first + tl.arange(0, BK)
    m_key = place < count
    packed = tl.load(p_keys + i_class * n_slots + place, mask=m_key, other=PACKED_ZERO)
    dy, dx = (packed >> 8 & 255) - 128, (packed & 255) - 128
    i_key = (i_row + dy) * n_cols + i_col + dx
    k_x = dx.to(tl.float32) * (width.to(tl.float32) / n_cols.to(tl.float32))
    k_y = dy.to(tl.float32) * (height.to(tl.float32) / n_rows.to(tl.float32))
    values = load_rows(p_table, i_key, m_key, 5 + G)
    if p_valid is not None:
        m_key = m_key & (tl.load(p_valid + i_key, mask=m_key, other=0) != 0)
    return m_key, i_key, k_x, k_y, values


@triton.jit
def column(values):
    """[N] -> [N, 1], of every block of a tuple."""
    columns = ()
    for n in tl.static_range(len(values)):
        columns = columns + (values[n][:, None],)
    return columns


@triton.jit
def line(values):
    """[N] -> [1, N], of every block of a tuple."""
    lines = ()
    for n in tl.static_range(len(values)):
        lines = lines + (values[n][None, :],)
    return lines


@triton.jit
def colour_distance(colours, values, G: tl.constexpr):
    """|I(p) - g(q)|^2; expanding the square would lose the digits that a small sigma_r needs."""
    e = colours[0] - values[5]
    distance = e * e
    for g in tl.static_range(1, G):
        e = colours[g] - values[5 + g]
        distance += e * e
    return distance


@triton.jit
def score_of(x, y, at_zero, distance, values, bias):
    """log2 of the unnormalised weight of a pair; `at_zero`: W (0 - mu_q), what the key alone adds to W (p - mu_q)."""
    along = values[0] * x + (values[1] * y + at_zero[0])
    across = values[2] * x + (values[3] * y + at_zero[1])
    return bias - (along * along + across * across + values[4] * distance)


@triton.jit
def factors_at_zero(k_x, k_y, values):
    """W (0 - mu_q) of keys at (k_x, k_y) from the centre of the cell."""
    return -(values[0] * k_x + values[1] * k_y), -(values[2] * k_x + values[3] * k_y)


@triton.jit
def bias_of(p_copies, radius, place, m_key, n_slots):
    """log2 of how often a key counts within a radius, -inf where it does not; the shapes are broadcast."""
    return tl.load(p_copies + radius * n_slots + place, mask=m_key, other=float("-inf"))


@triton.jit
def range_of(radius, m_pixel):
    """Smallest and largest radius among the pixels that exist."""
    smallest = tl.min(tl.where(m_pixel, radius, 1 << 20), 0)
    return tl.minimum(smallest, tl.max(tl.where(m_pixel, radius, 0), 0)), tl.max(tl.where(m_pixel, radius, 0), 0)


@triton.jit
def radius_at(p_reach, o_pixel, m_pixel, n_rows, n_cols, height, width, n_radii):
    """clamp(ceil(reach), 1, n_radii - 1) of pixels [BP], from the reach of every cell bilinear between the centres."""
    v = (o_pixel // width).to(tl.float32) + 0.5
    u = (o_pixel % width).to(tl.float32) + 0.5
    v = tl.maximum(v * (n_rows.to(tl.float32) / height.to(tl.float32)) - 0.5, 0.0)
    u = tl.maximum(u * (n_cols.to(tl.float32) / width.to(tl.float32)) - 0.5, 0.0)
    i, j = tl.minimum(v.to(tl.int32), n_rows - 1), tl.minimum(u.to(tl.int32), n_cols - 1)
    down, right = v - i.to(tl.float32), u - j.to(tl.float32)
    i_below, j_right = tl.minimum(i + 1, n_rows - 1), tl.minimum(j + 1, n_cols - 1)
    here = tl.load(p_reach + i * n_cols + j, mask=m_pixel, other=0.0)
    beside = tl.load(p_reach + i * n_cols + j_right, mask=m_pixel, other=0.0)
    below = tl.load(p_reach + i_below * n_cols + j, mask=m_pixel, other=0.0)
    across = tl.load(p_reach + i_below * n_cols + j_right, mask=m_pixel, other=0.0)
    upper, lower = here + down * (below - here), beside + down * (across - beside)
    # A little less, so that the rounding of sigma = 2 cells does not make 3 of it.
    reach = tl.ceil(upper + right * (lower - upper) - 1e-3)
    return tl.minimum(tl.maximum(reach, 1.0), tl.maximum(n_radii - 1, 1).to(tl.float32)).to(tl.int32)


@triton.jit
def spread(block, LAST: tl.constexpr):
    """[N] -> [1, N] or, if not LAST, [N, 1]."""
    return block[None, :] if LAST else block[:, None]


@triton.jit
def scores_of(
    p_keys, p_table, p_valid, p_copies, i_class, i_row, i_col, first, count, b_x, b_y, colours, radius,
    n_rows, n_cols, height, width, n_slots,
    G: tl.constexpr, BK: tl.constexpr, VARIES: tl.constexpr, BY_PIXEL: tl.constexpr = False,
):
    """Scores [BK, BP] of a block of keys, or [BP, BK] if BY_PIXEL, and what they were made of.

    Neighbouring threads have neighbours of the last axis, and each some places of the first: what it loads of a key
    serves all its pixels if BY_PIXEL, else what it loads of a pixel all its keys.
    """
    m_key, i_key, k_x, k_y, values = keys_of(
        p_keys, p_table, p_valid, i_class, i_row, i_col, first, count, n_rows, n_cols, height, width, n_slots, G, BK
    )
    place, of_keys = first + tl.arange(0, BK), spread(m_key, BY_PIXEL)
    if VARIES:
        bias = bias_of(p_copies, spread(radius, not BY_PIXEL), spread(place, BY_PIXEL), of_keys, n_slots)
    else:
        bias = spread(bias_of(p_copies, radius, place, m_key, n_slots), BY_PIXEL)
    x, y = spread(b_x, not BY_PIXEL), spread(b_y, not BY_PIXEL)
    if BY_PIXEL:
        distance = colour_distance(column(colours), line(values), G)
        score = score_of(x, y, line(factors_at_zero(k_x, k_y, values)), distance, line(values), bias)
    else:
        distance = colour_distance(line(colours), column(values), G)
        score = score_of(x, y, column(factors_at_zero(k_x, k_y, values)), distance, column(values), bias)
    return score, m_key, i_key, k_x, k_y, distance, values


# --- forward


@triton.jit
def softmax_loop(
    p_keys, p_table, p_signal, p_valid, p_copies, i_class, i_row, i_col, count, b_x, b_y, colours, radius,
    n_rows, n_cols, height, width, n_slots,
    G: tl.constexpr, C: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, VARIES: tl.constexpr,
):
    """Highest score, sum of weights relative to it, and C weighted sums of the signal, all [BP], over a cell's keys."""
    peak = tl.full([BP], float("-inf"), tl.float32)
    total = tl.zeros([BP], tl.float32)
    mixed = ()
    for _n in tl.static_range(C):
        mixed = mixed + (tl.zeros([BP], tl.float32),)
    for first in range(0, count, BK):
        pairs = scores_of(
            p_keys, p_table, p_valid, p_copies, i_class, i_row, i_col, first, count, b_x, b_y, colours, radius,
            n_rows, n_cols, height, width, n_slots, G, BK, VARIES,
        )
        score, m_key, i_key = pairs[0], pairs[1], pairs[2]  # [BK, BP], [BK], [BK]
        higher = tl.maximum(peak, tl.max(score, 0))
        # Where no key has counted yet, -inf - -inf would be NaN.
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - anchor[None, :])
        shrink = tl.exp2(peak - anchor)
        total = total * shrink + tl.sum(weight, 0)
        signal = load_rows(p_signal, i_key, m_key, C)
        grown = ()
        for c in tl.static_range(C):
            grown = grown + (mixed[c] * shrink + tl.sum(weight * signal[c][:, None], 0),)
        mixed = grown
        peak = higher
    return (peak, total) + mixed


@triton.jit(do_not_specialize=SIZES)
def softmax_kernel(
    p_guide, p_table, p_signal, p_valid, p_radius, p_reach, p_classes, p_keys, p_counts, p_copies,
    p_out, p_lse, p_losses, p_d_out, p_delta,
    n_rows, n_cols, height, width, n_tiles, n_slots, n_radii,
    G: tl.constexpr, C: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):
    """Log-sum-exp of every pixel, and the render itself where the signal has few channels. A program a tile.

    With `p_losses` the signal is an LR version of the guide, and instead of the render come the loss of every tile, sum
    |render - guide|, its slope `d_out`, and `delta`. With `p_reach` the radius of every pixel is computed and stored.
    """
    i_cell, i_tile = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    i_batch = tl.program_id(1).to(tl.int64)
    i_row, i_col = i_cell // n_cols, i_cell % n_cols
    n_cells, n_pixels = n_rows * n_cols, height * width
    o_pixel, m_pixel, b_x, b_y = tile_of(i_row, i_col, i_tile, n_rows, n_cols, height, width, BP)
    i_class = tl.load(p_classes + i_cell)
    p_copies += i_class * n_radii * n_slots
    p_table += i_batch * (5 + G) * n_cells
    p_signal += i_batch * C * n_cells
    p_lse += i_batch * n_pixels
    if p_valid is not None:
        p_valid += i_batch * n_cells
    colours = load_planes(p_guide + i_batch * G * n_pixels, o_pixel, m_pixel, n_pixels, G)

    if p_radius is None:
        count = tl.load(p_counts + i_class * n_radii + n_radii - 1)
        state = softmax_loop(
            p_keys, p_table, p_signal, p_valid, p_copies, i_class, i_row, i_col, count, b_x, b_y, colours, n_radii - 1,
            n_rows, n_cols, height, width, n_slots, G, C, BP, BK, False,
        )
    else:
        p_radius += i_batch * n_pixels
        if p_reach is None:
            radius = tl.minimum(tl.load(p_radius + o_pixel, mask=m_pixel, other=0), n_radii - 1)
        else:
            p_reach += i_batch * n_cells
            radius = radius_at(p_reach, o_pixel, m_pixel, n_rows, n_cols, height, width, n_radii)
            radius = tl.minimum(radius, n_radii - 1)
            tl.store(p_radius + o_pixel, radius, mask=m_pixel)
        smallest, largest = range_of(radius, m_pixel)
        count = tl.load(p_counts + i_class * n_radii + largest)
        if smallest == largest:
            state = softmax_loop(
                p_keys, p_table, p_signal, p_valid, p_copies, i_class, i_row, i_col, count, b_x, b_y, colours, largest,
                n_rows, n_cols, height, width, n_slots, G, C, BP, BK, False,
            )
        else:
            state = softmax_loop(
                p_keys, p_table, p_signal, p_valid, p_copies, i_class, i_row, i_col, count, b_x, b_y, colours, radius,
                n_rows, n_cols, height, width, n_slots, G, C, BP, BK, True,
            )

    peak, reached = state[0], state[1] > 0
    total = tl.where(reached, state[1], 1.0)
    tl.store(p_lse + o_pixel, tl.where(reached, peak + tl.log2(total), float("-inf")), mask=m_pixel)
    if p_losses is not None:
        loss, delta = tl.zeros([BP], tl.float32), tl.zeros([BP], tl.float32)
        for c in tl.static_range(C):
            rendered = state[2 + c] / total
            difference = rendered - colours[c]
            loss += tl.abs(difference)
            slope = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
            delta += slope * rendered
            tl.store(p_d_out + (i_batch * C + c) * n_pixels + o_pixel, slope, mask=m_pixel)
        tl.store(p_delta + i_batch * n_pixels + o_pixel, delta, mask=m_pixel)
        loss = tl.sum(tl.where(m_pixel, loss, 0.0), 0)
        tl.store(p_losses + i_batch * n_cells * n_tiles + tl.program_id(0), loss)
    else:
        for c in tl.static_range(C):
            rendered = tl.where(reached, state[2 + c] / total, float("nan"))
            p_plane = p_out + (i_batch * C + c) * n_pixels
            tl.store(p_plane + o_pixel, rendered.to(p_out.dtype.element_ty), mask=m_pixel)


@triton.jit
def load_lse(p_lse, o_pixel, m_pixel):
    """Log-sum-exp of pixels [BP]; inf, which gives no weight, where there is no pixel or no key reaches it."""
    lse = tl.load(p_lse + o_pixel, mask=m_pixel, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse)


@triton.jit(do_not_specialize=SIZES)
def mix_kernel(
    p_guide, p_table, p_signal, p_valid, p_radius, p_classes, p_keys, p_counts, p_copies, p_lse, p_out,
    n_rows, n_cols, height, width, n_tiles, n_slots, n_radii, n_channels, row_length,
    G: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, NC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out(p, c) = sum_q w signal(q, c) on the tensor cores. A program a tile and NC blocks of BC channels.

    The signal comes channels last, as everywhere: a key's values are one row, filled up with zeros to `row_length`, a
    multiple of what a program mixes, so that rows are read in whole words without a mask along them.
    """
    i_cell, i_tile = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    i_batch = tl.program_id(2).to(tl.int64)
    i_row, i_col = i_cell // n_cols, i_cell % n_cols
    n_cells, n_pixels = n_rows * n_cols, height * width
    o_pixel, m_pixel, b_x, b_y = tile_of(i_row, i_col, i_tile, n_rows, n_cols, height, width, BP)
    i_class = tl.load(p_classes + i_cell)
    p_copies += i_class * n_radii * n_slots
    p_table += i_batch * (5 + G) * n_cells
    p_signal += i_batch * n_cells * row_length
    p_out += i_batch * n_channels * n_pixels
    if p_valid is not None:
        p_valid += i_batch * n_cells
    colours = load_planes(p_guide + i_batch * G * n_pixels, o_pixel, m_pixel, n_pixels, G)
    lse = load_lse(p_lse + i_batch * n_pixels, o_pixel, m_pixel)
    VARIES: tl.constexpr = p_radius is not None
    if VARIES:
        p_row = p_radius + i_batch * n_pixels
        radius = tl.minimum(tl.load(p_row + o_pixel, mask=m_pixel, other=0), n_radii - 1)
        largest = tl.max(radius, 0)
    else:
        radius = n_radii - 1
        largest = n_radii - 1
    count = tl.load(p_counts + i_class * n_radii + largest)

    mixed = ()
    for _n in tl.static_range(NC):
        mixed = mixed + (tl.zeros([BC, BP], tl.float32),)
    channel = tl.program_id(1) * (NC * BC) + tl.arange(0, BC)
    for first in range(0, count, BK):
        pairs = scores_of(
            p_keys, p_table, p_valid, p_copies, i_class, i_row, i_col, first, count, b_x, b_y, colours, radius,
            n_rows, n_cols, height, width, n_slots, G, BK, VARIES, BY_PIXEL=True,
        )
        m_key, i_key = pairs[1], pairs[2]
        weight = tl.exp2(pairs[0] - lse[:, None]).to(p_signal.dtype.element_ty)  # [BP, BK]
        grown = ()
        for n in tl.static_range(NC):
            p_rows = p_signal + i_key[:, None] * row_length + channel[None, :] + n * BC
            signal = tl.load(p_rows, mask=m_key[:, None], other=0.0)
            # [BC, BK] @ [BK, BP] -> [BC, BP]
            grown = grown + (tl.dot(tl.trans(signal), tl.trans(weight), mixed[n], input_precision=PRECISION),)
        mixed = grown
    for n in tl.static_range(NC):
        row = channel + n * BC
        value = tl.where(lse[None, :] == float("inf"), float("nan"), mixed[n]).to(p_out.dtype.element_ty)
        p_rows = p_out + row.to(tl.int64)[:, None] * n_pixels + o_pixel[None, :]
        tl.store(p_rows, value, mask=(row < n_channels)[:, None] & m_pixel[None, :])


# --- backward


@triton.jit
def agreement_of(
    p_signal, p_d_out, i_key, m_key, o_pixel, m_pixel, n_pixels, n_channels, row_length,
    BK: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):
    """sum_c signal(q, c) d_out(p, c), [BK, BP]."""
    agreement = tl.zeros([BK, BP], tl.float32)
    for first in range(0, n_channels, BC):
        channel = first + tl.arange(0, BC)
        m_channel = channel < n_channels
        p_rows = p_signal + i_key[:, None] * row_length + channel[None, :]
        signal = tl.load(p_rows, mask=m_key[:, None], other=0.0)  # [BK, BC]
        p_rows = p_d_out + channel.to(tl.int64)[:, None] * n_pixels + o_pixel[None, :]
        d_out = tl.load(p_rows, mask=m_channel[:, None] & m_pixel[None, :], other=0.0)  # [BC, BP]
        agreement = tl.dot(signal, d_out, agreement, input_precision=PRECISION)
    return agreement


@triton.jit(do_not_specialize=SIZES)
def delta_kernel(
    p_guide, p_table, p_signal, p_valid, p_radius, p_classes, p_keys, p_counts, p_copies, p_lse, p_d_out,
    p_delta, p_d_guide,
    n_rows, n_cols, height, width, n_tiles, n_slots, n_radii, n_channels, row_length,
    G: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):
    """delta(p) = sum_q w sum_c d_out(p, c) signal(q, c), and the gradient of the guide if asked for. A program a tile.

    Taken from the weights anew and not from the output, which then need not be kept and may be rounded to half.
    """
    i_cell, i_tile = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    i_batch = tl.program_id(1).to(tl.int64)
    i_row, i_col = i_cell // n_cols, i_cell % n_cols
    n_cells, n_pixels = n_rows * n_cols, height * width
    o_pixel, m_pixel, b_x, b_y = tile_of(i_row, i_col, i_tile, n_rows, n_cols, height, width, BP)
    i_class = tl.load(p_classes + i_cell)
    p_copies += i_class * n_radii * n_slots
    p_table += i_batch * (5 + G) * n_cells
    p_signal += i_batch * n_cells * row_length
    p_d_out += i_batch * n_channels * n_pixels
    if p_valid is not None:
        p_valid += i_batch * n_cells
    colours = load_planes(p_guide + i_batch * G * n_pixels, o_pixel, m_pixel, n_pixels, G)
    lse = load_lse(p_lse + i_batch * n_pixels, o_pixel, m_pixel)
    m_reached = lse < float("inf")
    VARIES: tl.constexpr = p_radius is not None
    if VARIES:
        p_row = p_radius + i_batch * n_pixels
        radius = tl.minimum(tl.load(p_row + o_pixel, mask=m_pixel, other=0), n_radii - 1)
        largest = tl.max(radius, 0)
    else:
        radius = n_radii - 1
        largest = n_radii - 1
    count = tl.load(p_counts + i_class * n_radii + largest)

    delta = tl.zeros([BP], tl.float32)
    for first in range(0, count, BK):
        pairs = scores_of(
            p_keys, p_table, p_valid, p_copies, i_class, i_row, i_col, first, count, b_x, b_y, colours, radius,
            n_rows, n_cols, height, width, n_slots, G, BK, VARIES,
        )
        weight, m_key, i_key = tl.exp2(pairs[0] - lse[None, :]), pairs[1], pairs[2]
        agreement = agreement_of(
            p_signal, p_d_out, i_key, m_key, o_pixel, m_reached, n_pixels, n_channels, row_length, BK, BP, BC, PRECISION
        )
        delta += tl.sum(weight * agreement, 0)
    tl.store(p_delta + i_batch * n_pixels + o_pixel, delta, mask=m_pixel)
    if p_d_guide is not None:
        d_guide = ()
        for _n in tl.static_range(G):
            d_guide = d_guide + (tl.zeros([BP], tl.float32),)
        for first in range(0, count, BK):
            pairs = scores_of(
                p_keys, p_table, p_valid, p_copies, i_class, i_row, i_col, first, count, b_x, b_y, colours, radius,
                n_rows, n_cols, height, width, n_slots, G, BK, VARIES,
            )
            weight, m_key, i_key = tl.exp2(pairs[0] - lse[None, :]), pairs[1], pairs[2]
            agreement = agreement_of(
                p_signal, p_d_out, i_key, m_key, o_pixel, m_reached, n_pixels, n_channels, row_length,
                BK, BP, BC, PRECISION,
            )
            values = pairs[6]
            slope = weight * (agreement - delta[None, :]) * values[4][:, None]
            grown = ()
            for g in tl.static_range(G):
                difference = colours[g][None, :] - values[5 + g][:, None]
                grown = grown + (d_guide[g] - tl.sum(slope * difference, 0) * 2 * LN_2,)
            d_guide = grown
        for g in tl.static_range(G):
            tl.store(p_d_guide + (i_batch * G + g) * n_pixels + o_pixel, d_guide[g], mask=m_pixel)


@triton.jit(do_not_specialize=SIZES)
def moments_kernel(
    p_guide, p_table, p_signal, p_valid, p_radius, p_classes, p_keys, p_counts, p_copies, p_lse, p_d_out, p_delta,
    p_partial,
    n_rows, n_cols, height, width, n_tiles, n_slots, n_radii, n_channels, row_length,
    G: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):
    """Moments of a block of a cell's keys over the cell's pixels, any number of channels. A program a cell and a block.

    The first four are sums of slope times dx^2, dx dy, dy^2, colour distance; with N = 4 + G follow those of slope
    times I - g, for the gradient of the guide on the LR grid. `p_partial` is (B, cells, N, slots): sums over the cells
    come next, so no two programs write to one place.
    """
    i_cell, i_batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    i_row, i_col = i_cell // n_cols, i_cell % n_cols
    n_cells, n_pixels = n_rows * n_cols, height * width
    i_class = tl.load(p_classes + i_cell)
    count = tl.load(p_counts + i_class * n_radii + n_radii - 1)
    first = tl.program_id(1) * BK
    if first >= count:
        return
    p_copies += i_class * n_radii * n_slots
    p_table += i_batch * (5 + G) * n_cells
    p_signal += i_batch * n_cells * row_length
    p_d_out += i_batch * n_channels * n_pixels
    p_guide += i_batch * G * n_pixels
    if p_valid is not None:
        p_valid += i_batch * n_cells
    VARIES: tl.constexpr = p_radius is not None
    sums = ()
    for _n in tl.static_range(N):
        sums = sums + (tl.zeros([BK], tl.float32),)
    for i_tile in range(n_tiles):
        o_pixel, m_pixel, b_x, b_y = tile_of(i_row, i_col, i_tile, n_rows, n_cols, height, width, BP)
        colours = load_planes(p_guide, o_pixel, m_pixel, n_pixels, G)
        lse = load_lse(p_lse + i_batch * n_pixels, o_pixel, m_pixel)
        delta = tl.load(p_delta + i_batch * n_pixels + o_pixel, mask=m_pixel, other=0.0)
        if VARIES:
            p_row = p_radius + i_batch * n_pixels
            radius = tl.minimum(tl.load(p_row + o_pixel, mask=m_pixel, other=0), n_radii - 1)
        else:
            radius = n_radii - 1
        pairs = scores_of(
            p_keys, p_table, p_valid, p_copies, i_class, i_row, i_col, first, count, b_x, b_y, colours, radius,
            n_rows, n_cols, height, width, n_slots, G, BK, VARIES,
        )
        weight, m_key, i_key = tl.exp2(pairs[0] - lse[None, :]), pairs[1], pairs[2]
        agreement = agreement_of(
            p_signal, p_d_out, i_key, m_key, o_pixel, lse < float("inf"), n_pixels, n_channels, row_length,
            BK, BP, BC, PRECISION,
        )
        slope = weight * (agreement - delta[None, :])
        dx, dy = b_x[None, :] - pairs[3][:, None], b_y[None, :] - pairs[4][:, None]
        distance, values = pairs[5], pairs[6]
        along = slope * dx
        grown = (
            sums[0] + tl.sum(along * dx, 1),
            sums[1] + tl.sum(along * dy, 1),
            sums[2] + tl.sum(slope * dy * dy, 1),
            sums[3] + tl.sum(slope * distance, 1),
        )
        for g in tl.static_range(N - 4):
            difference = colours[g][None, :] - values[5 + g][:, None]
            grown = grown + (sums[4 + g] + tl.sum(slope * difference, 1),)
        sums = grown
    store_moments(p_partial, sums, p_keys, i_class, i_batch * n_cells + i_cell, first, count, n_slots, N, BK)


@triton.jit
def store_moments(p_partial, sums, p_keys, i_class, i_cell, first, count, n_slots, N: tl.constexpr, BK: tl.constexpr):
    """Moments of a block of keys to their slots of one cell."""
    place = first + tl.arange(0, BK)
    slot = tl.load(p_keys + i_class * n_slots + place, mask=place < count, other=0) >> 16
    for n in tl.static_range(N):
        tl.store(p_partial + (i_cell * N + n) * n_slots + slot, sums[n], mask=place < count)


@triton.jit(do_not_specialize=SIZES)
def fit_moments_kernel(
    p_guide, p_table, p_source, p_radius, p_classes, p_keys, p_counts, p_copies, p_lse, p_d_out, p_delta, p_partial,
    n_rows, n_cols, height, width, n_slots, n_radii,
    G: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):
    """`moments_kernel` of the reconstruction loss: G channels, few enough to need no tensor cores.

    Blocks lie the other way round, [BP, BK]: a thread holds some keys and walks over the lines of the cell, BP pixels
    at a time, so that sums over pixels stay in its registers and what it loads of a pixel serves all its keys.
    """
    i_cell, i_batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    i_row, i_col = i_cell // n_cols, i_cell % n_cols
    n_cells, n_pixels = n_rows * n_cols, height * width
    i_class = tl.load(p_classes + i_cell)
    count = tl.load(p_counts + i_class * n_radii + n_radii - 1)
    first = tl.program_id(1) * BK
    if first >= count:
        return
    p_copies += i_class * n_radii * n_slots
    p_guide += i_batch * G * n_pixels
    p_d_out += i_batch * G * n_pixels
    p_delta += i_batch * n_pixels
    p_lse += i_batch * n_pixels
    m_key, i_key, k_x, k_y, values = keys_of(
        p_keys, p_table + i_batch * (5 + G) * n_cells, None, i_class, i_row, i_col, first, count,
        n_rows, n_cols, height, width, n_slots, G, BK,
    )
    at_zero = line(factors_at_zero(k_x, k_y, values))
    source = line(load_rows(p_source + i_batch * G * n_cells, i_key, m_key, G))
    place = first + tl.arange(0, BK)
    widest = bias_of(p_copies, n_radii - 1, place, m_key, n_slots)
    top, left = first_pixel(i_row, n_rows, height), first_pixel(i_col, n_cols, width)
    bottom, right = first_pixel(i_row + 1, n_rows, height), first_pixel(i_col + 1, n_cols, width)
    from_left = from_centre(left, i_col, n_cols, width)
    from_top = from_centre(top, i_row, n_rows, height)
    xx, xy = tl.zeros([BK], tl.float32), tl.zeros([BK], tl.float32)
    yy, colour = tl.zeros([BK], tl.float32), tl.zeros([BK], tl.float32)
    for y in range(0, bottom - top):
        b_y = tl.full([BP], 0.0, tl.float32) + (from_top + y)
        for x in range(0, right - left, BP):
            column_x = x + tl.arange(0, BP)
            m_pixel = column_x < right - left
            o_pixel = (top + y) * width + left + column_x
            b_x = from_left + column_x.to(tl.float32)
            colours = column(load_planes(p_guide, o_pixel, m_pixel, n_pixels, G))
            d_out = column(load_planes(p_d_out, o_pixel, m_pixel, n_pixels, G))
            delta = tl.load(p_delta + o_pixel, mask=m_pixel, other=0.0)
            lse = load_lse(p_lse, o_pixel, m_pixel)
            if p_radius is None:
                bias = tl.broadcast_to(widest[None, :], [BP, BK])
            else:
                p_row = p_radius + i_batch * n_pixels
                radius = tl.minimum(tl.load(p_row + o_pixel, mask=m_pixel, other=0), n_radii - 1)
                if range_of(radius, m_pixel)[0] == n_radii - 1:
                    bias = tl.broadcast_to(widest[None, :], [BP, BK])
                else:
                    bias = bias_of(p_copies, radius[:, None], place[None, :], m_key[None, :], n_slots)
            distance = colour_distance(colours, line(values), G)
            score = score_of(b_x[:, None], b_y[:, None], at_zero, distance, line(values), bias)
            weight = tl.exp2(score - lse[:, None])  # [BP, BK]
            agreement = d_out[0] * source[0] - delta[:, None]
            for g in tl.static_range(1, G):
                agreement += d_out[g] * source[g]
            slope = weight * agreement
            dx, dy = b_x[:, None] - k_x[None, :], b_y[:, None] - k_y[None, :]
            along, across = slope * dx, slope * dy
            xx += tl.sum(along * dx, 0)
            xy += tl.sum(along * dy, 0)
            yy += tl.sum(across * dy, 0)
            colour += tl.sum(slope * distance, 0)
    store_moments(
        p_partial, (xx, xy, yy, colour), p_keys, i_class, i_batch * n_cells + i_cell, first, count, n_slots, 4, BK
    )


@triton.jit
def moment_of(p_partial, p_offsets, i_row, i_col, moment, n_rows, n_cols, n_slots, N: tl.constexpr, BS: tl.constexpr):
    """One moment of one key, summed over the cells that have it as a candidate, in a fixed order."""
    total = tl.zeros([BS], tl.float32)
    for first in range(0, n_slots, BS):
        slot = first + tl.arange(0, BS)
        m_slot = slot < n_slots
        row = i_row - tl.load(p_offsets + slot, mask=m_slot, other=0)
        col = i_col - tl.load(p_offsets + n_slots + slot, mask=m_slot, other=0)
        m_slot = m_slot & (row >= 0) & (row < n_rows) & (col >= 0) & (col < n_cols)
        o_slot = ((row * n_cols + col).to(tl.int64) * N + moment) * n_slots + slot
        total += tl.load(p_partial + o_slot, mask=m_slot, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(p_partial, p_offsets, p_moments, n_rows, n_cols, n_slots, N: tl.constexpr, BS: tl.constexpr):
    """Moments (B, N, h w) of every key, from `p_partial` (B, cells, N, slots). A program a key."""
    i_key, i_batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_row, i_col = i_key // n_cols, i_key % n_cols
    p_partial += i_batch * n_rows * n_cols * N * n_slots
    for n in tl.static_range(N):
        total = moment_of(p_partial, p_offsets, i_row, i_col, n, n_rows, n_cols, n_slots, N, BS)
        tl.store(p_moments + (i_batch * N + n) * n_rows * n_cols + i_key, total)


@triton.jit(do_not_specialize=[*SIZES, "n_batch", "n_values", "rate", "correction"])
def step_kernel(
    p_partial, p_offsets, p_raw, p_first, p_second, p_table, p_reach,
    n_rows, n_cols, n_slots, n_batch, n_values, rate, correction, floor, epsilon, cells_per_pixel,
    G: tl.constexpr, BS: tl.constexpr, UPDATE: tl.constexpr,
):
    """Chain rule and Adam (betas .9 and .999, eps 1e-8, as torch.optim.Adam) of one cell, and its new row of the table.

    `p_raw`, `p_first`, `p_second` are (4, B, h w): log sigma_x, log sigma_y, atanh(theta / pi), log sigma_r. `rate` is
    the learning rate over 1 - .9^n, `correction` sqrt(1 - .999^n). With a = 1 / (2 sigma_x^2 + epsilon), c likewise of
    sigma_y, r of sigma_r, and M the matrix of the moments in the rotated frame: d log sigma_x = 4 sigma_x^2 a^2 M_xx,
    d log sigma_y = 4 sigma_y^2 c^2 M_yy, d theta = 2 (c - a) M_xy, d log sigma_r = 4 sigma_r^2 r^2 M_r.
    """
    i_key, i_batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_row, i_col = i_key // n_cols, i_key % n_cols
    n_cells = n_rows * n_cols
    o_key, stride = i_batch * n_cells + i_key, n_batch * n_cells
    raw_x, raw_y = tl.load(p_raw + o_key), tl.load(p_raw + o_key + stride)
    raw_theta, raw_r = tl.load(p_raw + o_key + 2 * stride), tl.load(p_raw + o_key + 3 * stride)
    if UPDATE:
        p_partial += i_batch * n_cells * 4 * n_slots
        xx = moment_of(p_partial, p_offsets, i_row, i_col, 0, n_rows, n_cols, n_slots, 4, BS)
        xy = moment_of(p_partial, p_offsets, i_row, i_col, 1, n_rows, n_cols, n_slots, 4, BS)
        yy = moment_of(p_partial, p_offsets, i_row, i_col, 2, n_rows, n_cols, n_slots, 4, BS)
        colour = moment_of(p_partial, p_offsets, i_row, i_col, 3, n_rows, n_cols, n_slots, 4, BS)
        moves_x, moves_y, moves_r = tl.exp(raw_x) > floor, tl.exp(raw_y) > floor, tl.exp(raw_r) > floor
        sigma_x, sigma_y = tl.maximum(tl.exp(raw_x), floor), tl.maximum(tl.exp(raw_y), floor)
        sigma_r = tl.maximum(tl.exp(raw_r), floor)
        a, c = 1 / (2 * sigma_x * sigma_x + epsilon), 1 / (2 * sigma_y * sigma_y + epsilon)
        r = 1 / (2 * sigma_r * sigma_r + epsilon)
        tanh, cos, sin = direction(raw_theta)
        along = cos * cos * xx + 2 * cos * sin * xy + sin * sin * yy
        across = sin * sin * xx - 2 * cos * sin * xy + cos * cos * yy
        mixed = cos * sin * (yy - xx) + (cos * cos - sin * sin) * xy
        d_x = tl.where(moves_x, 4 * sigma_x * sigma_x * a * a * along, 0.0) / n_values
        d_y = tl.where(moves_y, 4 * sigma_y * sigma_y * c * c * across, 0.0) / n_values
        d_theta = 2 * (c - a) * mixed * PI * (1 - tanh * tanh) / n_values
        d_r = tl.where(moves_r, 4 * sigma_r * sigma_r * r * r * colour, 0.0) / n_values
        raw_x = adam(raw_x, d_x, p_raw, p_first, p_second, o_key, rate, correction)
        raw_y = adam(raw_y, d_y, p_raw, p_first, p_second, o_key + stride, rate, correction)
        raw_theta = adam(raw_theta, d_theta, p_raw, p_first, p_second, o_key + 2 * stride, rate, correction)
        raw_r = adam(raw_r, d_r, p_raw, p_first, p_second, o_key + 3 * stride, rate, correction)
    sigma_x, sigma_y = tl.maximum(tl.exp(raw_x), floor), tl.maximum(tl.exp(raw_y), floor)
    sigma_r = tl.maximum(tl.exp(raw_r), floor)
    along = tl.sqrt(1 / (2 * sigma_x * sigma_x + epsilon) * LOG2_E)
    across = tl.sqrt(1 / (2 * sigma_y * sigma_y + epsilon) * LOG2_E)
    tanh, cos, sin = direction(raw_theta)
    p_table += o_key * (5 + G)
    tl.store(p_table, along * cos)
    tl.store(p_table + 1, along * sin)
    tl.store(p_table + 2, -across * sin)
    tl.store(p_table + 3, across * cos)
    tl.store(p_table + 4, 1 / (2 * sigma_r * sigma_r + epsilon) * LOG2_E)
    if p_reach is not None:
        tl.store(p_reach + o_key, cells_per_pixel * tl.maximum(sigma_x, sigma_y))


@triton.jit
def direction(raw):
    """t = tanh(raw), cos(pi t) and sin(pi t)."""
    t = 1 - 2 / (tl.exp(2 * raw) + 1)
    cos, sin = cos_and_sin(t)
    return t, cos, sin


@triton.jit
def adam(raw, gradient, p_raw, p_first, p_second, offset, rate, correction):
    """The stepped value, stored beside its new averages."""
    first = 0.9 * tl.load(p_first + offset) + 0.1 * gradient
    second = 0.999 * tl.load(p_second + offset) + 0.001 * gradient * gradient
    raw -= rate * first / (tl.sqrt(second) / correction + 1e-8)
    tl.store(p_first + offset, first)
    tl.store(p_second + offset, second)
    tl.store(p_raw + offset, raw)
    return raw


@triton.jit(do_not_specialize=[*SIZES, "n_splits"])
def signal_gradient_kernel(
    p_guide, p_table, p_valid, p_radius, p_classes, p_slots, p_slot_copies, p_lse, p_d_out, p_partial,
    n_rows, n_cols, height, width, n_tiles, n_slots, n_radii, max_radius, n_channels, n_splits,
    G: tl.constexpr, SIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):
    """d_signal(q, c) = sum_p w d_out(p, c). A program a patch of SIDE x SIDE keys, BC channels, a share of the rows.

    The keys of a patch share most of the pixels that they reach. `p_partial` is (splits, B, h w, C).
    """
    i_patch, i_split = tl.program_id(0) // n_splits, tl.program_id(0) % n_splits
    i_batch = tl.program_id(2).to(tl.int64)
    n_batch = tl.num_programs(2)
    n_cells, n_pixels = n_rows * n_cols, height * width
    n_patches = (n_cols + SIDE - 1) // SIDE
    top, left = i_patch // n_patches * SIDE, i_patch % n_patches * SIDE
    BK: tl.constexpr = SIDE * SIDE
    key_row, key_col = top + tl.arange(0, BK) // SIDE, left + tl.arange(0, BK) % SIDE
    m_inside = (key_row < n_rows) & (key_col < n_cols)
    i_key = key_row * n_cols + key_col
    m_key = m_inside
    if p_valid is not None:
        m_key = m_key & (tl.load(p_valid + i_batch * n_cells + i_key, mask=m_inside, other=0) != 0)
    values = load_rows(p_table + i_batch * (5 + G) * n_cells, i_key, m_inside, 5 + G)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    m_channel = channel < n_channels
    p_guide += i_batch * G * n_pixels
    p_d_out += i_batch * n_channels * n_pixels
    side = 2 * max_radius + 1
    gradient = tl.zeros([BK, BC], tl.float32)
    first_row, last_row = tl.maximum(top - max_radius, 0), tl.minimum(top + SIDE + max_radius, n_rows)
    first_col, last_col = tl.maximum(left - max_radius, 0), tl.minimum(left + SIDE + max_radius, n_cols)
    for i_row in range(first_row + i_split, last_row, n_splits):
        for i_col in range(first_col, last_col):
            dy, dx = key_row - i_row, key_col - i_col
            near = m_key & (tl.abs(dy) <= max_radius) & (tl.abs(dx) <= max_radius)
            slot = tl.load(p_slots + (dy + max_radius) * side + dx + max_radius, mask=near, other=-1)
            near = slot >= 0
            if tl.max(slot, 0) >= 0:
                i_class = tl.load(p_classes + i_row * n_cols + i_col)
                p_class = p_slot_copies + i_class * n_radii * n_slots
                k_x = dx.to(tl.float32) * (width.to(tl.float32) / n_cols.to(tl.float32))
                k_y = dy.to(tl.float32) * (height.to(tl.float32) / n_rows.to(tl.float32))
                at_zero = column(factors_at_zero(k_x, k_y, values))
                for i_tile in range(n_tiles):
                    o_pixel, m_pixel, b_x, b_y = tile_of(i_row, i_col, i_tile, n_rows, n_cols, height, width, BP)
                    colours = load_planes(p_guide, o_pixel, m_pixel, n_pixels, G)
                    lse = load_lse(p_lse + i_batch * n_pixels, o_pixel, m_pixel)
                    if p_radius is None:
                        bias = bias_of(p_class, n_radii - 1, slot, near, n_slots)[:, None]
                    else:
                        p_row = p_radius + i_batch * n_pixels
                        radius = tl.minimum(tl.load(p_row + o_pixel, mask=m_pixel, other=0), n_radii - 1)
                        bias = bias_of(p_class, radius[None, :], slot[:, None], near[:, None], n_slots)
                    distance = colour_distance(line(colours), column(values), G)
                    score = score_of(b_x[None, :], b_y[None, :], at_zero, distance, column(values), bias)
                    weight = tl.exp2(score - lse[None, :])
                    p_rows = p_d_out + channel.to(tl.int64)[:, None] * n_pixels + o_pixel[None, :]
                    m_rows = m_channel[:, None] & (lse < float("inf"))[None, :]
                    d_out = tl.load(p_rows, mask=m_rows, other=0.0)
                    # [BK, BP] @ [BP, BC] -> [BK, BC]
                    weight = weight.to(p_d_out.dtype.element_ty)
                    gradient = tl.dot(weight, tl.trans(d_out), gradient, input_precision=PRECISION)
    o_key = ((i_split.to(tl.int64) * n_batch + i_batch) * n_cells + i_key) * n_channels
    p_rows = p_partial + o_key[:, None] + channel[None, :]
    tl.store(p_rows, gradient, mask=m_inside[:, None] & m_channel[None, :])
