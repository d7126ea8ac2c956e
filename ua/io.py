"""Images and signals from files, results back to files. No file can run code: nothing unpickles freely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ua.degrade import one_hot
from ua.files import as_path, atomic_path, check_writable

IMAGE_FORMATS = "PNG, JPEG or TIFF"
SIGNAL_FORMATS = ".npy, .npz, .pt, .pth, .safetensors or .png"
OUTPUT_FORMATS = ".npy, .pt, .safetensors or .png"
KINDS = ("features", "probabilities", "depth", "labels")
MAX_CLASSES = 1024  # more different numbers than this are no label map


@dataclass(frozen=True, eq=False)
class Signal:
    """A low-resolution signal read from a file.

    Attributes:
        values: (C, h, w) float32, finite; 0 where invalid.
        valid: bool (h, w), or None where everything is known.
        kind: "features", "probabilities" (channels sum to 1), "depth" (C = 1) or "labels" (one-hot).
        classes: of labels, the file's own number for each channel; else None.
        palette: of a palette PNG, its colours as r, g, b, r, g, b, ... in 0 to 255; else None.
        dtype: of the numbers in the file, as NumPy names it.
    """

    values: Tensor
    valid: Tensor | None
    kind: str
    classes: tuple[int, ...] | None = None
    palette: tuple[int, ...] | None = None
    dtype: str = "float32"

    def decode(self, values: Tensor) -> Tensor:
        """Upsampled `values` (C, H, W) in the file's terms: labels as its numbers (H, W), others as they are.

        Raises:
            ValueError: another number of channels than the signal has.
        """
        if values.ndim != 3 or len(values) != len(self.values):
            raise ValueError(f"values must be ({len(self.values)}, H, W) as the signal, got {tuple(values.shape)}")
        if self.classes is None:
            return values
        return torch.tensor(self.classes, device=values.device)[values.argmax(0)]


def load_image(path: str | Path) -> Tensor:
    """The guide in a PNG, JPEG or TIFF file.

    8 and 16 bits a channel (Pillow keeps the upper 8 bits of 16-bit *colour*). Palettes and CMYK become RGB;
    transparency is dropped; rotation tags are not applied, so that pixels stay where an array made of the file has
    them.

    Args:
        path: the file.

    Returns:
        (3, H, W), or (1, H, W) if it is grey, float32 in [0, 1].

    Raises:
        TypeError: `path` is no path. FileNotFoundError: no such file.
        ValueError: another format, several pages, or a broken file.
    """
    import numpy as np

    image = _open_picture(_existing(path, IMAGE_FORMATS), ("PNG", "JPEG", "TIFF"), IMAGE_FORMATS)
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    if _is_16_bit(image):
        pixels = np.asarray(image).astype(np.float32) / 65535
    elif image.mode in ("I", "F"):
        raise ValueError(f"{path}: must have 8 or 16 bits a channel, got 32 (mode {image.mode})")
    else:
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")).astype(np.float32) / 255
    return torch.from_numpy(np.atleast_3d(pixels)).movedim(-1, 0).contiguous()


def load_signal(path: str | Path, kind: str | None = None) -> Signal:
    """The low-resolution signal in a file.

    .npy, .npz (one array), .pt and .pth (a tensor, or a dict with exactly one), .safetensors (exactly one tensor):
    (C, h, w), (1, C, h, w) or (h, w). .png: 16-bit grey is depth, 8-bit palette or grey is labels.

    Args:
        path: the file.
        kind: "features", "probabilities", "depth" or "labels"; None tells by these rules. Integers in one channel are
            labels, except 16-bit unsigned, which are depth. Real numbers in one channel are depth, in several channels
            probabilities if they are in [0, 1] and sum to 1 everywhere, else features. In depth NaN and infinity are
            missing, and so is 0 in integer files.

    Raises:
        TypeError: `path` is no path. FileNotFoundError: no such file.
        ValueError: an unknown format or kind, a broken or empty file, object arrays, pickles, NaN or infinity outside
            depth, or numbers that are not of the given kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} or None, got {kind!r}")
    file = _existing(path, SIGNAL_FORMATS)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: must be {SIGNAL_FORMATS}, got {file.suffix or 'no suffix'!r}")
    values, dtype, palette = reader(file)
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.numel() == 0:
        raise ValueError(f"{path}: must hold (C, h, w), (1, C, h, w) or (h, w), not empty, got {tuple(values.shape)}")
    if values.is_complex():
        raise ValueError(f"{path}: must hold real numbers, got {dtype}")
    kind = kind or _guess_kind(values, dtype)
    if kind == "labels":
        return _labels(file, values, dtype, palette)
    if kind == "depth":
        return _depth(file, values, dtype)
    values = values.float()
    if not values.isfinite().all():
        bad = (~values.isfinite()).sum().item()
        raise ValueError(f"{path}: {kind} must be finite in float32, got {bad} values that are NaN or infinite")
    if kind == "probabilities" and not _is_distribution(values):
        raise ValueError(f"{path}: probabilities must lie in [0, 1] and sum to 1 over the channels")
    return Signal(values, None, kind, dtype=dtype)


