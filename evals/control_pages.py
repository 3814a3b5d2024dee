"""The table and the picture of `control_examples`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathline.samplers.files import replacing

from .images import enlarge, tile, to_uint8

_SIDE = 28
_COLOURS = 32  # enough for small grey images, in a third of the bytes


def control_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: what each example is worth and what one of its images costs."""
    lines = [
        "| example | log p(a) | judged a | judged b | spread | ESS end / least | ancestors "
        "| calls | rewards | gradients | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        ess = "" if row.get("ess") is None else f"{row['ess']:.2f} / {row['lowest_ess']:.2f}"
        ancestors = "" if row.get("ancestors") is None else f"{row['ancestors']} of {row['images']}"
        shown = (
            f"{row['reward']:.2f}",
            f"{row['judged_a']:.2f}",
            f"{row['judged_b']:.2f}",
            f"{row['spread']:.2f}",
            ess,
            ancestors,
            f"{row['nfe']:.0f}",
            f"{row['reward_calls']:.0f}",
            f"{row['backward_passes']:.0f}",
            f"{row['seconds'] / row['images']:.2f}",
        )
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw_control(found: Mapping[str, Mapping[str, Any]], title: str, out: Path) -> None:
    """One row of images for each example."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6.9, 0.34 * len(found) + 0.35), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(found), 1)
    for panel, (name, row) in zip(np.atleast_1d(panels), found.items(), strict=True):
        sheet = tile(enlarge(to_uint8(torch.from_numpy(row["shown"])), _SIDE), columns=len(row["shown"]))
        panel.imshow(sheet.squeeze(), cmap="gray" if sheet.shape[-1] == 1 else None, vmin=0, vmax=255)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for side in panel.spines.values():
            side.set_visible(False)
    figure.suptitle(title, fontsize=9)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with replacing(out, "wb") as stream:
        pixels.quantize(_COLOURS).save(stream, format="png", optimize=True)
