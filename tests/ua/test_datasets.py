"""Data sets: what is promised about their samples, against the files they come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ua import datasets
from ua.datasets import Sample, centre_crop, embedded, shared


def check(sample: Sample) -> None:
    """The promises of Sample's docstring."""
    size = sample.image.shape[1:]
    assert sample.image.shape == (3, *size) and sample.image.dtype == torch.float32
    assert sample.image.min() >= 0 and sample.image.max() <= 1
    assert sample.image.is_contiguous()
    assert sample.source and sample.licence
    if sample.depth is not None:
        assert sample.depth.shape == (1, *size) and sample.depth.dtype == torch.float32
        assert sample.depth_valid is not None and sample.depth_valid.dtype == torch.bool
        assert sample.depth_unit
        assert (sample.depth[0][sample.depth_valid] > 0).all()
        assert (sample.depth[0][~sample.depth_valid] == 0).all()
    if sample.normals is not None:
        assert sample.normals.shape == (3, *size) and sample.normals.dtype == torch.float32
        assert sample.normals_valid is not None and sample.normals_valid.any()
        lengths = sample.normals.norm(dim=0)
        torch.testing.assert_close(lengths, sample.normals_valid.float(), atol=1e-5, rtol=0)
    assert sample.split in datasets.SPLITS and sample.group
    if sample.labels is not None:
        assert sample.labels.shape == size and sample.labels.dtype == torch.int64
        assert sample.labels.min() >= -1 and sample.labels.max() < sample.num_classes


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    return {sample.name: sample for sample in datasets.load("embedded")}


def test_embedded_samples_keep_their_promises(samples: dict[str, Sample]) -> None:
    assert list(samples) == [
        "astronaut",
        "coffee",
        "chelsea",
        "rocket",
        "retina",
        "motorcycle",
        "elevation",
    ]
    for sample in samples.values():
        check(sample)
        height, width = sample.image.shape[1:]
        assert height <= 320 and width <= 448 and height % 16 == width % 16 == 0
    assert [name for name, sample in samples.items() if sample.depth is not None] == [
        "motorcycle",
        "elevation",
    ]


def test_the_crop_is_central(samples: dict[str, Sample]) -> None:
    from skimage import data

    coffee = torch.from_numpy(data.coffee().copy()).movedim(-1, 0)  # 400 x 600
    assert torch.equal((samples["coffee"].image * 255).round().byte(), coffee[:, 40:360, 76:524])
    whole = embedded.load(["coffee"], size=None)[0].image
    assert torch.equal((whole * 255).round().byte(), coffee[:, :, 4:596])


def test_the_motorcycle_has_the_disparity_of_the_file(samples: dict[str, Sample]) -> None:
    from skimage import data

    disparity = torch.from_numpy(data.stereo_motorcycle()[2][90:410, 146:594].copy())
    sample = samples["motorcycle"]
    assert sample.depth is not None and sample.depth_valid is not None
    assert torch.equal(sample.depth_valid, disparity.isfinite())
    assert 0.05 < (~sample.depth_valid).float().mean() < 0.15
    assert torch.equal(sample.depth[0][sample.depth_valid], disparity[disparity.isfinite()])


@pytest.mark.parametrize("layers", [2, 6])
def test_layers_are_ordered_and_equally_populated(layers: int) -> None:
    sample = embedded.load(["motorcycle"], layers=layers)[0]
    assert sample.depth is not None and sample.labels is not None
    assert torch.equal(sample.labels == -1, ~sample.depth_valid)  # type: ignore[operator]
    ranges = [sample.depth[0][sample.labels == layer] for layer in range(layers)]
    counts = torch.tensor([len(values) for values in ranges]).double()
    assert (counts / counts.sum() - 1 / layers).abs().max() < 0.01
    for near, far in zip(ranges[1:], ranges[:-1], strict=True):
        assert far.max() <= near.min()


def test_the_elevation_is_the_file_shifted_and_its_guide_hides_the_height(samples: dict[str, Sample]) -> None:
    sample = embedded.load(["elevation"], size=None)[0]
    assert sample.depth is not None
    low, high = sample.depth.min().item(), sample.depth.max().item()
    assert high - low == 1076 - 236  # metres, of the file
    assert low == pytest.approx((high - low) / 8)
    assert torch.equal(sample.image[0], sample.image[1]) and torch.equal(sample.image[0], sample.image[2])
    pair = torch.stack([sample.image[0].flatten(), sample.depth.flatten()])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.3
    assert "hillshade" in sample.source


