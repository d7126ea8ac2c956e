"""The Triton kernels: what every cell's error says of its candidates, and a step of every source.

Blocks are [BP, BK], some cells and all K candidates of each, one for a thread or two; sums over the candidates go
across the threads of a warp. What a cell finds goes to `by_score` (B, n, K), d loss / d score of each of its pairs; a
source collects its pairs from the cells that have it as a candidate. No atomics.

Names: `i_` index, `n_` count, `m_` mask, `p_` pointer.
"""

# Annotations are evaluated: Triton reads tl.constexpr from them.
import triton
import triton.language as tl

from kernels._triton_turn import PI, cos_and_sin

# Globals that kernels read must be constexpr; write them last in a product, as Triton's interpreter needs.
TO_BASE_2 = tl.constexpr(-0.7213475204444817)  # from (x' / sigma_x)^2 + ... to the score: -log2 e / 2
SIZES = ["n_rows", "n_cols", "n_candidates", "n_channels", "n_batch"]
NUMBERS = ["scale_y", "scale_x", "rate", "so_far_2"]


@triton.jit
def candidates_of(p_offsets, i_cell, n_rows, n_cols, n_candidates, BK: tl.constexpr):
    """Of cells [BP] the candidates [BP, BK]: whether they are in the grid, flat index, and dy, dx [1, BK] to them."""
    k = tl.arange(0, BK)
    dy = tl.load(p_offsets + k, mask=k < n_candidates, other=0)[None, :]
    dx = tl.load(p_offsets + n_candidates + k, mask=k < n_candidates, other=0)[None, :]
    y, x = (i_cell // n_cols)[:, None] + dy, (i_cell % n_cols)[:, None] + dx
    inside = (y >= 0) & (y < n_rows) & (x >= 0) & (x < n_cols) & (k < n_candidates)[None, :]
    inside = inside & (i_cell < n_rows * n_cols)[:, None]
    return inside, y * n_cols + x, dy.to(tl.float32), dx.to(tl.float32)


@triton.jit
def apart_of(p_colours, i_cell, i_other, inside, n_cells, G: tl.constexpr):
    """Squared colour distances of cells [BP] to others [BP, BK]."""
    apart = tl.zeros(inside.shape, tl.float32)
    for g in tl.static_range(G):
        here = tl.load(p_colours + g * n_cells + i_cell, mask=i_cell < n_cells, other=0.0)
        there = tl.load(p_colours + g * n_cells + i_other, mask=inside, other=0.0)
        apart += (here[:, None] - there) * (here[:, None] - there)
    return apart


@triton.jit(do_not_specialize=[*SIZES, *NUMBERS])
def predict_kernel(
    p_values, p_colours, p_known, p_offsets, p_factors, p_by_score,
    n_rows, n_cols, n_candidates, n_channels, scale_y, scale_x,
    ROUNDING: tl.constexpr, G: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):
    """`by_score` of BP cells, from `p_values` (B, C, n), `p_colours` (B, G, n), `p_factors` (B, 5, n)."""
    i_batch, n_cells = tl.program_id(1).to(tl.int64), n_rows * n_cols
    i_cell = tl.program_id(0) * BP + tl.arange(0, BP)
    m_cell = i_cell < n_cells
    inside, source, dy, dx = candidates_of(p_offsets, i_cell, n_rows, n_cols, n_candidates, BK)
    p_known += i_batch * n_cells
    p_values += i_batch * n_channels * n_cells
    p_factors += i_batch * 5 * n_cells
    usable = inside & (tl.load(p_known + source, mask=inside, other=0) != 0)
    ux = tl.load(p_factors + source, mask=usable, other=0.0)
    uy = tl.load(p_factors + n_cells + source, mask=usable, other=0.0)
    vx = tl.load(p_factors + 2 * n_cells + source, mask=usable, other=0.0)
    vy = tl.load(p_factors + 3 * n_cells + source, mask=usable, other=0.0)
    r = tl.load(p_factors + 4 * n_cells + source, mask=usable, other=0.0)
    u, v = ux * (dx * scale_x) + uy * (dy * scale_y), vx * (dx * scale_x) + vy * (dy * scale_y)
    apart = apart_of(p_colours + i_batch * G * n_cells, i_cell, source, usable, n_cells, G)
    score = tl.where(usable, (u * u + v * v + r * apart) * TO_BASE_2, float("-inf"))
    peak = tl.max(score, 1)
    weight = tl.exp2(score - tl.where(peak == float("-inf"), 0.0, peak)[:, None])
    total = tl.sum(weight, 1)
    counted = (tl.load(p_known + i_cell, mask=m_cell, other=0) != 0) & (total > 0)
    weight *= tl.where(counted, 1 / tl.where(counted, total, 1.0), 0.0)[:, None]
    said = tl.zeros([BP, BK], tl.float32)
    for c in range(n_channels):
        others = tl.load(p_values + c * n_cells + source, mask=usable, other=0.0)
        own = tl.load(p_values + c * n_cells + i_cell, mask=m_cell, other=0.0)
        error = tl.sum(weight * others, 1) - own
        said += (error / tl.sqrt(error * error + ROUNDING))[:, None] * others
    said /= n_channels
    by_score = weight * (said - tl.sum(weight * said, 1)[:, None])
    k = tl.arange(0, BK)
    p_pairs = p_by_score + (i_batch * n_cells + i_cell)[:, None] * n_candidates + k[None, :]
    tl.store(p_pairs, by_score, mask=m_cell[:, None] & (k < n_candidates)[None, :])


@triton.jit(do_not_specialize=[*SIZES, *NUMBERS])
def step_kernel(
    p_colours, p_offsets, p_opposite, p_by_score, p_raw, p_initial, p_first, p_second, p_factors,
    n_rows, n_cols, n_candidates, n_batch, scale_y, scale_x, rate, so_far_2,
    BETA_1: tl.constexpr, BETA_2: tl.constexpr, EPSILON: tl.constexpr, PULL: tl.constexpr,
    G: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, UPDATE: tl.constexpr,
):
    """A step of Adam of BP sources, and their factors (B, 5, n); the factors alone if not UPDATE.

    `p_raw`, `p_initial`, `p_first`, `p_second` are (4, B, n). `rate` is the learning rate over 1 - BETA_1^n, `so_far_2`
    1 - BETA_2^n. PULL: of the prior.
    """
    i_batch, n_cells = tl.program_id(1).to(tl.int64), n_rows * n_cols
    source = tl.program_id(0) * BP + tl.arange(0, BP)
    m_source = source < n_cells
    o_source, stride = i_batch * n_cells + source, n_batch * n_cells
    log_x = tl.load(p_raw + o_source, mask=m_source, other=0.0)
    log_y = tl.load(p_raw + o_source + stride, mask=m_source, other=0.0)
    theta = tl.load(p_raw + o_source + 2 * stride, mask=m_source, other=0.0)
    log_r = tl.load(p_raw + o_source + 3 * stride, mask=m_source, other=0.0)
    p_factors += i_batch * 5 * n_cells
    if UPDATE:
        inside, cell, dy, dx = candidates_of(p_offsets, source, n_rows, n_cols, n_candidates, BK)
        k = tl.arange(0, BK)
        back = tl.load(p_opposite + k, mask=k < n_candidates, other=0)
        p_pairs = p_by_score + (i_batch * n_cells + cell) * n_candidates + back[None, :]
        given = tl.load(p_pairs, mask=inside, other=0.0)
        apart = apart_of(p_colours + i_batch * G * n_cells, source, cell, inside, n_cells, G)
        ux = tl.load(p_factors + source, mask=m_source, other=0.0)[:, None]
        uy = tl.load(p_factors + n_cells + source, mask=m_source, other=0.0)[:, None]
        vx = tl.load(p_factors + 2 * n_cells + source, mask=m_source, other=0.0)[:, None]
        vy = tl.load(p_factors + 3 * n_cells + source, mask=m_source, other=0.0)[:, None]
        r = tl.load(p_factors + 4 * n_cells + source, mask=m_source, other=0.0)
        u, v = ux * (dx * scale_x) + uy * (dy * scale_y), vx * (dx * scale_x) + vy * (dy * scale_y)
        turned = tl.exp(log_x - log_y) - tl.exp(log_y - log_x)
        by_x, by_y = tl.sum(given * u * u, 1), tl.sum(given * v * v, 1)
        by_turn, by_r = turned * tl.sum(given * u * v, 1), r * tl.sum(given * apart, 1)
        log_x = descended(
            log_x, by_x, PULL, p_raw, p_initial, p_first, p_second, o_source, m_source, rate, so_far_2,
            BETA_1, BETA_2, EPSILON,
        )
        log_y = descended(
            log_y, by_y, PULL, p_raw, p_initial, p_first, p_second, o_source + stride, m_source, rate, so_far_2,
            BETA_1, BETA_2, EPSILON,
        )
        theta = descended(
            theta, by_turn, 0.0, p_raw, p_initial, p_first, p_second, o_source + 2 * stride, m_source, rate, so_far_2,
            BETA_1, BETA_2, EPSILON,
        )
        log_r = descended(
            log_r, by_r, PULL, p_raw, p_initial, p_first, p_second, o_source + 3 * stride, m_source, rate, so_far_2,
            BETA_1, BETA_2, EPSILON,
        )
    cos, sin = cos_and_sin(theta / PI)
    narrow_x, narrow_y = tl.exp(-log_x), tl.exp(-log_y)
    tl.store(p_factors + source, cos * narrow_x, mask=m_source)
    tl.store(p_factors + n_cells + source, sin * narrow_x, mask=m_source)
    tl.store(p_factors + 2 * n_cells + source, -sin * narrow_y, mask=m_source)
    tl.store(p_factors + 3 * n_cells + source, cos * narrow_y, mask=m_source)
    tl.store(p_factors + 4 * n_cells + source, tl.exp(-2 * log_r), mask=m_source)


@triton.jit
def descended(
    raw, gradient, pull, p_raw, p_initial, p_first, p_second, offsets, mask, rate, so_far_2,
    BETA_1: tl.constexpr, BETA_2: tl.constexpr, EPSILON: tl.constexpr,
):
    """One parameter of sources after a step of Adam, stored beside its new averages; an infinite one stays."""
    initial = tl.load(p_initial + offsets, mask=mask, other=0.0)
    finite = tl.abs(initial) < float("inf")
    gradient += (tl.where(finite, raw, 0.0) - tl.where(finite, initial, 0.0)) * pull
    first = BETA_1 * tl.load(p_first + offsets, mask=mask, other=0.0) + (1 - BETA_1) * gradient
    second = BETA_2 * tl.load(p_second + offsets, mask=mask, other=0.0) + (1 - BETA_2) * gradient * gradient
    raw -= rate * first / (tl.sqrt(second / so_far_2) + EPSILON)
    tl.store(p_first + offsets, first, mask=mask)
    tl.store(p_second + offsets, second, mask=mask)
    tl.store(p_raw + offsets, raw, mask=mask)
    return raw
