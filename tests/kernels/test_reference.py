"""The definition of truth against an independent loop over pixels, closed forms and symmetries."""

import math

import pytest
import torch
from compare import Problem, make_problem, truth
from torch import Tensor

from kernels.bilateral import reference
from kernels.geometry import Factors, Support

# --- an independent implementation: one pixel, one candidate, one number at a time


def render_by_loops(problem: Problem) -> Tensor:
    """The formula of `kernels.bilateral.reference.render` in Python floats."""
    (batch, channels), (height, width) = problem.signal.shape[:2], problem.guide.shape[-2:]
    out = torch.empty(batch, channels, height, width, dtype=torch.float64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                weights = weights_by_loops(problem, b, y, x)
                total = sum(weights.values())
                for c in range(channels):
                    mixed = sum(weight * float(problem.signal[b, c, i, j]) for (i, j), weight in weights.items())
                    out[b, c, y, x] = mixed / total if weights else math.nan
    return out


def weights_by_loops(problem: Problem, b: int, y: int, x: int) -> dict[tuple[int, int], float]:
    """exp(score - best) of every candidate cell of one pixel, copies of border cells added up."""
    rows, cols = problem.signal.shape[-2:]
    guide_channels, height, width = problem.guide.shape[1:]
    scale_y, scale_x = height / rows, width / cols
    owner_i, owner_j = math.floor((y + 0.5) / scale_y), math.floor((x + 0.5) / scale_x)
    reach = problem.support.radius if problem.radius is None else int(problem.radius[b, y, x])
    scores: list[tuple[tuple[int, int], float]] = []
    for i in range(owner_i - reach, owner_i + reach + 1):
        for j in range(owner_j - reach, owner_j + reach + 1):
            if (i - owner_i) ** 2 + (j - owner_j) ** 2 > reach**2:
                continue
            cell = min(max(i, 0), rows - 1), min(max(j, 0), cols - 1)
            if cell != (i, j) and problem.support.border == "drop":
                continue
            if problem.valid is not None and not problem.valid[(b, *cell)]:
                continue
            ux, uy, vx, vy, r = (float(lr_map[(b, *cell)]) for lr_map in problem.factors)
            dy = y - ((cell[0] + 0.5) * scale_y - 0.5)
            dx = x - ((cell[1] + 0.5) * scale_x - 0.5)
            colour = sum(
                (float(problem.guide[b, g, y, x]) - float(problem.guide_lr[(b, g, *cell)])) ** 2
                for g in range(guide_channels)
            )
            scores.append((cell, -((ux * dx + uy * dy) ** 2) - (vx * dx + vy * dy) ** 2 - r * colour))
    best = max((score for _, score in scores), default=0.0)
    weights: dict[tuple[int, int], float] = {}
    for cell, score in scores:
        weights[cell] = weights.get(cell, 0.0) + math.exp(score - best)
    return weights


LOOP_CASES = {
    "square": {},
    "not-square": {"grid": (2, 4), "size": (7, 9)},
    "clamped-border": {"border": "clamp"},
    "one-cell-clamped": {"grid": (1, 1), "border": "clamp"},
    "radius-0": {"radius": 0},
    "radius-beyond-the-grid": {"grid": (2, 2), "radius": 5},
    "radius-beyond-the-grid-clamped": {"grid": (2, 2), "radius": 4, "border": "clamp"},
    "radius-map": {"radius_map": True},
    "radius-map-clamped": {"radius_map": True, "border": "clamp"},
    "holes": {"valid": 0.3, "radius": 1},
    "holes-clamped": {"valid": 0.2, "radius": 1, "border": "clamp"},
    "holes-and-radius-map": {"valid": 0.4, "radius_map": True},
    "batch": {"batch": 2, "valid": 0.5},
    "grey-guide": {"guide_channels": 1},
    "seven-channel-guide": {"guide_channels": 7},
    "scale-1": {"grid": (5, 4), "size": (5, 4)},
}


@pytest.mark.parametrize("options", LOOP_CASES.values(), ids=LOOP_CASES)
def test_against_loops(options: dict) -> None:
    problem = make_problem(**{"grid": (3, 3), "size": (8, 7), "channels": 2} | options)
    torch.testing.assert_close(truth(problem), render_by_loops(problem), rtol=0, atol=1e-12, equal_nan=True)


def test_copies_of_a_clamped_cell_count_each() -> None:
    # 1 x 2 cells, radius 1, no distances: the left pixel sees four offsets in cell 0 and one, to the right, in cell 1.
    flat = Factors(*torch.zeros(5, 1, 1, 2))
    guide = torch.zeros(1, 1, 1, 2)
    signal = torch.tensor([[[[0.0, 1.0]]]])
    out = reference.render(signal, guide, guide, flat, support=Support(1, "clamp"))
    torch.testing.assert_close(out, torch.tensor([[[[1 / 5, 4 / 5]]]]))
    out = reference.render(signal, guide, guide, flat, support=Support(1, "drop"))
    torch.testing.assert_close(out, torch.tensor([[[[1 / 2, 1 / 2]]]]))


# --- closed forms


def test_one_cell_gives_a_constant() -> None:
    problem = make_problem(grid=(1, 1), size=(5, 6), border="clamp")
    torch.testing.assert_close(truth(problem), problem.signal.double().expand(1, 3, 5, 6), rtol=1e-14, atol=0)


@pytest.mark.parametrize("border", ["drop", "clamp"])
def test_a_constant_signal_stays_constant(border: str) -> None:
    problem = make_problem(border=border, radius_map=True, valid=0.9, radius=3)
    constant = Problem(**{**vars(problem), "signal": torch.full_like(problem.signal, 7.25)})
    out = truth(constant)[:, :, problem.reached()[0]]
    torch.testing.assert_close(out, torch.full_like(out, 7.25), rtol=1e-14, atol=0)


def test_radius_0_is_nearest_neighbour() -> None:
    problem = make_problem(grid=(4, 3), size=(16, 15), radius=0)
    expected = problem.signal.double().repeat_interleave(4, 2).repeat_interleave(5, 3)
    assert torch.equal(truth(problem), expected)


def test_without_range_term_and_huge_sigma_it_is_the_mean_of_the_candidates() -> None:
    problem = make_problem(grid=(4, 4), size=(12, 12), radius=8)
    flat = Factors(*(1e-9 * lr_map for lr_map in problem.factors[:4]), torch.zeros_like(problem.factors.r))
    out = truth(Problem(**{**vars(problem), "factors": flat}))
    mean = problem.signal.double().mean((2, 3), keepdim=True)
    torch.testing.assert_close(out, mean.expand_as(out), rtol=1e-12, atol=1e-12)


def test_huge_range_weight_copies_the_cell_of_the_same_colour() -> None:
    guide_lr = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    guide = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    factors = Factors(*torch.zeros(4, 1, 1, 2), torch.full((1, 1, 2), 1e4))
    out = reference.render(torch.tensor([[[[3.0, 5.0]]]]), guide, guide_lr, factors, support=Support(1, "drop"))
    assert out.flatten().tolist() == [5, 3, 3, 5]


def test_two_cells_give_a_logistic_curve() -> None:
    # One factor along x only: the score difference of the cells at x = 1.5 and 5.5 is linear in x.
    a = 0.3
    factors = Factors(torch.full((1, 1, 2), a), *torch.zeros(4, 1, 1, 2))
    out = reference.render(
        torch.tensor([[[[0.0, 1.0]]]]),
        torch.zeros(1, 1, 1, 8),
        torch.zeros(1, 1, 1, 2),
        factors,
        support=Support(1, "drop"),
    )
    x = torch.arange(8.0)
    torch.testing.assert_close(out.flatten(), torch.sigmoid(a**2 * ((x - 1.5) ** 2 - (x - 5.5) ** 2)))


def test_the_output_lies_between_the_signals_extremes() -> None:
    problem = make_problem(channels=4, radius=3, border="clamp")
    out, signal = truth(problem), problem.signal.double()
    assert (out <= signal.amax((2, 3), keepdim=True) + 1e-12).all()
    assert (out >= signal.amin((2, 3), keepdim=True) - 1e-12).all()


# --- symmetries


def changed(problem: Problem, **fields: Tensor | Factors | None) -> Problem:
    return Problem(**{**vars(problem), **fields})


def test_linear_in_the_signal() -> None:
    problem = make_problem(channels=2, valid=0.8)
    other = make_problem(channels=2, seed=1).signal
    both = truth(changed(problem, signal=2 * problem.signal.double() + 3 * other.double()))
    apart = 2 * truth(problem) + 3 * truth(changed(problem, signal=other))
    torch.testing.assert_close(both, apart, rtol=0, atol=1e-12, equal_nan=True)


def test_channels_do_not_mix() -> None:
    problem = make_problem(channels=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        truth(changed(problem, signal=problem.signal[:, order])), truth(problem)[:, order], rtol=0, atol=1e-14
    )


def test_order_of_the_guides_channels_does_not_matter() -> None:
    problem = make_problem(guide_channels=4)
    order = torch.tensor([3, 1, 0, 2])
    permuted = changed(problem, guide=problem.guide[:, order], guide_lr=problem.guide_lr[:, order])
    torch.testing.assert_close(truth(permuted), truth(problem), rtol=0, atol=1e-13)


@pytest.mark.parametrize("border", ["drop", "clamp"])
@pytest.mark.parametrize("size", [(12, 20), (13, 19)], ids=["whole-scale", "real-scale"])
def test_mirrored_problems_have_mirrored_answers(border: str, size: tuple[int, int]) -> None:
    # Sizes without a pixel halfway between two centres, which would fall to the later cell in both.
    problem = make_problem(grid=(3, 5), size=size, border=border, radius_map=True, valid=0.7)

    def mirror(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.flip(-1)

    ux, uy, vx, vy, r = (lr_map.flip(-1) for lr_map in problem.factors)
    mirrored = Problem(
        problem.signal.flip(-1),
        problem.guide.flip(-1),
        problem.guide_lr.flip(-1),
        Factors(-ux, uy, -vx, vy, r),
        problem.support,
        mirror(problem.radius),
        mirror(problem.valid),
    )
    torch.testing.assert_close(truth(mirrored).flip(-1), truth(problem), rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("border", ["drop", "clamp"])
def test_transposed_problems_have_transposed_answers(border: str) -> None:
    problem = make_problem(grid=(3, 5), size=(13, 18), border=border)
    ux, uy, vx, vy, r = (lr_map.mT for lr_map in problem.factors)
    transposed = changed(
        problem,
        signal=problem.signal.mT,
        guide=problem.guide.mT,
        guide_lr=problem.guide_lr.mT,
        factors=Factors(uy, ux, vy, vx, r),
    )
    torch.testing.assert_close(truth(transposed).mT, truth(problem), rtol=0, atol=1e-12)


def test_a_shift_by_whole_cells_shifts_the_answer() -> None:
    # Two crops of one problem, one cell apart: away from the borders they are the same.
    whole = make_problem(grid=(5, 8), size=(20, 32), radius=1)

    def crop(first: int) -> Tensor:
        cells, pixels = slice(first, first + 6), slice(4 * first, 4 * first + 24)
        cropped = Problem(
            whole.signal[..., cells],
            whole.guide[..., pixels],
            whole.guide_lr[..., cells],
            Factors(*(lr_map[..., cells] for lr_map in whole.factors)),
            whole.support,
        )
        return truth(cropped)

    torch.testing.assert_close(crop(0)[..., 8:20], crop(1)[..., 4:16], rtol=0, atol=1e-12)


def test_only_the_matrix_of_the_factors_matters() -> None:
    # Any rotation from the left of the 2 x 2 factor leaves |W d|^2 as it is.
    problem = make_problem()
    ux, uy, vx, vy, r = (lr_map.double() for lr_map in problem.factors)
    cos, sin = math.cos(0.7), math.sin(0.7)
    rotated = Factors(cos * ux - sin * vx, cos * uy - sin * vy, sin * ux + cos * vx, sin * uy + cos * vy, r)
    torch.testing.assert_close(truth(changed(problem, factors=rotated)), truth(problem), rtol=0, atol=1e-12)


# --- missing values and the loss


def test_values_of_invalid_cells_play_no_part() -> None:
    problem = make_problem(valid=0.5)
    assert problem.valid is not None
    other = torch.where(problem.valid[:, None], problem.signal, torch.full_like(problem.signal, 1e6))
    assert torch.equal(truth(changed(problem, signal=other)).nan_to_num(), truth(problem).nan_to_num())


def test_unreached_pixels_are_nan_and_leave_no_nan_in_gradients() -> None:
    problem = make_problem(grid=(6, 6), size=(18, 18), radius=1, valid=0.1)
    reached = problem.reached()
    assert not reached.all() and reached.any()
    assert torch.equal(truth(problem).isnan().all(1), ~reached) and torch.equal(truth(problem).isnan().any(1), ~reached)
    for name, gradient in problem.to(torch.float64).gradients(reference, of_guide=True).items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name


def test_invalid_cells_get_no_gradient() -> None:
    problem = make_problem(grid=(5, 5), size=(20, 20), valid=0.4).to(torch.float64)
    for name, gradient in problem.gradients(reference).items():
        at_invalid = gradient.movedim(1, -1)[~problem.valid] if gradient.ndim == 4 else gradient[~problem.valid]
        assert (at_invalid == 0).all(), name


def test_the_loss_is_the_mean_absolute_error_of_every_image() -> None:
    problem = make_problem(batch=3, reconstruct=True, radius_map=True, border="clamp").to(torch.float64)
    loss, _ = problem.loss_and_gradients(reference)
    rendered = render_by_loops(problem)
    for image in range(3):
        expected = sum(abs(rendered[image] - problem.guide[image]).flatten().tolist()) / problem.guide[image].numel()
        assert float(loss[image]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_result_has_the_signals_dtype(dtype: torch.dtype) -> None:
    problem = make_problem()
    rendered = changed(problem, signal=problem.signal.to(dtype)).render(reference)
    assert rendered.dtype == dtype and rendered.shape == (1, 3, 16, 16)


def test_it_takes_everything() -> None:
    problem = make_problem()
    assert reference.refuses(problem.signal, problem.guide.requires_grad_()) is None