def save_signal(path: str | Path, values: Tensor, like: Signal | None = None) -> None:
    """Write an upsampled signal, atomically.

    Args:
        path: a .npy, .pt, .safetensors (key "signal") or .png file.
        values: (C, H, W).
        like: the low-resolution signal it was made from. Its labels are written as its class numbers (H, W), and its
            PNG as it came: labels in 8 bits with the same palette, depth in 16 bits, rounded, unknown or negative
            becoming 0 (missing).

    Raises:
        TypeError: an argument of another type.
        ValueError, FileNotFoundError: as `check_output`; and values of another shape than (C, H, W), or empty.
    """
    check_output(path, like)
    target = Path(path)
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a torch.Tensor, got {type(values).__name__}")
    if values.ndim != 3 or values.numel() == 0:
        raise ValueError(f"values must be (C, H, W) and not empty, got {tuple(values.shape)}")
    values = values.detach().cpu()
    data = like.decode(values) if like is not None else values
    _WRITERS[target.suffix.lower()](target, data.contiguous(), like)


def check_output(path: str | Path, like: Signal | None = None) -> None:
    """Tells before any computing that `save_signal` could not write a result made from `like` to `path`.

    Args:
        path, like: as `save_signal` will get them.

    Raises:
        TypeError: an argument of another type.
        FileNotFoundError: the folder of `path` does not exist.
        ValueError: another suffix; a PNG of anything but labels 0 to 255 or depth that came as integers; `path` is a
            folder, or lies in one that takes no new files.
    """
    suffix = as_path(path).suffix.lower()
    if like is not None and not isinstance(like, Signal):
        raise TypeError(f"like must be a ua.io.Signal or None, got {type(like).__name__}")
    if suffix not in _WRITERS:
        raise ValueError(f"path must end in {OUTPUT_FORMATS}, got {str(path)!r}")
    if suffix == ".png" and not _fits_png(like):
        raise ValueError(
            f"path {str(path)!r}: a PNG holds labels 0 to 255 or depth that came as integers; "
            "write .npy, .pt or .safetensors"
        )
    check_writable(path)


def _fits_png(signal: Signal | None) -> bool:
    if signal is None:
        return False
    if signal.kind == "depth":
        return "int" in signal.dtype
    return signal.classes is not None and min(signal.classes) >= 0 and max(signal.classes) <= 255


# Readers: path -> values as they are, their NumPy dtype, palette.
_Read = tuple[Tensor, str, tuple[int, ...] | None]


def _read_numpy(path: Path) -> _Read:
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                arrays = {name: archive[name] for name in archive.files}
        else:
            arrays = {"array": loaded}
    except Exception as error:  # a broken file raises whatever its bytes lead to
        raise _broken(path, "a NumPy file without objects or pickles", error) from error
    array = _only(path, arrays, "array")
    if not isinstance(array, np.ndarray):  # a zip with a member that is no array
        raise ValueError(f"{path}: must hold an array, got other bytes")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: must hold real numbers, got an array of {array.dtype}")
    return _from_numpy(array), array.dtype.name, None


def _read_torch(path: Path) -> _Read:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as above; weights_only refuses every object that is not plain data
        raise _broken(path, "a PyTorch file of plain tensors", error) from error
    if isinstance(loaded, dict):
        loaded = _only(path, {key: item for key, item in loaded.items() if isinstance(item, Tensor)}, "tensor")
    if not isinstance(loaded, Tensor):
        raise ValueError(f"{path}: must hold a tensor or a dict with exactly one, got {type(loaded).__name__}")
    return _from_tensor(path, loaded)


def _read_safetensors(path: Path) -> _Read:
    from safetensors.torch import load_file

    try:
        loaded = load_file(path)
    except Exception as error:  # as above
        raise _broken(path, "a safetensors file", error) from error
    return _from_tensor(path, _only(path, loaded, "tensor"))


def _read_png(path: Path) -> _Read:
    import numpy as np

    image = _open_picture(path, ("PNG",), "PNG")
    if _is_16_bit(image):
        return _from_numpy(np.asarray(image).astype(np.uint16)), "uint16", None
    if image.mode not in ("P", "L", "1"):
        raise ValueError(
            f"{path}: must be 16-bit grey (depth) or 8-bit palette or grey (labels), got mode {image.mode}; "
            "colours can come as a (3, h, w) array"
        )
    palette = image.getpalette("RGB") if image.mode == "P" else None
    return (
        _from_numpy(np.asarray(image).astype(np.uint8)),
        "uint8",
        None if palette is None else tuple(palette),
    )


