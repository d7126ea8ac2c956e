"""Metrics against closed forms, naive loops and scikit-image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ua import metrics


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, k: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(k, shape, generator=torch.Generator().manual_seed(seed))


# --- images


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    truth = rand(3, 12, 15) * 0.5
    assert metrics.psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr(truth * 255 + 25.5, truth * 255, data_range=255) == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr(truth, truth) == math.inf


def test_psnr_agrees_with_scikit_image_and_pools_the_batch() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    a, b = rand(2, 3, 12, 15), rand(2, 3, 12, 15, seed=1)
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1))


def test_ssim_is_the_mean_over_channels_and_images() -> None:
    from skimage.metrics import structural_similarity

    truth = rand(2, 3, 20, 17)
    noisy = (truth + 0.2 * rand(2, 3, 20, 17, seed=1)).clamp(0, 1)
    expected = np.mean(
        [
            structural_similarity(
                a,
                b,
                channel_axis=0,
                data_range=1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for a, b in zip(noisy.double().numpy(), truth.double().numpy(), strict=True)
        ]
    )
    assert metrics.ssim(noisy, truth) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(truth, truth) == pytest.approx(1)


def test_ssim_of_two_constants_is_its_luminance_term() -> None:
    a, b, c1 = 0.5, 0.25, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert metrics.ssim(torch.full((1, 16, 16), a), torch.full((1, 16, 16), b)) == pytest.approx(expected)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 x 11"):
        metrics.ssim(rand(3, 10, 30), rand(3, 10, 30))


# --- depth and features


def test_depth_metrics_count_known_pixels_only() -> None:
    truth = torch.tensor([[[1.0, 2.0], [4.0, math.inf]]])
    prediction = torch.tensor([[[1.2, 3.0], [4.0, math.nan]]])
    valid = torch.tensor([[True, True], [True, False]])
    assert metrics.depth_rmse(prediction, truth, valid) == pytest.approx(math.sqrt((0.04 + 1) / 3), rel=1e-6)
    assert metrics.depth_delta1(prediction, truth, valid) == pytest.approx(2 / 3)


def test_delta1_threshold_is_strict_and_symmetric() -> None:
    truth = torch.tensor([[[4.0, 4.0, 5.0, 5.0, 4.0]]])
    prediction = torch.tensor([[[5.0, 4.99, 4.0, 4.01, -4.0]]])
    assert metrics.depth_delta1(prediction, truth) == pytest.approx(2 / 5)
    assert metrics.depth_delta1(prediction, truth, threshold=1.3) == pytest.approx(4 / 5)


def test_delta1_refuses_a_truth_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="truth must be positive"):
        metrics.depth_delta1(torch.ones(1, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="threshold"):
        metrics.depth_delta1(torch.ones(1, 2, 2), torch.ones(1, 2, 2), threshold=1.0)


def test_a_mask_for_each_item_selects_pixels_of_all_channels() -> None:
    truth, prediction = rand(2, 3, 4, 5), rand(2, 3, 4, 5, seed=1)
    valid = rand(2, 4, 5, seed=2) > 0.5
    squares, cosines = [], []
    for b, i, j in valid.nonzero().tolist():
        p, t = prediction[b, :, i, j].double(), truth[b, :, i, j].double()
        squares += (p - t).square().tolist()
        cosines.append((p @ t / p.norm() / t.norm()).item())
    assert metrics.feature_rmse(prediction, truth, valid) == pytest.approx(math.sqrt(np.mean(squares)))
    assert metrics.feature_cosine(prediction, truth, valid) == pytest.approx(np.mean(cosines))


def test_cosine_ignores_lengths_and_counts_zero_vectors_as_zero() -> None:
    truth = rand(8, 3, 4) + 0.1
    assert metrics.feature_cosine(truth * 7, truth) == pytest.approx(1)
    assert metrics.feature_cosine(-truth, truth) == pytest.approx(-1)
    truth[:, 0] = 0
    assert metrics.feature_cosine(truth, truth) == pytest.approx(2 / 3)


# --- labels


def naive_iou(prediction: torch.Tensor, truth: torch.Tensor, k: int, ignore: int = -1) -> list[float]:
    values = []
    for c in range(k):
        both = either = 0
        for p, t in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if t != ignore:
                both += p == c and t == c
                either += p == c or t == c
        values.append(both / either if either else math.nan)
    return values


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_iou_and_accuracy_agree_with_a_naive_loop(k: int, height: int, width: int, seed: int) -> None:
    prediction, truth = classes(height, width, k=k, seed=seed), classes(height, width, k=k, seed=seed + 1)
    void = rand(height, width, seed=seed) > 0.8
    void[0, 0] = False
    truth[void] = -1
    expected = naive_iou(prediction, truth, k)
    got = metrics.class_iou(prediction, truth, k)
    assert got.tolist() == pytest.approx(expected, nan_ok=True)
    assert metrics.miou(prediction, truth, k) == pytest.approx(np.nanmean(expected))
    accuracy = (prediction == truth)[~void].double().mean().item()
    assert metrics.pixel_accuracy(prediction, truth, k) == pytest.approx(accuracy)


def test_miou_counts_a_class_that_only_the_prediction_has() -> None:
    truth = torch.zeros(2, 4, dtype=torch.long)
    prediction = truth.clone()
    prediction[0, 0] = 5
    assert metrics.miou(prediction, truth, 6) == pytest.approx((7 / 8 + 0) / 2)
    assert metrics.miou(truth, truth, 6) == 1


def test_ignore_may_be_any_number() -> None:
    truth = torch.tensor([[0, 1, 255]])
    assert metrics.pixel_accuracy(torch.tensor([[0, 0, 0]]), truth, 2, ignore=255) == 0.5


def naive_band(labels: torch.Tensor, width: int) -> torch.Tensor:
    """Chebyshev distance to the nearest pixel beside an edge, plus one, is at most width."""
    height, length = labels.shape
    beside = [
        (i, j)
        for i in range(height)
        for j in range(length)
        for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
        if 0 <= a < height and 0 <= b < length and labels[a, b] != labels[i, j]
    ]
    band = torch.zeros(height, length, dtype=torch.bool)
    for i in range(height):
        for j in range(length):
            band[i, j] = any(max(abs(i - a), abs(j - b)) < width for a, b in beside)
    return band


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_band_has_the_stated_width_on_both_sides(width: int) -> None:
    labels = torch.zeros(9, 24, dtype=torch.long)
    labels[:, 12:] = 1
    band = metrics.boundary_band(labels, width)
    assert band[4].nonzero().flatten().tolist() == list(range(12 - width, 12 + width))
    blobs = (rand(3, 11, 9) > 0.9).long()
    expected = torch.stack([naive_band(item, width) for item in blobs])
    assert torch.equal(metrics.boundary_band(blobs, width), expected)


def test_a_void_ring_is_a_boundary_but_is_not_scored() -> None:
    truth = torch.zeros(8, 40, dtype=torch.long)
    truth[:, 20:22], truth[:, 22:] = -1, 1
    wrong_at_void = truth.clone()
    wrong_at_void[:, 20:22] = 0
    assert metrics.boundary_miou(wrong_at_void, truth, 2, width=3) == 1
    wrong_in_band = wrong_at_void.clone()
    wrong_in_band[:, 18:20] = 1  # 2 of the 3 known columns on the left
    assert metrics.boundary_miou(wrong_in_band, truth, 2, width=3) == pytest.approx((1 / 3 + 3 / 5) / 2)
    far = wrong_at_void.clone()
    far[:, :10] = 1
    assert metrics.boundary_miou(far, truth, 2, width=3) == 1


def test_without_a_boundary_there_is_nothing_to_say() -> None:
    flat = torch.zeros(6, 6, dtype=torch.long)
    assert math.isnan(metrics.boundary_miou(flat, flat, 2))


# --- errors


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: metrics.psnr(rand(3, 4, 4), rand(3, 4, 5)), ValueError, r"\(3, 4, 4\) and \(3, 4, 5\)"),
        (lambda: metrics.psnr(rand(4, 4), rand(4, 4)), ValueError, "truth must be"),
        (lambda: metrics.psnr(rand(3, 0, 4), rand(3, 0, 4)), ValueError, "not empty"),
        (lambda: metrics.psnr(rand(3, 4, 4), rand(3, 4, 4), data_range=0), ValueError, "data_range"),
        (lambda: metrics.psnr(None, rand(1, 2, 2)), TypeError, "prediction"),  # type: ignore[arg-type]
        (
            lambda: metrics.depth_rmse(rand(1, 2, 2), rand(1, 2, 2) * math.nan),
            ValueError,
            "truth must be finite",
        ),
        (
            lambda: metrics.depth_rmse(rand(1, 2, 2) / 0, rand(1, 2, 2)),
            ValueError,
            "prediction must be finite",
        ),
        (lambda: metrics.depth_rmse(rand(1, 2, 2), rand(1, 2, 2), rand(2, 2)), TypeError, "valid"),
        (lambda: metrics.depth_rmse(rand(1, 2, 2), rand(1, 2, 2), rand(2, 3) > 0), ValueError, "valid"),
        (lambda: metrics.depth_rmse(rand(1, 2, 2), rand(1, 2, 2), rand(2, 2) > 2), ValueError, "no pixel"),
        (
            lambda: metrics.feature_cosine(rand(2, 2, 2) / 0, rand(2, 2, 2)),
            ValueError,
            "prediction must be finite",
        ),
        (lambda: metrics.miou(rand(2, 2), classes(2, 2), 3), TypeError, "prediction"),
        (lambda: metrics.miou(classes(2, 2), classes(2, 3), 3), ValueError, "one shape"),
        (
            lambda: metrics.miou(classes(2, 2) + 3, classes(2, 2), 3),
            ValueError,
            "prediction must hold classes",
        ),
        (lambda: metrics.miou(classes(2, 2), classes(2, 2) - 3, 3), ValueError, "truth must hold classes"),
        (lambda: metrics.miou(classes(2, 2), classes(2, 2) * 0 - 1, 3), ValueError, "ignored"),
        (lambda: metrics.miou(classes(2, 2), classes(2, 2), 0), ValueError, "num_classes"),
        (lambda: metrics.boundary_band(classes(4, 4), 0), ValueError, "width"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


# --- normals


def test_the_angle_between_normals() -> None:
    truth = torch.zeros(3, 2, 2)
    truth[2] = 1
    tilted = torch.zeros(3, 2, 2)
    tilted[0], tilted[2] = math.sin(math.radians(30)), math.cos(math.radians(30))
    assert metrics.normal_angle(5 * tilted, truth) == pytest.approx(30, abs=1e-5)  # lengths do not count
    assert metrics.normal_angle(-truth, truth) == pytest.approx(180)
    assert metrics.normal_angle(truth, truth) == 0
    tilted[:, 0] = torch.nan
    below = torch.tensor([[False, False], [True, True]])
    assert metrics.normal_angle(tilted, truth, below) == pytest.approx(30, abs=1e-5)
    assert metrics.normal_angle(torch.zeros(3, 2, 2), truth) == 90
    with pytest.raises(ValueError, match="3 channels"):
        metrics.normal_angle(rand(2, 4, 4), rand(2, 4, 4))
