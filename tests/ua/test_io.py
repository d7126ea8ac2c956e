"""Files: what is read comes back as it was, and nothing broken, foreign or malicious gets through."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from safetensors.torch import load_file, save_file

from ua.io import Signal, check_output, load_image, load_signal, save_signal

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)


# --- images


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_colour_images_come_as_they_are(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PHOTO).save(tmp_path / f"a.{suffix}")
    image = load_image(tmp_path / f"a.{suffix}")
    assert image.dtype == torch.float32 and image.is_contiguous()
    torch.testing.assert_close(image, torch.from_numpy(PHOTO).movedim(-1, 0) / 255)


def test_a_jpeg_is_nearly_what_was_written(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(40, 200, 32)[:, None, None], (32, 48, 3)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    image = load_image(str(tmp_path / "a.jpg"))
    assert (image - torch.from_numpy(smooth.copy()).movedim(-1, 0) / 255).abs().max() < 0.02


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_keeps_all_bits(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / f"a.{suffix}")
    expected = torch.from_numpy((DEEP / 65535).astype(np.float32))[None]
    torch.testing.assert_close(load_image(tmp_path / f"a.{suffix}"), expected, atol=1e-7, rtol=0)


def test_other_modes_become_grey_or_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(PHOTO)
    for mode, channels in {"L": 1, "LA": 1, "1": 1, "P": 3, "RGBA": 3}.items():
        picture.convert(mode).save(tmp_path / "a.png")
        assert load_image(tmp_path / "a.png").shape == (channels, 6, 8), mode
    picture.convert("CMYK").save(tmp_path / "a.tiff")
    assert load_image(tmp_path / "a.tiff").shape == (3, 6, 8)


def test_images_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.png"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="folder"):
        load_image(tmp_path)
    Image.fromarray(PHOTO).save(tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="PNG, JPEG or TIFF"):
        load_image(tmp_path / "a.bmp")
    Image.fromarray(RNG.random((6, 8)).astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="8 or 16 bits"):
        load_image(tmp_path / "a.tiff")
    Image.fromarray(PHOTO).save(tmp_path / "b.tiff", save_all=True, append_images=[Image.fromarray(PHOTO)])
    with pytest.raises(ValueError, match="2 pages"):
        load_image(tmp_path / "b.tiff")
    Image.fromarray(PHOTO).resize((200, 200)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:600])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("a.jpg", "text.png", "empty.png"):
        with pytest.raises(ValueError, match=name):
            load_image(tmp_path / name)


# --- signals: arrays


def write(path: Path, array: np.ndarray) -> None:
    """One array in the format of the suffix."""
    tensor = torch.from_numpy(array)
    match path.suffix:
        case ".npy":
            np.save(path, array)
        case ".npz":
            np.savez_compressed(path, anything=array)
        case ".pt":
            torch.save(tensor, path)
        case ".pth":
            torch.save({"epoch": 3, "features": tensor}, path)
        case ".safetensors":
            save_file({"x": tensor}, path)


FORMATS = [".npy", ".npz", ".pt", ".pth", ".safetensors"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_from_every_format(tmp_path: Path, suffix: str, dtype: type) -> None:
    array: np.ndarray = RNG.normal(size=(5, 3, 4)).astype(dtype)
    path = tmp_path / f"f{suffix}"
    for stored in (array, array[None]):
        write(path, stored)
        signal = load_signal(path)
        assert (signal.kind, signal.valid, signal.classes) == ("features", None, None)
        assert signal.dtype == np.dtype(dtype).name
        assert signal.values.dtype == torch.float32
        np.testing.assert_array_equal(signal.values, array.astype(np.float32))


@pytest.mark.parametrize("suffix", FORMATS)
def test_depth_knows_its_holes(tmp_path: Path, suffix: str) -> None:
    array = RNG.random((4, 5)).astype(np.float32)
    write(tmp_path / f"whole{suffix}", array)
    assert load_signal(tmp_path / f"whole{suffix}").valid is None
    array[1, 2], array[0, 0] = np.nan, np.inf
    write(tmp_path / f"d{suffix}", array)
    signal = load_signal(tmp_path / f"d{suffix}")
    assert signal.kind == "depth" and signal.values.shape == (1, 4, 5)
    assert signal.valid is not None
    np.testing.assert_array_equal(signal.valid, np.isfinite(array))
    np.testing.assert_array_equal(signal.values[0], np.where(np.isfinite(array), array, 0))


def test_probabilities_are_recognised(tmp_path: Path) -> None:
    maps = torch.randn(7, 3, 4).softmax(0)
    write(tmp_path / "p.npy", maps.numpy())
    assert load_signal(tmp_path / "p.npy").kind == "probabilities"
    assert load_signal(tmp_path / "p.npy", kind="features").kind == "features"
    write(tmp_path / "p.npy", (maps * 1.5).numpy())
    assert load_signal(tmp_path / "p.npy").kind == "features"
    with pytest.raises(ValueError, match="sum to 1"):
        load_signal(tmp_path / "p.npy", kind="probabilities")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool])
def test_integer_maps_are_labels(tmp_path: Path, dtype: type) -> None:
    ids: np.ndarray = np.array([[0, 1, 1], [7, 1, 0]]).astype(dtype)
    write(tmp_path / "l.npy", ids)
    signal = load_signal(tmp_path / "l.npy")
    assert signal.kind == "labels" and signal.classes == tuple(np.unique(ids.astype(int)))
    assert signal.values.sum(0).eq(1).all()
    np.testing.assert_array_equal(signal.decode(signal.values), ids.astype(int))


def test_kind_decides_where_the_numbers_leave_it_open(tmp_path: Path) -> None:
    millimetres = np.array([[0, 1500], [900, 65535]], dtype=np.uint16)
    write(tmp_path / "a.npy", millimetres)
    depth = load_signal(tmp_path / "a.npy")
    assert (depth.kind, depth.dtype) == ("depth", "uint16")
    assert depth.values.tolist() == [[[0, 1500], [900, 65535]]]
    assert depth.valid is not None and depth.valid.tolist() == [[False, True], [True, True]]
    assert load_signal(tmp_path / "a.npy", kind="labels").classes == (0, 900, 1500, 65535)
    assert load_signal(tmp_path / "a.npy", kind="features").valid is None
    write(tmp_path / "b.npy", RNG.random((2, 3, 3)))
    for kind in ("depth", "labels"):
        with pytest.raises(ValueError, match=kind):
            load_signal(tmp_path / "b.npy", kind=kind)
    with pytest.raises(ValueError, match="kind must be one of"):
        load_signal(tmp_path / "b.npy", kind="normals")


def test_bfloat16_tensors_are_read(tmp_path: Path) -> None:
    tensor = torch.randn(4, 2, 3).bfloat16()
    torch.save(tensor, tmp_path / "a.pt")
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert torch.equal(load_signal(tmp_path / name).values, tensor.float())


def test_foreign_byte_order_is_read(tmp_path: Path) -> None:
    array = RNG.normal(size=(2, 3, 4))
    np.save(tmp_path / "a.npy", array.astype(">f8"))
    np.testing.assert_allclose(load_signal(tmp_path / "a.npy").values, array, rtol=1e-6)


# --- signals: PNG


def test_sixteen_bit_png_is_depth_and_goes_back(tmp_path: Path) -> None:
    holes = np.where(DEEP < 20000, 0, DEEP).astype(np.uint16)
    Image.fromarray(holes).save(tmp_path / "d.png")
    signal = load_signal(tmp_path / "d.png")
    assert signal.kind == "depth" and signal.valid is not None
    np.testing.assert_array_equal(signal.values[0], holes)
    np.testing.assert_array_equal(signal.valid, holes > 0)
    save_signal(tmp_path / "out.png", signal.values + 0.4, like=signal)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), holes)
    extreme = torch.tensor([[[-5.0, 70000.0, float("nan"), 12.5001]]])
    save_signal(tmp_path / "out.png", extreme, like=signal)
    assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[0, 65535, 0, 13]]


@pytest.mark.parametrize("mode", ["P", "L"])
def test_label_png_goes_back_with_its_numbers_and_colours(tmp_path: Path, mode: str) -> None:
    ids = np.array([[0, 12, 12], [255, 0, 12]], dtype=np.uint8)
    picture = Image.fromarray(ids)
    palette = [int(v) for v in RNG.integers(0, 256, 768)]
    if mode == "P":
        picture.putpalette(palette)
    picture.save(tmp_path / "l.png")
    signal = load_signal(tmp_path / "l.png")
    assert signal.kind == "labels" and signal.classes == (0, 12, 255)
    upsampled = signal.values.repeat_interleave(2, 1).repeat_interleave(2, 2) * 0.6 + 0.1
    save_signal(tmp_path / "out.png", upsampled, like=signal)
    with Image.open(tmp_path / "out.png") as out:
        assert out.mode == mode
        np.testing.assert_array_equal(np.asarray(out), ids.repeat(2, 0).repeat(2, 1))
        if mode == "P":
            assert out.getpalette() == palette
    save_signal(tmp_path / "out.npy", upsampled, like=signal)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), ids.repeat(2, 0).repeat(2, 1))


def test_eight_bit_png_can_be_depth(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4], [8, 200]], dtype=np.uint8)).save(tmp_path / "disparity.png")
    signal = load_signal(tmp_path / "disparity.png", kind="depth")
    assert signal.values.tolist() == [[[0, 4], [8, 200]]]
    assert signal.valid is not None and signal.valid.tolist() == [[False, True], [True, True]]


def test_a_colour_png_is_no_signal(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="16-bit grey.*mode RGB"):
        load_signal(tmp_path / "a.png")


# --- what must not get through


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [*FORMATS, ".png"])
@pytest.mark.parametrize("disguise", ["pickle", "object array", "torch", "zip of pickles"])
def test_a_pickle_in_disguise_never_runs(tmp_path: Path, suffix: str, disguise: str) -> None:
    target, path = tmp_path / "hacked", tmp_path / f"a{suffix}"
    bomb = Bomb(target)
    match disguise:
        case "pickle":
            path.write_bytes(pickle.dumps(bomb, protocol=2))
        case "object array":
            with path.open("wb") as file:
                np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
        case "torch":
            with path.open("wb") as file:
                torch.save({"features": torch.zeros(1, 2, 2), "bomb": bomb}, file)
        case "zip of pickles":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.npy", pickle.dumps(bomb))
    with pytest.raises(ValueError, match=path.name):
        load_signal(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(bomb))  # the bomb does work: it would have run
    assert target.exists()


@pytest.mark.parametrize("suffix", [*FORMATS, ".png"])
@settings(deadline=None, max_examples=15)
@given(content=st.binary(min_size=0, max_size=300))
def test_random_bytes_are_a_value_error(tmp_path_factory, suffix: str, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a{suffix}"):
        load_signal(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_short_is_a_value_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, RNG.normal(size=(8, 9, 9)))
    whole = path.read_bytes()
    for length in (1, 7, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=path.name):
            load_signal(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.full((2, 3, 3), np.nan), "finite"),
        (np.full((2, 3, 3), 1e300), "finite"),
        (np.zeros((2, 0, 3)), "not empty"),
        (np.zeros(5), r"\(C, h, w\)"),
        (np.zeros((2, 2, 3, 3)), r"\(C, h, w\)"),
        (np.zeros((2, 3, 3), dtype=np.complex64), "real numbers"),
        (np.full((3, 3), np.nan), "at least one known"),
        (np.full((3, 3), 1e300), "float32"),
        (np.arange(5000).reshape(50, 100), "different numbers"),
    ],
)
def test_numbers_that_are_refused(tmp_path: Path, suffix: str, array: np.ndarray, match: str) -> None:
    write(tmp_path / f"a{suffix}", array)
    with pytest.raises(ValueError, match=match):
        load_signal(tmp_path / f"a{suffix}")


def test_other_files_that_are_refused(tmp_path: Path) -> None:
    tensor = torch.zeros(1, 2, 2)
    np.savez(tmp_path / "two.npz", a=tensor, b=tensor)
    torch.save({"a": tensor, "b": tensor}, tmp_path / "two.pt")
    torch.save({"a": 1}, tmp_path / "none.pth")
    torch.save([tensor], tmp_path / "list.pt")
    save_file({"a": tensor, "b": tensor.clone()}, tmp_path / "two.safetensors")
    torch.save(tensor.to_sparse(), tmp_path / "sparse.pt")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    (tmp_path / "a.txt").write_text("1 2 3")
    for name, match in {
        "two.npz": "exactly one array, got 2",
        "two.pt": "exactly one tensor, got 2",
        "none.pth": "exactly one tensor, got 0",
        "list.pt": "a tensor or a dict",
        "two.safetensors": "exactly one tensor, got 2",
        "sparse.pt": "dense",
        "text.npy": "real numbers",
        "a.txt": "must be .npy, .npz, .pt, .pth, .safetensors or .png",
    }.items():
        with pytest.raises(ValueError, match=match):
            load_signal(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing.npy"):
        load_signal(tmp_path / "nothing.npy")


# --- writing


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
@settings(deadline=None, max_examples=10)
@given(
    array=npst.arrays(
        np.float32, npst.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.floats(-9, 9, width=32)
    )
)
def test_what_is_written_is_read_back(tmp_path_factory, suffix: str, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("out") / f"a{suffix}"
    save_signal(path, torch.from_numpy(array))
    np.testing.assert_array_equal(load_signal(path, kind="features").values, array)
    assert os.listdir(path.parent) == [path.name]


def test_a_view_is_written_alone_and_in_its_dtype(tmp_path: Path) -> None:
    view = torch.randn(4, 100, 100).half()[:1, ::50, ::50]
    for suffix in (".npy", ".pt", ".safetensors"):
        save_signal(tmp_path / f"a{suffix}", view)
        assert (tmp_path / f"a{suffix}").stat().st_size < 5000
    assert np.load(tmp_path / "a.npy").dtype == np.float16
    assert load_file(tmp_path / "a.safetensors")["signal"].dtype == torch.float16
    save_signal(tmp_path / "a.npy", view.bfloat16().requires_grad_())
    assert np.load(tmp_path / "a.npy").dtype == np.float32


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_signal(tmp_path / "a.npy", torch.ones(1, 2, 2))

    def interrupted(path: Path, *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_signal(tmp_path / "a.npy", torch.zeros(1, 2, 2))
    assert np.load(tmp_path / "a.npy").tolist() == [[[1, 1], [1, 1]]]
    assert os.listdir(tmp_path) == ["a.npy"]


def test_writes_that_are_refused(tmp_path: Path) -> None:
    values: Any = torch.ones(1, 2, 2)
    metres = Signal(values, None, "depth")
    many = Signal(torch.ones(2, 2, 2), None, "labels", classes=(0, 300), dtype="int64")
    grey = Signal(values, None, "depth", dtype="uint16")
    (tmp_path / "folder.npy").mkdir()
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        ("a.jpg", values, None, ValueError, ".npy, .pt, .safetensors or .png"),
        ("a.npy", values[0], None, ValueError, r"\(C, H, W\)"),
        ("a.npy", values[:0], None, ValueError, "not empty"),
        ("a.npy", values.numpy(), None, TypeError, "Tensor"),
        ("a.png", values, None, ValueError, "PNG holds"),
        ("a.png", values, metres, ValueError, "PNG holds"),
        ("a.png", torch.eye(2)[..., None], many, ValueError, "PNG holds"),
        ("a.npy", values, many, ValueError, r"values must be \(2, H, W\)"),
        ("a.png", values.expand(2, -1, -1), grey, ValueError, r"values must be \(1, H, W\)"),
        ("a.npy", values, 3, TypeError, "like must be"),
        (None, values, None, TypeError, "path must be text or a path, got None"),
        (".", values, None, ValueError, "path must end in"),
        ("folder.npy", values, None, ValueError, "path must be a file, got the folder"),
        ("no/where/a.npy", values, None, FileNotFoundError, "no folder"),
    ]
    for name, data, like, error, match in cases:
        with pytest.raises(error, match=match):
            save_signal(name and tmp_path / name, data, like=like)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]


def test_an_output_is_checked_without_being_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.npy").write_text("old")
    check_output(tmp_path / "old.npy")
    check_output(tmp_path / "new.pt")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.npy": "old"}

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)  # root may write anywhere, so a folder's mode says nothing here
    with pytest.raises(ValueError, match=r"new.npy' cannot be written: the folder .* takes no new file .Permission"):
        check_output(tmp_path / "new.npy")
