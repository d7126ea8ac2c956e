"""What all experiments on the bench rely on: data, rows that can be found again, and what is compared with what."""

import math

import pytest
import torch

import ua
from experiments import _bench, _effects, ablation_iters
from ua import datasets
from ua.datasets import Sample
from ua.tracking import Tracker

METHODS = _bench.methods({"nearest": {}}, {"fixed": ua.preset("paper").replace(steps=0)}, "torch")


def sample(name, seed=0, **fields):
    random = torch.Generator().manual_seed(seed)
    return Sample(name, torch.rand(3, 32, 48, generator=random), **fields)


def give(monkeypatch, **sets):
    """Data sets by name, in place of those of the library."""
    monkeypatch.setattr(datasets, "load", lambda name, **options: sets[name])


def measure(found, tracker, regimes=("average",), reconstruction=True):
    problem = _bench.Problem(found, (4, 6), regimes, 0, "cpu")
    _bench.measure(problem, _bench.clean(found, "cpu"), METHODS, tracker, reconstruction=reconstruction, scale=8)


def test_a_sample_of_no_split_is_not_measured_twice(tmp_path):
    for _ in range(2):
        tracker = Tracker(tmp_path, {})
        measure(sample("a"), tracker)
        assert len(tracker.rows) == 2 * len(METHODS) and {row["split"] for row in tracker.rows} == {"unstated"}


def test_two_samples_of_one_name_are_refused(tmp_path, monkeypatch):
    give(monkeypatch, one=[sample("a", 1)], two=[sample("a", 2)])
    with pytest.raises(ValueError, match="two samples are called 'a', the second one in 'two'"):
        _bench.load({"one": {}, "two": {}}, None, Tracker(tmp_path, {}))


def test_rows_of_data_that_is_gone_are_refused(tmp_path, monkeypatch):
    tracker = Tracker(tmp_path, {})
    measure(sample("a"), tracker)
    give(monkeypatch, one=[sample("b")])
    with pytest.raises(ValueError, match=r"of samples that are not here now \(a\)"):
        _bench.load({"one": {}}, None, tracker)


def test_a_picture_of_a_sample_that_is_not_here_is_said(tmp_path, capsys):
    samples, tracker = [sample("a"), sample("b")], Tracker(tmp_path, {})
    assert [found.name for found in _bench.shown(samples, ["b"], tracker)] == ["b"]
    assert _bench.shown(samples, [None], tracker) == []
    said = capsys.readouterr()
    assert "picture" not in said.out + said.err
    assert _bench.shown(samples, ["motorcycel"], tracker) == []
    said = capsys.readouterr()
    assert "no picture of 'motorcycel'" in said.out + said.err


def test_a_wrong_root_is_an_error_and_none_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv("UA_DATA", raising=False)
    embedded = {"embedded": {"names": ["coffee"], "size": [32, 32]}}
    assert len(_bench.load({**embedded, "shared": {"root": None}}, None, Tracker(tmp_path, {}))) == 1
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _bench.load({**embedded, "shared": {"root": str(tmp_path / "nowhere")}}, None, Tracker(tmp_path, {}))


def test_a_truth_that_is_known_nowhere_is_none():
    void = torch.zeros(32, 48, dtype=torch.bool)
    found = sample("a", depth=torch.zeros(1, 32, 48), depth_valid=void, labels=torch.full((32, 48), -1), num_classes=2)
    assert _bench.names_of(found) == ["features"] == [truth.name for truth in _bench.truths(found, "cpu")]


def test_colours_are_compared_with_bilinear_of_the_same_lr_image(tmp_path):
    tracker = Tracker(tmp_path, {})
    measure(sample("a"), tracker)
    colours = {row["method"]: row for row in tracker.rows if row["signal"] == "colour"}
    assert {row["regime"] for row in colours.values()} == {_bench.IMAGE}
    bilinear, fixed = colours["bilinear"], colours["fixed"]  # from a bicubic and from a bilinear LR image
    assert bilinear["psnr"] == bilinear["psnr_bilinear"] != fixed["psnr_bilinear"]
    gains = {effect.method: effect.value for effect in _effects.against(tracker.rows) if effect.modality.name == "PSNR"}
    assert gains["bilinear"] == 0 and gains["fixed"] == fixed["psnr"] - fixed["psnr_bilinear"]


def test_colours_belong_to_every_regime(tmp_path):
    tracker = Tracker(tmp_path, {})
    measure(sample("a"), tracker, ("network",))
    part = _effects.of_regime(_effects.against(tracker.rows), "network")
    assert {effect.modality.name for effect in part} == {"PSNR", "SSIM", "features", "cosine"}


def test_a_perfect_reconstruction_is_no_effect():
    row = {"image": "a", "scene": "a", "dataset": "x", "guide": "clean", "scale": 1, "regime": "image", "step": None}
    row |= {"signal": "colour", "method": "fit", "psnr": math.inf, "psnr_bilinear": math.inf, "ssim": 1.0}
    assert [effect.modality.name for effect in _effects.against([row | {"ssim_bilinear": 0.5}])] == ["SSIM"]


def test_the_guide_is_made_before_the_clock_starts(tmp_path, monkeypatch):
    ticks = []
    monkeypatch.setattr(_bench, "now", lambda device: ticks.append("tick") or float(len(ticks)))
    guide = _bench.Guide("clean", lambda: ticks.append("made") or torch.rand(1, 3, 32, 48))
    problem = _bench.Problem(sample("a"), (4, 6), ["average"], 0, "cpu")
    _bench.measure(problem, guide, METHODS, Tracker(tmp_path, {}), reconstruction=False, scale=8)
    assert ticks[0] == "made" and ticks.count("made") == 1


def test_views_of_one_scene_are_averaged_before_anything_is_resampled():
    views = [("room", 0.0), ("room", 0.0), ("street", 3.0)]
    scores = [ablation_iters.Score("fit", 5, "SSIM", scene, value) for scene, value in views]
    ((interval,),) = [tuple(column.values()) for column in ablation_iters.average(scores).values()]
    assert interval.mean == 1.5
