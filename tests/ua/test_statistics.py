"""Intervals and tests against known cases."""

import itertools
import math

import numpy as np
import pytest

from ua.statistics import bootstrap_mean, paired


def test_the_bootstrap_interval_of_a_normal_sample_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400).tolist()
    interval = bootstrap_mean(values, draws=5000)
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(400)
    assert interval.mean == pytest.approx(np.mean(values))
    assert interval.high - interval.mean == pytest.approx(half, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.1)
    narrow = bootstrap_mean(values, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_special_samples() -> None:
    constant = bootstrap_mean([2.0, 2.0, 2.0])
    assert (constant.mean, constant.low, constant.high) == (2, 2, 2)
    single = bootstrap_mean([5.0])
    assert single.mean == 5 and math.isnan(single.low) and math.isnan(single.high)
    assert bootstrap_mean([1.0, 4.0, 9.0], seed=1) == bootstrap_mean([1.0, 4.0, 9.0], seed=1)


def test_the_exact_test_counts_every_sign() -> None:
    first, second = [1.0, 2.5, 2.0, 7.0], [2.0, 2.0, 4.0, 9.0]
    differences = np.subtract(first, second)
    means = [abs(np.mean(differences * signs)) for signs in itertools.product((1, -1), repeat=4)]
    expected = np.mean(np.array(means) >= abs(differences.mean()) - 1e-12)
    result = paired(first, second, better="min")
    assert result.p == pytest.approx(expected)
    assert (result.wins, result.count) == (3, 4)
    assert result.difference.mean == pytest.approx(differences.mean())
    assert paired(first, second, better="max").wins == 1


def test_a_clear_and_no_difference() -> None:
    ten = list(range(10))
    better = paired([value - 1.0 for value in ten], ten, better="min")
    assert better.wins == 10 and better.p == pytest.approx(2 / 2**10)
    same = paired(ten, ten, better="min")
    assert same.wins == 0 and same.p == 1 and same.difference.mean == 0


def test_random_flips_of_many_images() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=40)
    clear = paired(first.tolist(), (first + 1).tolist(), better="min")
    assert 0 < clear.p <= 2 / 2000
    chance = [paired(rng.normal(size=20).tolist(), rng.normal(size=20).tolist(), better="min").p for _ in range(60)]
    assert 0.35 < np.mean(chance) < 0.65  # uniform where there is nothing to find


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_mean([]), "values must hold"),
        (lambda: bootstrap_mean([1.0, math.nan]), "values must be finite"),
        (lambda: bootstrap_mean([1.0], level=95), "level"),
        (lambda: bootstrap_mean([1.0], draws=0), "draws"),
        (lambda: paired([1.0], [1.0, 2.0], better="min"), "one length"),
        (lambda: paired([1.0], [1.0], better="less"), "better"),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