_READERS: dict[str, Callable[[Path], _Read]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
    ".png": _read_png,
}


def _from_numpy(array: Any) -> Tensor:
    import numpy as np

    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # PyTorch hardly computes with wide unsigned integers
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _from_tensor(path: Path, tensor: Tensor) -> _Read:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"{path}: must hold a plain dense tensor, got {tensor.layout}, {tensor.dtype}")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in ("uint16", "uint32", "uint64"):
        tensor = tensor.long()
    return tensor.detach().contiguous(), dtype, None


def _guess_kind(values: Tensor, dtype: str) -> str:
    if values.shape[0] == 1:
        return "labels" if not values.is_floating_point() and dtype != "uint16" else "depth"
    return "probabilities" if values.is_floating_point() and _is_distribution(values.float()) else "features"


def _is_distribution(values: Tensor) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1 and ((values.sum(0) - 1).abs() < 1e-2).all())


def _labels(path: Path, values: Tensor, dtype: str, palette: tuple[int, ...] | None) -> Signal:
    if values.shape[0] != 1 or values.is_floating_point():
        raise ValueError(f"{path}: labels must be integers (h, w), got {dtype} {tuple(values.shape)}")
    classes, index = torch.unique(values[0].long(), return_inverse=True)
    if len(classes) > MAX_CLASSES:
        raise ValueError(f"{path}: labels must be at most {MAX_CLASSES} different numbers, got {len(classes)}")
    maps = one_hot(index, len(classes))[0]
    return Signal(maps, None, "labels", tuple(classes.tolist()), palette, dtype)


def _depth(path: Path, values: Tensor, dtype: str) -> Signal:
    if values.shape[0] != 1:
        raise ValueError(f"{path}: depth must be (h, w) or (1, h, w), got {tuple(values.shape)}")
    valid = values[0].isfinite() if values.is_floating_point() else values[0] != 0
    if not valid.any():
        raise ValueError(f"{path}: depth must have at least one known value, got none")
    kept = torch.where(valid, values.float(), 0)
    if not kept.isfinite().all():
        raise ValueError(f"{path}: depth must be finite in float32, got values beyond its range")
    return Signal(kept, None if valid.all() else valid, "depth", dtype=dtype)


# Writers: path, values in the file's own terms, the signal they were made from.
def _write_numpy(path: Path, data: Tensor, like: Signal | None) -> None:
    import numpy as np

    array = (data.float() if data.dtype == torch.bfloat16 else data).numpy()  # NumPy has no bfloat16
    with atomic_path(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def _write_torch(path: Path, data: Tensor, like: Signal | None) -> None:
    with atomic_path(path) as temporary:
        torch.save(data.clone(), temporary)  # a clone: a view would drag its whole storage along


def _write_safetensors(path: Path, data: Tensor, like: Signal | None) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({"signal": data.clone()}, temporary)


def _write_png(path: Path, data: Tensor, like: Signal | None) -> None:
    import numpy as np
    from PIL import Image

    if like is not None and like.kind == "labels":
        picture = Image.fromarray(data.numpy().astype(np.uint8))
        if like.palette is not None:
            picture.putpalette(like.palette)
    else:
        whole = data[0].double().nan_to_num(0, 0, 0).round().clamp(0, 65535)
        picture = Image.fromarray(whole.numpy().astype(np.uint16))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


_WRITERS: dict[str, Callable[[Path, Tensor, Signal | None], None]] = {
    ".npy": _write_numpy,
    ".pt": _write_torch,
    ".safetensors": _write_safetensors,
    ".png": _write_png,
}


def _open_picture(path: Path, formats: tuple[str, ...], accepted: str) -> Any:
    """A decoded PIL image."""
    from PIL import Image

    try:
        with Image.open(path, formats=formats) as image:
            image.load()
            # A phone's JPEG may carry previews as further frames; pages of a TIFF are pictures of equal rank.
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more on broken bytes
        raise _broken(path, f"a {accepted} picture", error) from error
    if pages > 1:
        raise ValueError(f"{path}: must hold one picture, got a TIFF with {pages} pages")
    return image


def _is_16_bit(image: Any) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _existing(path: str | Path, accepted: str) -> Path:
    file = as_path(path)
    if not file.exists():
        raise FileNotFoundError(f"no file {str(path)!r} (accepted: {accepted})")
    if not file.is_file():
        raise ValueError(f"{path}: must be a file, got a folder or a device")
    if file.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return file


def _only(path: Path, found: dict[Any, Any], what: str) -> Any:
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise ValueError(f"{path}: must hold exactly one {what}, got {len(found)} ({names})")
    return next(iter(found.values()))


def _broken(path: Path, accepted: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: must be {accepted}, and cannot be read as one ({type(error).__name__}: {error})")
