"""The comparing helper: it must fail when it should."""

import math

import pytest
import torch
from compare import assert_near, assert_same_gradients, largest_score, make_problem

from kernels.geometry import Factors, Support

TRUTH = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 4)


def changed(place: tuple[int, ...], value: float) -> torch.Tensor:
    other = TRUTH.clone()
    other[place] = value
    return other


def test_equal_values_pass() -> None:
    assert_near(TRUTH, TRUTH, largest=0, rms=0)


def test_one_outlier_breaks_the_largest_error_and_is_shown() -> None:
    with pytest.raises(AssertionError, match=r"(?s)largest error 0\.5 .*\(1, 2, 0\): 1\.239"):
        assert_near(changed((1, 2, 0), float(TRUTH[1, 2, 0]) + 0.5), TRUTH, largest=0.4, rms=1)


def test_many_small_errors_break_the_rms() -> None:
    assert_near(TRUTH + 0.01, TRUTH, largest=0.011, rms=0.011)
    with pytest.raises(AssertionError, match=r"RMS 0.01 "):
        assert_near(TRUTH + 0.01, TRUTH, largest=0.011, rms=0.005)


def test_errors_are_counted_in_units() -> None:
    assert_near(TRUTH + 10, TRUTH, largest=0.11, rms=0.11, unit=100)
    with pytest.raises(AssertionError):
        assert_near(TRUTH + 10, TRUTH, largest=0.11, rms=0.11)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_unwanted_nan_and_inf_fail_whatever_the_bounds(value: float) -> None:
    with pytest.raises(AssertionError):
        assert_near(changed((0, 0, 1), value), TRUTH, largest=1e30, rms=1e30)


def test_nan_must_be_where_it_is_expected() -> None:
    expected = changed((0, 0, 1), math.nan)
    assert_near(expected.clone(), expected, largest=0, rms=0)
    with pytest.raises(AssertionError, match=r"NaN differs at 1 places, first \[0, 0, 1\]"):
        assert_near(TRUTH, expected, largest=1, rms=1)


def test_shapes_must_be_equal() -> None:
    with pytest.raises(AssertionError, match=r"shape"):
        assert_near(TRUTH[:1], TRUTH, largest=1, rms=1)


def test_gradients_are_named_and_in_units_of_their_largest() -> None:
    truth = {"signal": 1000 * TRUTH, "r": TRUTH}
    assert_same_gradients({"signal": 1000 * TRUTH + 1, "r": TRUTH}, truth, largest=0.0011, rms=0.0011)
    with pytest.raises(AssertionError, match=r"gradient of r: largest error 1 "):
        assert_same_gradients({"signal": 1000 * TRUTH, "r": TRUTH + 1}, truth, largest=0.1, rms=0.1)


def test_made_up_problems_are_what_was_asked_for() -> None:
    problem = make_problem(
        batch=2, channels=5, guide_channels=4, grid=(3, 6), size=(20, 13), radius_map=True, valid=0.4
    )
    assert problem.signal.shape == (2, 5, 3, 6) and problem.guide.shape == (2, 4, 20, 13)
    assert problem.guide.min() >= 0 and problem.guide.max() <= 1
    assert problem.radius is not None and problem.radius.min() == 0 and problem.radius.max() == 2
    assert problem.valid is not None and problem.valid.flatten(1).any(1).all() and not problem.valid.all()
    again = make_problem(batch=2, channels=5, guide_channels=4, grid=(3, 6), size=(20, 13), radius_map=True, valid=0.4)
    assert torch.equal(again.signal, problem.signal) and torch.equal(again.item(1).guide, problem.guide[1:])


def test_largest_score_is_the_best_score_of_the_worst_pixel() -> None:
    problem = make_problem(grid=(1, 1), size=(3, 4), guide_channels=2)
    ux, uy, vx, vy, r = (float(lr_map) for lr_map in problem.factors)
    colour = (problem.guide.double() - problem.guide_lr.double()).square().sum(1)[0]
    scores = [
        (ux * (x - 1.5) + uy * (y - 1)) ** 2 + (vx * (x - 1.5) + vy * (y - 1)) ** 2 + r * float(colour[y, x])
        for y in range(3)
        for x in range(4)
    ]
    assert largest_score(problem) == pytest.approx(max(scores), rel=1e-12)
    flat = Factors(*torch.zeros(5, 1, 1, 1))
    assert largest_score(type(problem)(problem.signal, problem.guide, problem.guide_lr, flat, Support(1, "drop"))) == 0
