"""Samples drawn while a network trains, and grids of them as PNG files."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.samplers import START_NOISE, keyed_normal, list_adaptive, plan, sample
from pathline.samplers.files import replacing

from .options import TrainOptions
from .tasks import Task

_SMALL_SIDE = 64
_BORDER = 4


def check_preview(options: TrainOptions, task: Task) -> None:
    """Refuse a sampler that cannot run, or is wrong, for the task; ValueError says why."""
    settings = task.sampling(options.preview_method, options.preview_nfe)
    if settings["method"] in list_adaptive():
        adds_noise = str(settings["method"]).startswith("sde")
    else:
        adds_noise = plan(task.path, prediction=task.prediction, **settings).stochastic
    if adds_noise and not task.takes_noise:
        raise ValueError(
            f"preview_method {options.preview_method!r} adds noise, which asks for a score that this network does not "
            "give; choose a deterministic one, such as heun"
        )


@torch.no_grad()
def draw_preview(
    task: Task,
    model: Any,
    options: TrainOptions,
    shape: tuple[int, int, int],
    labels: int | None,
    device: torch.device,
    restored: tuple[Tensor, dict[str, Tensor]] | None = None,
) -> Tensor:
    """Samples (B, C, H, W) of the sampler that the options name, by default the one that suits the task.

    Start and noise are keyed by the seed of the run, so that previews of two steps show the same draws. With labels
    (the embeddings of the network, the last one for "no label") the classes come in turn. `restored` gives the start
    and the conditions of images to be restored, for a network that sees them.
    """
    indices = torch.arange(options.preview_images, device=device)
    noise = keyed_normal(shape, options.seed, indices, row=START_NOISE, device=device)
    start, conditions = (noise, {}) if restored is None else restored
    start = task.begin(start, noise[: len(start)])
    if labels is not None:
        conditions = {**conditions, "class_labels": indices[: len(start)] % (labels - 1)}
    settings = task.sampling(options.preview_method, options.preview_nfe)
    images = sample(model, start, **settings, model_kwargs=conditions, seed=options.seed)
    assert isinstance(images, Tensor)
    return images


def save_preview(path: str | os.PathLike[str], images: Tensor, columns: int | None = None) -> None:
    """Write images as one PNG grid; arguments as of `draw_sheet`."""
    with replacing(path, "wb") as stream:
        draw_sheet(images, columns).save(stream, format="PNG")


def draw_sheet(images: Tensor, columns: int | None = None) -> Any:
    """Images in [-1, 1], shape (B, C, H, W), as one grid, a PIL image.

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
    return sheet
