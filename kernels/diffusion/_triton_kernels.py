"""The Triton kernels: one step of the diffusion, and the sum that the last one leaves.

An iterate is kept apart as x = z + U r: z (H, W), what the flow made, and r (h, w), what every cell gives back, which
is known only when all pixels of the cell are. So a step needs no second pass over the pixels: the next step, whoever
reads a pixel, adds its cell's r. A program owns some whole cells of one row of cells, in some channels, and walks down
their pixels a row at a time. Where scales are no integers, a pixel may lie in two cells along an axis: both programs
compute its z, for their averages, and that of the first cell stores it.

Cells and pixels are compared in units of 1 / (n_cells n_pixels) of the axis, in integers, so that no rounding moves a
border.

Names: `i_` index, `n_` count, `o_` offset, `m_` mask, `p_` pointer, `b_` block; blocks are [BC, BJ BX], channels,
cells along the row times columns of a cell. n_rows, n_cols: cells; height, width: pixels.
"""

# Annotations are evaluated: Triton reads tl.constexpr from them.
import triton
import triton.language as tl

# Sizes differ from image to image: one compiled kernel serves all. And none must be known to be a multiple of anything:
# the hints of what is contiguous are true but for the ends of cells and rows, and words must be read one by one there.
SIZES = ["n_channels", "n_rows", "n_cols", "height", "width", "n_tiles"]


@triton.jit
def part_of(i_pixel, i_cell, n_cells, n_pixels):
    """How much of a pixel lies in a cell along one axis, in [0, 1]."""
    low = tl.maximum(i_pixel * n_cells, i_cell * n_pixels)
    high = tl.minimum((i_pixel + 1) * n_cells, (i_cell + 1) * n_pixels)
    return tl.maximum(high - low, 0).to(tl.float32) / n_cells.to(tl.float32)


@triton.jit
def spread(p_cells, i_y, i_x, n_rows, n_cols, height, width, WHOLE: tl.constexpr):
    """U cells at pixels (i_y, i_x): the sum over the cells that a pixel lies in, by how much of it does."""
    i_row, i_col = i_y * n_rows // height, i_x * n_cols // width
    tl.max_contiguous(i_col, [1, 2])  # it is not, nearly all are equal; as in `step_kernel`, for the order of the axes
    p_first = p_cells + i_row * n_cols + i_col
    b_first = tl.load(p_first)
    if WHOLE:
        return b_first
    # Pixels are no larger than cells, so the rest of a pixel lies in the next one.
    m_lower = (i_y + 1) * n_rows > (i_row + 1) * height
    m_right = (i_x + 1) * n_cols > (i_col + 1) * width
    b_upper, b_left = part_of(i_y, i_row, n_rows, height), part_of(i_x, i_col, n_cols, width)
    b_right = tl.load(p_first + 1, mask=m_right, other=0.0)
    b_below = tl.load(p_first + n_cols, mask=m_lower, other=0.0)
    b_across = tl.load(p_first + n_cols + 1, mask=m_lower & m_right, other=0.0)
    b_first = b_left * b_first + (1 - b_left) * b_right
    return b_upper * b_first + (1 - b_upper) * (b_left * b_below + (1 - b_left) * b_across)


