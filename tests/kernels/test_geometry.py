"""Cells, owners and candidates against the definitions, searched one by one in exact arithmetic."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.geometry import Support, centres, disc_offsets, owner_starts, owners, reached_pixels

CASES = [(1, 1), (1, 9), (4, 4), (4, 16), (7, 100), (5, 63), (16, 230), (3, 7), (9, 10), (1000, 1000), (63, 1000)]


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int]:
    """Cells and pixels of one axis, any scale >= 1."""
    cells = draw(st.integers(1, 40))
    return cells, draw(st.integers(cells, 300))


def exact_centres(cells: int, pixels: int) -> list[Fraction]:
    return [(i + Fraction(1, 2)) * Fraction(pixels, cells) - Fraction(1, 2) for i in range(cells)]


def nearest_cell(x: int, middles: list[Fraction]) -> int:
    """The cell with the nearest centre; of two equally near ones the later, which is floor((x + .5) / s)."""
    return min(range(len(middles)), key=lambda i: (abs(x - middles[i]), -i))


@settings(deadline=None)
@given(axes())
def test_owners_are_the_cells_with_the_nearest_centre(axis: tuple[int, int]) -> None:
    cells, pixels = axis
    middles = exact_centres(cells, pixels)
    assert owners(cells, pixels).tolist() == [nearest_cell(x, middles) for x in range(pixels)]


@pytest.mark.parametrize(("cells", "pixels"), CASES)
def test_owners_of_well_known_sizes(cells: int, pixels: int) -> None:
    # floor((x + .5) cells / pixels) in exact arithmetic: searching 1000 x 1000 centres would take long.
    expected = [int((x + Fraction(1, 2)) * Fraction(cells, pixels)) for x in range(pixels)]
    assert owners(cells, pixels).tolist() == expected
    assert owners(cells, pixels).dtype == torch.int64


@settings(deadline=None)
@given(axes())
def test_starts_bracket_the_pixels_of_every_owner(axis: tuple[int, int]) -> None:
    cells, pixels = axis
    starts, owner = owner_starts(cells, pixels), owners(cells, pixels).tolist()
    assert len(starts) == cells + 1 and starts[0] == 0 and starts[-1] == pixels
    for cell in range(cells):
        assert starts[cell] < starts[cell + 1], "every cell owns a pixel"
        assert set(owner[starts[cell] : starts[cell + 1]]) == {cell}


def test_owners_of_huge_axes_do_not_overflow_or_round() -> None:
    cells, pixels = 99_991, 1_000_003
    owner = owners(cells, pixels)
    for x in (0, 1, 499_999, 700_001, pixels - 1):
        assert int(owner[x]) == (2 * x + 1) * cells // (2 * pixels)
    assert owner_starts(cells, pixels)[:-1] == torch.searchsorted(owner, torch.arange(cells)).tolist()


@settings(deadline=None)
@given(axes())
def test_centres_are_their_formula(axis: tuple[int, int]) -> None:
    found = centres(*axis)
    assert found.dtype == torch.float64
    expected = torch.tensor([float(middle) for middle in exact_centres(*axis)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-13)


def test_centres_mean_pixel_centres_at_integers() -> None:
    assert centres(4, 4).tolist() == [0, 1, 2, 3]
    assert centres(2, 8).tolist() == [1.5, 5.5]
    assert centres(1, 5).tolist() == [2]


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 8, 11])
def test_disc_offsets_are_the_disc_nearest_first(radius: int) -> None:
    offsets = [tuple(offset) for offset in disc_offsets(radius).tolist()]
    box = range(-radius, radius + 1)
    assert set(offsets) == {(dy, dx) for dy in box for dx in box if dy * dy + dx * dx <= radius * radius}
    assert len(offsets) == len(set(offsets))
    squared = [dy * dy + dx * dx for dy, dx in offsets]
    assert squared == sorted(squared)


def test_disc_of_radius_eight_has_the_197_candidates_of_the_released_code() -> None:
    assert len(disc_offsets(8)) == 197


def reached_by_search(
    valid: list[list[bool]], size: tuple[int, int], support: Support, radius: list[list[int]]
) -> list[list[bool]]:
    rows, cols = len(valid), len(valid[0])
    owner_y, owner_x = owners(rows, size[0]).tolist(), owners(cols, size[1]).tolist()

    def reached(y: int, x: int) -> bool:
        for dy in range(-support.radius, support.radius + 1):
            for dx in range(-support.radius, support.radius + 1):
                if dy * dy + dx * dx > min(radius[y][x], support.radius) ** 2:
                    continue
                row, col = owner_y[y] + dy, owner_x[x] + dx
                if support.border == "clamp":
                    row, col = min(max(row, 0), rows - 1), min(max(col, 0), cols - 1)
                if 0 <= row < rows and 0 <= col < cols and valid[row][col]:
                    return True
        return False

    return [[reached(y, x) for x in range(size[1])] for y in range(size[0])]


@settings(deadline=None)
@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    radius=st.integers(0, 3),
    border=st.sampled_from(["clamp", "drop"]),
    with_map=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_reached_pixels_against_a_search(
    rows: int, cols: int, extra: tuple[int, int], radius: int, border: str, with_map: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    valid = torch.rand(2, rows, cols, generator=random) < 0.25
    size = (rows + extra[0], cols + extra[1])
    radii = torch.randint(0, radius + 1, (2, *size), generator=random) if with_map else None
    found = reached_pixels(valid, size, Support(radius, border), radii)
    everywhere = torch.full((2, *size), radius) if radii is None else radii
    expected = [
        reached_by_search(mask, size, Support(radius, border), image_radius)
        for mask, image_radius in zip(valid.tolist(), everywhere.tolist(), strict=True)
    ]
    assert found.tolist() == expected
