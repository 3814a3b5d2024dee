"""Image files: their pixels, and those of a folder with their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def pixels_of(image: Any) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of a PIL image: one channel if it is grey, else three; 16 bits are rounded to 8.

    Raises
    ------
    ValueError
        Pixels that are transparent, numbers beyond 16 bits, or fractions.
    """
    if image.mode == "F":
        raise ValueError("its pixels are fractions, of an unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65_535:
            raise ValueError(f"its pixels lie in {wide.min()} to {wide.max()}, beyond 16 bits")
        return ((wide + 128) // 257).astype(np.uint8)[..., None]
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        clear = int((np.asarray(image)[..., 3] < 255).sum())
        if clear:
            raise ValueError(f"it is transparent in {clear} pixels; put it on a background first")
    else:
        grey = image.mode in ("1", "L")
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def read_image(path: str) -> Tensor:
    """One image file as uint8 (C, H, W), one channel if it is grey, else three; see `pixels_of`.

    Raises
    ------
    ValueError
        If it cannot be read; the file is named.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = pixels_of(image)
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"image {path} cannot be read: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def folder_part(folder: Path, split: str) -> tuple[Path, bool]:
    """Where the images of a part of a folder are, and whether the folder is split by its sub-folders."""
    parts = {p.name: p for p in folder.iterdir() if p.is_dir()}
    own_test = parts.get("test", parts.get("val"))
    if split == "all" or "train" not in parts or own_test is None or len(parts) > 3:
        return folder, False
    return (parts["train"] if split == "train" else own_test), True


class Listed(NamedTuple):
    """Image files of a folder with their classes by sub-folder, and those left out."""

    files: tuple[str, ...]
    targets: Tensor | None
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


def list_folder(folder: Path, unreadable: str = "error") -> Listed:
    """The images below a folder, in the order of their names.

    Raises
    ------
    ValueError
        If there are none, or images lie beside folders of classes.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise ValueError(f"folder {folder} holds no images ({', '.join(SUFFIXES)})")
    skipped: tuple[str, ...] = ()
    if unreadable == "skip":
        skipped = tuple(str(f) for f in files if not _can_be_read(str(f)))
        files = [f for f in files if str(f) not in set(skipped)]
        if not files:
            raise ValueError(f"none of the {len(skipped)} images in folder {folder} can be read")
    kinds = sorted({f.parent.name for f in files if f.parent != folder})
    targets = None
    if kinds:
        loose = [f for f in files if f.parent == folder]
        if loose:
            raise ValueError(f"{loose[0]} lies beside class folders; every image must lie in one of {kinds[:5]}")
        targets = torch.tensor([kinds.index(f.parent.name) for f in files])
    return Listed(tuple(str(f) for f in files), targets, tuple(kinds), skipped)


def _can_be_read(path: str) -> bool:
    try:
        read_image(path)
    except ValueError:
        return False
    return True
