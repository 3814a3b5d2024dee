"""Images in and out: folders and .npz arrays in; uint8, .npz and mosaics out."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import read_npz, replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Map images in [-1, 1], shape (B, C, H, W), to uint8 (B, H, W, C): clip, then round to the nearest level."""
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
    scaled = ((images.detach().to("cpu", torch.float32) + 1.0) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def from_uint8(array: np.ndarray) -> torch.Tensor:
    """Inverse of :func:`to_uint8`: uint8 (B, H, W) or (B, H, W, C) to float32 in [-1, 1], (B, C, H, W)."""
    if array.dtype != np.uint8:
        raise ValueError(f"expected uint8 images, got {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise ValueError(f"expected images of shape (B, H, W, C), got {array.shape}")
    return torch.from_numpy(array.astype(np.float32) / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def load_images(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read images as float32 in [-1, 1], shape (B, C, H, W).

    Parameters
    ----------
    path : str or path
        A folder of images (searched recursively, in name order) or an .npz with ``arr_0`` in uint8 NHWC.

    Raises
    ------
    ValueError
        If nothing is found or a file is damaged; the message names the file.
    """
    where = Path(path)
    if where.is_file() and where.suffix == ".npz":
        arrays = read_npz(where)
        if "arr_0" not in arrays:
            raise ValueError(f"sample file {where} lacks 'arr_0'; it holds {sorted(arrays)}")
        return from_uint8(arrays["arr_0"])
    if not where.is_dir():
        raise ValueError(f"{where} is neither a folder of images nor an .npz file")
    files = sorted(f for f in where.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"folder {where} holds no images ({', '.join(SUFFIXES)})")
    return from_uint8(np.stack([_read(file) for file in files]))


def _read(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            array = np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB"))
    except Exception as error:  # any reader error means the same thing to the user
        raise ValueError(f"image {file} cannot be read: {error}") from error
    return array[..., None] if array.ndim == 2 else array


def save_samples(path: str | os.PathLike[str], images: torch.Tensor, **arrays: Any) -> None:
    """Write ``arr_0`` (uint8, NHWC) and further arrays to an .npz, the layout that reference suites read."""
    with replacing(path, "wb") as stream:
        np.savez_compressed(stream, arr_0=to_uint8(images), **arrays)


def tile(array: np.ndarray, columns: int | None = None, *, pad: int = 1, fill: int = 255) -> np.ndarray:
    """Arrange uint8 images (B, H, W, C) as one (rows*H, columns*W, C) array with a thin border between."""
    count, height, width, channels = array.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), fill, np.uint8)
    for index, image in enumerate(array):
        top = pad + (index // columns) * (height + pad)
        left = pad + (index % columns) * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet


def enlarge(array: np.ndarray, side: int = 64) -> np.ndarray:
    """Smoothly enlarge uint8 images (B, H, W, C) lower than ``side``: at 8 x 8 a digit is readable only then."""
    from PIL import Image

    factor = math.ceil(side / array.shape[1])
    if factor < 2:
        return array
    size = (array.shape[2] * factor, array.shape[1] * factor)
    grey = array.shape[-1] == 1
    sheets = [Image.fromarray(image[..., 0] if grey else image) for image in array]
    big = np.stack([np.asarray(sheet.resize(size, Image.Resampling.BICUBIC)) for sheet in sheets])
    return big[..., None] if grey else big