@triton.jit(do_not_specialize=SIZES)
def step_kernel(
    p_near, p_far, p_given, p_before, p_across, p_down, p_signal, p_valid, p_total, p_out, p_lacking,
    n_channels, n_rows, n_cols, height, width, keep, momentum, rate, share,
    BC: tl.constexpr, BJ: tl.constexpr, BX: tl.constexpr, WHOLE: tl.constexpr,
):
    """One step: z = keep x + momentum (x - previous x) - rate L x, r = share valid (signal - A z).

    near, far: z (B, C, H, W) of this iterate and the one before; given, before: their r (B, C, h, w). out: the new z;
    None where only averages are wanted. lacking: the new r. signal None is 0. total: sums all r that were given. WHOLE:
    scales are integers.
    """
    n_across, n_blocks = tl.cdiv(n_cols, BJ), tl.cdiv(n_channels, BC)
    i_program = tl.program_id(0)
    i_row = i_program // n_across % n_rows
    i_block = i_program // (n_across * n_rows) % n_blocks
    i_image = (i_program // (n_across * n_rows * n_blocks)).to(tl.int64)
    # 64 bits for the place of a program's first channel, 32 from there on, which take half the registers.
    i_first = i_image * n_channels + i_block * BC
    o_first, o_first_cell = i_first * height * width, i_first * n_rows * n_cols
    p_near += o_first
    p_far += o_first
    p_given += o_first_cell
    p_before += o_first_cell
    p_across += i_image * height * (width - 1)
    p_down += i_image * (height - 1) * width
    i_channel, i_place = tl.arange(0, BC)[:, None], tl.arange(0, BJ * BX)[None, :]
    i_col = i_program % n_across * BJ + i_place // BX
    m_channel, m_col = i_channel < n_channels - i_block * BC, i_col < n_cols
    # Places beyond an end read the last one instead, without masks, and are stored nowhere; so do neighbours beyond the
    # image, to which nothing conducts.
    i_channel, i_col = tl.minimum(i_channel, n_channels - i_block * BC - 1), tl.minimum(i_col, n_cols - 1)
    i_x = i_col * width // n_cols + i_place % BX
    m_x = m_col & (i_x * n_cols < (i_col + 1) * width)
    i_x = tl.minimum(i_x, width - 1)
    i_left, i_right = tl.maximum(i_x - 1, 0), tl.minimum(i_x + 1, width - 1)
    # Places run along the row, and so should threads: Triton 3.6, if not told, has them run over channels. (At the
    # ends of cells and rows it is not so; but nothing says where a row begins, so words are read one by one.)
    tl.max_contiguous(i_x, [1, 2])
    tl.max_contiguous(i_left, [1, 2])
    tl.max_contiguous(i_right, [1, 2])
    m_mine = m_channel & m_x & (i_x * n_cols >= i_col * width)
    top, bottom = i_row * height // n_rows, tl.cdiv((i_row + 1) * height, n_rows)
    o_plane = i_channel * height * width
    p_near += o_plane
    p_far += o_plane
    p_cells, p_cells_far = p_given + i_channel * n_rows * n_cols, p_before + i_channel * n_rows * n_cols

    i_y = tl.maximum(top - 1, 0)
    b_up = tl.load(p_down + i_y * width + i_x, mask=m_x & (top > 0), other=0.0).to(tl.float32)
    b_above = tl.load(p_near + i_y * width + i_x)
    b_above += spread(p_cells, i_y, i_x, n_rows, n_cols, height, width, WHOLE)
    b_own = spread(p_cells, top, i_x, n_rows, n_cols, height, width, WHOLE)
    b_here = tl.load(p_near + top * width + i_x) + b_own
    if WHOLE:  # what the cells spread is the same in all their rows
        b_own_left = spread(p_cells, top, i_left, n_rows, n_cols, height, width, WHOLE)
        b_own_right = spread(p_cells, top, i_right, n_rows, n_cols, height, width, WHOLE)
        b_own_far = spread(p_cells_far, top, i_x, n_rows, n_cols, height, width, WHOLE)
        b_beyond = spread(p_cells, tl.minimum(bottom, height - 1), i_x, n_rows, n_cols, height, width, WHOLE)
    b_sums = tl.zeros([BC, BJ * BX], tl.float32)
    for i_y in range(top, bottom):
        i_below = tl.minimum(i_y + 1, height - 1)
        b_below = tl.load(p_near + i_below * width + i_x)
        b_left = tl.load(p_near + i_y * width + i_left)
        b_right = tl.load(p_near + i_y * width + i_right)
        b_far = tl.load(p_far + i_y * width + i_x)
        if WHOLE:
            b_below += tl.where(i_y + 1 < bottom, b_own, b_beyond)
            b_left += b_own_left
            b_right += b_own_right
            b_far += b_own_far
        else:
            b_below += spread(p_cells, i_below, i_x, n_rows, n_cols, height, width, WHOLE)
            b_left += spread(p_cells, i_y, i_left, n_rows, n_cols, height, width, WHOLE)
            b_right += spread(p_cells, i_y, i_right, n_rows, n_cols, height, width, WHOLE)
            b_far += spread(p_cells_far, i_y, i_x, n_rows, n_cols, height, width, WHOLE)
        p_edge = p_across + i_y * (width - 1) + i_x
        b_before = tl.load(p_edge - 1, mask=m_x & (i_x > 0), other=0.0).to(tl.float32)
        b_after = tl.load(p_edge, mask=m_x & (i_x + 1 < width), other=0.0).to(tl.float32)
        b_down = tl.load(p_down + i_y * width + i_x, mask=m_x & (i_y + 1 < height), other=0.0).to(tl.float32)
        b_flow = b_before * (b_left - b_here) + b_after * (b_right - b_here)
        b_flow += b_up * (b_above - b_here) + b_down * (b_below - b_here)
        b_new = keep * b_here + momentum * (b_here - b_far) + rate * b_flow
        if p_out is not None:
            m_stored = m_mine & (i_y * n_rows >= i_row * height)
            tl.store(p_out + o_first + o_plane + i_y * width + i_x, b_new, mask=m_stored)
        if WHOLE:
            b_sums += b_new
        else:
            b_sums += part_of(i_y, i_row, n_rows, height) * b_new
        b_above, b_here, b_up = b_here, b_below, b_down

    if WHOLE:
        b_sums = tl.where(m_x, b_sums, 0.0)
    else:
        b_sums *= tl.where(m_x, part_of(i_x, i_col, n_cols, width), 0.0)
    area = height.to(tl.float32) / n_rows.to(tl.float32) * (width.to(tl.float32) / n_cols.to(tl.float32))
    b_lacking = -tl.sum(tl.reshape(b_sums, [BC, BJ, BX]), 2) / area  # [BC, BJ]
    i_cell = i_program % n_across * BJ + tl.arange(0, BJ)[None, :]
    m_cell = i_cell < n_cols
    i_plane = tl.arange(0, BC)[:, None]
    o_cell, m_each = (i_plane * n_rows + i_row) * n_cols + i_cell, (i_plane < n_channels - i_block * BC) & m_cell
    if p_signal is not None:
        b_lacking += tl.load(p_signal + o_first_cell + o_cell, mask=m_each, other=0.0).to(tl.float32)
    b_lacking *= share
    if p_valid is not None:
        o_valid = i_image * n_rows * n_cols + i_row * n_cols + i_cell
        b_lacking *= tl.load(p_valid + o_valid, mask=m_cell, other=0).to(tl.float32)
    if p_total is not None:
        b_given = tl.load(p_given + o_cell, mask=m_each, other=0.0)
        b_total = tl.load(p_total + o_first_cell + o_cell, mask=m_each, other=0.0)
        tl.store(p_total + o_first_cell + o_cell, b_total + b_given, mask=m_each)
    tl.store(p_lacking + o_first_cell + o_cell, b_lacking, mask=m_each)


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    p_z, p_spread, p_out, n_rows, n_cols, height, width, n_tiles, BX: tl.constexpr, WHOLE: tl.constexpr
):
    """out = z + U spread, in the dtype of `out`, which may be z itself. A program BX pixels of one channel."""
    i_plane = (tl.program_id(0) // n_tiles).to(tl.int64)
    o_pixel = tl.program_id(0) % n_tiles * BX + tl.arange(0, BX)[None, :]
    m_pixel = o_pixel < height * width
    o_read = tl.minimum(o_pixel, height * width - 1)
    b_z = tl.load(p_z + i_plane * height * width + o_read)
    i_y, i_x = o_read // width, o_read % width
    b_x = b_z + spread(p_spread + i_plane * n_rows * n_cols, i_y, i_x, n_rows, n_cols, height, width, WHOLE)
    tl.store(p_out + i_plane * height * width + o_pixel, b_x.to(p_out.dtype.element_ty), mask=m_pixel)