def test_names_and_size_are_options() -> None:
    small = datasets.load("embedded", names=["chelsea", "retina"], size=(100, 50))
    assert [sample.name for sample in small] == ["chelsea", "retina"]
    assert [tuple(sample.image.shape) for sample in small] == [(3, 96, 48), (3, 48, 48)]


def test_a_split_is_a_fixed_part() -> None:
    dev, test = (embedded.load(size=(32, 32), split=split) for split in datasets.SPLITS)
    assert [sample.name for sample in dev] == ["astronaut", "coffee", "motorcycle"]
    assert [sample.name for sample in test] == ["chelsea", "rocket", "retina", "elevation"]
    assert {sample.split for sample in dev} == {"dev"} and {sample.split for sample in test} == {"test"}


def test_no_scene_is_in_both_splits() -> None:
    test = set(shared.ENTRIES) - set(shared.DEV)
    assert len(shared.DEV) == 7 and len(test) == 14 and set(shared.DEV) <= set(shared.ENTRIES)
    assert "motorcycle" in embedded.DEV and "middlebury_motorcycle" in shared.DEV  # one scene
    for scene in ("basement", "car-shadow"):
        assert len({name in shared.DEV for name in shared.ENTRIES if scene in name}) == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"split": "tset"}, ValueError, "unknown split 'tset'; did you mean 'test'"),
        ({"names": ["chelsea"], "split": "dev"}, ValueError, "split=dev holds none of chelsea"),
        ({"names": ["chelsae"]}, ValueError, "did you mean 'chelsea'"),
        ({"names": []}, ValueError, "at least one"),
        ({"size": (15, 64)}, ValueError, "at least 16"),
        ({"names": ["motorcycle"], "layers": 1}, ValueError, "layers"),
        ({"sise": (64, 64)}, TypeError, "unknown option of data set 'embedded' 'sise'; did you mean 'size'"),
        ({"size": 64}, TypeError, r"size must be a pair of integers \(H, W\) or None, got 64"),
        ({"size": (64, 64, 64)}, TypeError, "size must be a pair"),
        ({"size": "64"}, TypeError, "size must be a pair"),
        ({"size": (-64, 64)}, ValueError, "at least 16"),
    ],
)
def test_bad_options_are_named(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        datasets.load("embedded", **options)


def test_an_unknown_data_set_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'embedded'"):
        datasets.load("embeded")


@pytest.mark.parametrize("limit", [None, (320, 448), (16, 16), (33, 1000)])
def test_crops_are_central_multiples_of_16(limit: tuple[int, int] | None) -> None:
    for size, crop, most in zip((75, 130), centre_crop((75, 130), limit), limit or (75, 130), strict=True):
        length = crop.stop - crop.start
        assert length % 16 == 0 and length == min(size, most) // 16 * 16
        assert 0 <= (size - crop.stop) - crop.start <= 1


def test_a_sample_checks_its_shapes() -> None:
    image = torch.zeros(3, 16, 16)
    with pytest.raises(ValueError, match="image must be"):
        Sample("x", image[0])
    with pytest.raises(ValueError, match="come together"):
        Sample("x", image, depth=image[:1])
    with pytest.raises(ValueError, match="labels must be"):
        Sample("x", image, labels=torch.zeros(8, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="normals and normals_valid come together"):
        Sample("x", image, normals=image)
    with pytest.raises(ValueError, match="unknown split 'train'"):
        Sample("x", image, split="train")


# --- the shared folder


def test_without_the_folder_the_error_names_the_variable(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UA_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="UA_DATA"):
        datasets.load("shared")
    monkeypatch.setenv("UA_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="UA_DATA.*nowhere"):
        datasets.load("shared")
    with pytest.raises(FileNotFoundError, match="lacks voc/2007_004189.jpg"):
        datasets.load("shared", root=tmp_path, names=["voc_2007_004189"])


def write(root: Path, name: str, array: np.ndarray) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(root / name)


def test_units_and_classes_of_made_up_files(tmp_path: Path) -> None:
    """Every way of reading numbers, on files of our own in the folder's layout."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    metres = rng.integers(0, 9000, (480, 640)).astype(np.uint16)
    write(tmp_path, "nyuv2/basement_00000_rgb.jpg", photo)
    write(tmp_path, "nyuv2/basement_00000_depth.png", metres)
    write(tmp_path, "davis/car-shadow/00000.jpg", photo)
    write(tmp_path, "davis/car-shadow/00000.png", (photo[..., 0] > 99).astype(np.uint8) * 255)
    write(tmp_path, "ade20k/ADE_val_00000001.jpg", photo)
    write(tmp_path, "ade20k/ADE_val_00000001_gt.png", (photo[..., 0] % 151).astype(np.uint8))
    write(tmp_path, "voc/2007_004189.jpg", photo)
    write(tmp_path, "voc/2007_004189_gt.png", np.where(photo[..., 0] > 20, 255, photo[..., 0]).astype(np.uint8))
    names = ["nyuv2_basement_00000", "davis_car-shadow_00000", "ade20k_val_00000001", "voc_2007_004189"]
    nyu, davis, ade, voc = shared.load(tmp_path, names, size=(48, 64))
    for sample in (nyu, davis, ade, voc):
        check(sample)
        assert sample.image.shape == (3, 48, 64)
    # Eigen's crop, then its central 48 x 64: rows 45 + (426 - 48) / 2, columns 41 + (560 - 64) / 2.
    there = metres[234:282, 289:353]
    assert nyu.depth is not None and nyu.depth_valid is not None
    np.testing.assert_array_equal(nyu.depth_valid, there > 0)
    np.testing.assert_allclose(nyu.depth[0], there / 1000, rtol=1e-6)
    red = photo[216:264, 288:352, 0].astype(int)
    np.testing.assert_array_equal(davis.labels, red > 99)
    np.testing.assert_array_equal(ade.labels, red % 151 - 1)
    np.testing.assert_array_equal(voc.labels, np.where(red > 20, -1, red))


def test_a_panoptic_picture_becomes_classes_and_grey_becomes_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    write(tmp_path, "em_membrane/0.png", grey)
    write(tmp_path, "em_membrane/0_label.png", (grey > 99).astype(np.uint8) * 255)
    segment = rng.integers(0, 4, (32, 32))  # 0 is void; segments 1 and 3 are of one category
    ids = np.array([0, 5, 5 + 256 * 7, 5 + 65536 * 9])[segment]
    write(tmp_path, "coco_panoptic/000000142238.jpg", np.stack([grey] * 3, -1))
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    write(tmp_path, "coco_panoptic/000000142238.png", rgb)
    listed = [
        {"id": number, "category_id": category} for number, category in ((5, 50), (5 + 1792, 17), (5 + 589824, 50))
    ]
    listing = {"annotations": [{"segments_info": listed}]}
    (tmp_path / "coco_panoptic/000000142238.json").write_text(json.dumps(listing))
    coco, em = shared.load(tmp_path, ["coco_000000142238", "em_membrane_0"])
    check(coco)
    check(em)
    assert coco.num_classes == 2
    np.testing.assert_array_equal(coco.labels, np.array([-1, 1, 0, 1])[segment])
    np.testing.assert_array_equal(em.labels, grey > 99)
    assert torch.equal(em.image[0], em.image[2])


def test_the_real_folder(shared_data: Path) -> None:
    samples = {sample.name: sample for sample in datasets.load("shared", root=shared_data, size=(160, 224))}
    assert list(samples) == list(shared.ENTRIES) and len(samples) == 21
    for sample in samples.values():
        check(sample)
        assert sample.depth is not None or sample.labels is not None
    # Two copies of one scene, from the wheel and from the folder.
    motorcycle = embedded.load(["motorcycle"], size=(160, 224))[0]
    assert torch.equal(samples["middlebury_motorcycle"].depth, motorcycle.depth)  # type: ignore[arg-type]
    assert torch.equal(samples["middlebury_motorcycle"].image, motorcycle.image)
    assert 12 in samples["voc_2009_003810"].labels  # type: ignore[operator]  # the dog
    assert samples["nyuv2_basement_00000"].depth.max() < 10  # type: ignore[union-attr]  # metres, in a room


def test_the_satellite_image(shared_data: Path) -> None:
    (sample,) = datasets.load("satellite", root=shared_data)
    check(sample)
    assert sample.bands is not None and sample.bands.shape == (4, 256, 256)
    assert torch.equal(sample.bands[:3], sample.image)
    with np.load(shared_data / "vegetation_height" / "sample.npz") as archive:
        height = torch.from_numpy(archive["target_imgs"])
    torch.testing.assert_close(sample.depth, height + 1)
    (part,) = datasets.load("satellite", root=shared_data, size=(64, 96))
    assert torch.equal(part.depth, sample.depth[:, 96:160, 80:176])
    with pytest.raises(ValueError, match="split=dev holds none of vegetation"):
        datasets.load("satellite", root=shared_data, split="dev")


def test_bands_have_the_size_of_the_image() -> None:
    with pytest.raises(ValueError, match=r"bands must be \(G, 16, 16\), got \(4, 16, 8\)"):
        Sample("x", torch.rand(3, 16, 16), bands=torch.rand(4, 16, 8))
