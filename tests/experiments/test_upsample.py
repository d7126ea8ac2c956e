"""One's own files from the command line's point of view: every kind of signal, outputs, pictures, errors."""

import numpy as np
import pytest
import torch
from PIL import Image

import ua
from experiments import upsample
from ua.tracking import Tracker


@pytest.fixture
def files(tmp_path):
    """photo.png (32 x 48) and an 8 x 12 signal of each kind beside it."""
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    np.save(tmp_path / "features.npy", random.normal(size=(5, 8, 12)).astype(np.float32))
    scores = random.random((3, 8, 12)) + 0.1
    np.save(tmp_path / "probabilities.npy", (scores / scores.sum(0)).astype(np.float32))
    depth = random.integers(1000, 5000, (8, 12)).astype(np.uint16)
    depth[2:4, 3:5] = 0  # missing
    Image.fromarray(depth).save(tmp_path / "depth.png")
    labels = Image.fromarray(random.choice([0, 7, 255], (8, 12)).astype(np.uint8))
    labels.putpalette(random.integers(0, 256, 768).tolist())
    labels.save(tmp_path / "labels.png")
    return tmp_path


def run(folder, signal, output, **changes):
    values = {"kind": None, "fit": ua.preset("default"), "backend": "auto", "device": "cpu"}
    paths = {
        "image": str(folder / "photo.png"),
        "signal": str(folder / signal),
        "output": str(folder / output),
    }
    return upsample.run(upsample.Config(**values | paths | changes), Tracker(folder / "run", {}))


@pytest.mark.parametrize(
    ("signal", "output", "kind"),
    [
        ("features.npy", "hr.npy", "features"),
        ("features.npy", "hr.safetensors", "features"),
        ("probabilities.npy", "hr.pt", "probabilities"),
        ("depth.png", "hr.png", "depth"),
        ("labels.png", "hr.png", "labels"),
    ],
)
def test_every_kind(files, signal, output, kind):
    summary = run(files, signal, output)
    assert summary["kind"] == kind and summary["grid"] == [8, 12]
    assert (files / output).is_file()
    assert Image.open(files / "run" / "figures" / "result.png").size == (48, 32)
    assert (files / "run" / "figures" / "overview.png").is_file()


def test_what_auto_decided_is_said(files, capsys):
    ramp = np.linspace(1, 2, 96, dtype=np.float32).reshape(8, 12)
    np.save(files / "smooth.npy", ramp)
    assert run(files, "smooth.npy", "a.npy", kind="depth")["signal_is"] == "average"
    assert "taken for average; fit.signal_is=prediction says otherwise" in "".join(capsys.readouterr())
    assert run(files, "probabilities.npy", "b.npy")["signal_is"] == "prediction"
    assert "taken for prediction; fit.signal_is=average says otherwise" in "".join(capsys.readouterr())
    told = ua.preset("default").replace(signal_is="average")
    assert run(files, "probabilities.npy", "c.npy", fit=told)["signal_is"] == "average"
    assert run(files, "smooth.npy", "d.npy", kind="depth", fit=ua.preset("released"))["signal_is"] == "auto"
    assert "taken for" not in "".join(capsys.readouterr())


def test_the_result_is_that_of_the_library(files):
    run(files, "features.npy", "hr.npy")
    image = np.asarray(Image.open(files / "photo.png"))
    expected = ua.upsample(image, np.load(files / "features.npy"))[0]
    torch.testing.assert_close(torch.from_numpy(np.load(files / "hr.npy")), expected)


def test_labels_come_back_as_they_were(files):
    run(files, "labels.png", "hr.png")
    before, after = Image.open(files / "labels.png"), Image.open(files / "hr.png")
    assert set(np.unique(after)) <= {0, 7, 255}
    assert after.getpalette()[: 3 * 8] == before.getpalette()[: 3 * 8]
    picture = np.asarray(Image.open(files / "run" / "figures" / "result.png"))
    np.testing.assert_array_equal(picture, np.asarray(after.convert("RGB")))


def test_depth_below_zero_is_counted(files, capsys):
    steep = np.where(np.arange(12) % 4 < 2, 1, 60_000).astype(np.uint16)
    Image.fromarray(np.tile(steep, (8, 1))).save(files / "steep.png")
    run(files, "steep.png", "hr.png")
    missing = int((np.asarray(Image.open(files / "hr.png")) == 0).sum())
    assert missing > 0 and f"{missing} pixels lie below half a unit" in capsys.readouterr().err
    run(files, "steep.png", "plain.png", fit=ua.preset("default").replace(back_projections=0, diffusions=0))
    assert "pixels lie below" not in capsys.readouterr().err


def test_missing_depth_does_not_bleed(files):
    run(files, "depth.png", "hr.npy", fit=ua.preset("released").replace(steps=0))  # a mean of known cells, no more
    result = np.load(files / "hr.npy")
    assert result.shape == (1, 32, 48)
    assert result[np.isfinite(result)].min() >= 1000


def test_losses_are_logged_by_step(files):
    run(files, "features.npy", "hr.npy", fit=ua.preset("released").replace(steps=3))
    lines = (files / "run" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3"]


@pytest.mark.parametrize(
    ("signal", "output", "error", "words"),
    [
        ("none.npy", "hr.npy", FileNotFoundError, r"signal: no file .*none.npy' .accepted: .npy"),
        ("photo.png", "hr.npy", ValueError, "signal: .*photo.png: must be 16-bit grey"),
        ("features.npy", "hr.jpg", ValueError, r"output: path must end in .npy, .pt, .safetensors or .png, got"),
        ("features.npy", "hr", ValueError, "output: path must end in"),
        ("features.npy", "hr.png", ValueError, "output: .* a PNG holds labels 0 to 255 or depth"),
        ("probabilities.npy", "hr.png", ValueError, "output: .* a PNG holds"),
        ("features.npy", "nowhere/hr.npy", FileNotFoundError, "output: path: no folder"),
    ],
)
def test_bad_files_are_found_before_anything_is_computed(files, monkeypatch, signal, output, error, words):
    def fit(*_, **__):
        pytest.fail("the fit was started")

    monkeypatch.setattr(ua, "fit", fit)
    with pytest.raises(error, match=words):
        run(files, signal, output)


def test_a_signal_larger_than_its_image(files):
    np.save(files / "big.npy", np.zeros((2, 64, 64), np.float32))
    with pytest.raises(ValueError, match="grid"):
        run(files, "big.npy", "hr.npy")
    assert not (files / "hr.npy").exists()
