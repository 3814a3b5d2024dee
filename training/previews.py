"""Grids of samples as PNG files."""

from __future__ import annotations

import math
import os

import numpy as np
from torch import Tensor

from pathline.samplers.files import replacing

_SMALL_SIDE = 64
_BORDER = 4


def save_preview(path: str | os.PathLike[str], images: Tensor, columns: int | None = None) -> None:
    """Write images in [-1, 1], shape (B, C, H, W), as one PNG grid.

    Images smaller than 64 pixels are enlarged one by one with smooth interpolation: at 8x8 the eye reads a
    digit only then.
    """
    from PIL import Image

    pixels = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    count, height, width, channels = arrays.shape
    factor = max(1, math.ceil(_SMALL_SIDE / height))
    size = (width * factor, height * factor)
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cell_x, cell_y = size[0] + _BORDER, size[1] + _BORDER
    sheet = Image.new("RGB", (columns * cell_x + _BORDER, rows * cell_y + _BORDER), (90, 90, 90))
    for index, array in enumerate(arrays):
        rgb = np.repeat(array, 3, axis=2) if channels == 1 else array
        tile = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
        sheet.paste(tile, (_BORDER + index % columns * cell_x, _BORDER + index // columns * cell_y))
    with replacing(path, "wb") as stream:
        sheet.save(stream, format="PNG")
