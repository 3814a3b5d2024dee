"""Plots of sections as PNG, drawn without a display."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from pathline.samplers.files import replacing

from .summary import Line, Metric, Section, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

# Distinguishable with the common colour deficiencies and in print (Okabe & Ito), then darker variants.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#3B3B3B", "#8C510A", "#5E3C99", "#B2182B", "#1B7837", "#7F7F7F",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("-", "--", ":", "-.")


def style_of(section: Section, line: Line) -> dict[str, Any]:
    """Colour and marker by method, dash by grid; a scheduler run is an open marker without a line."""
    methods = list(dict.fromkeys(other.method for other in section.lines))
    grids = list(dict.fromkeys(other.grid for other in section.lines))
    index = methods.index(line.method)
    style = {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[grids.index(line.grid) % len(DASHES)],
        "markersize": 5.0,
        "linewidth": 1.6,
    }
    if line.runner != "sample":
        style |= {"markerfacecolor": "none", "markersize": 9.0, "markeredgewidth": 1.2}
        style |= {"linestyle": "none"} if section.has_twin(line) else {}
    return style


def draw_metric(section: Section, metric: Metric) -> Figure:
    """One metric against counted evaluations, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(8.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    lowest = _draw_lines(axes, section, metric)
    _draw_levels(axes, section, metric, lowest)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value).rstrip("0").rstrip(".")))
    axes.yaxis.set_minor_formatter(_minor_labels(axes))
    axes.xaxis.set_major_locator(FixedLocator(_thin(section.budgets)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("network evaluations per sample (counted)")
    axes.set_ylabel(metric.title)
    axes.set_title(section.source, loc="left", fontsize=10)
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.grid(which="minor", color="#eeeeee", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if lowest is not None and lowest <= 0:
        axes.set_title("values at or below 0 are not drawn", loc="right", fontsize=8, color="#666666")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _draw_lines(axes: Axes, section: Section, metric: Metric) -> float | None:
    lowest: float | None = None
    for line in section.lines:
        row = section.values[metric.key].get(line, {})
        budgets = sorted(row)
        if not budgets:
            continue
        spent = np.array([row[b].counted for b in budgets])
        means = np.array([row[b].mean for b in budgets])
        spread = np.array([row[b].deviation for b in budgets])
        lowest = min(means.min(), lowest) if lowest is not None else means.min()
        keep = means > 0
        style = style_of(section, line)
        label = "_" if section.has_twin(line) else section.label(line)
        axes.plot(spent[keep], means[keep], label=label, **style)
        if spread.any():
            low = np.maximum(means - spread, means * 0.05)
            axes.fill_between(spent[keep], low[keep], (means + spread)[keep], color=style["color"], alpha=0.12, lw=0)
    if any(section.has_twin(line) for line in section.lines):
        style = {"marker": "o", "markerfacecolor": "none", "markersize": 9.0, "linestyle": "none"}
        axes.plot([], [], color="#555555", label="open: the same through a\ndiffusers loop (scheduler)", **style)
    return lowest


def _draw_levels(axes: Axes, section: Section, metric: Metric, lowest: float | None) -> None:
    levels = []
    if metric.key == "fd":
        levels = [
            ("fd_converged", "converged sampler", (0, (1, 1.5))),
            ("fd_floor", "perfect generator, on average", (0, (5, 3))),
        ]
    elif metric.key == "rmse":
        levels = [("truth_gap", "accuracy of the reference", (0, (1, 1.5)))]
    for key, name, dashes in levels:
        value = section.level(key)
        if value is not None and value > 0 and (lowest is None or value > lowest / 20):
            label = f"{name} ({number(value)})"
            axes.axhline(value, color="#888888", linewidth=1.1, linestyle=dashes, label=label, zorder=1)


def _minor_labels(axes: Axes) -> Formatter:
    """Label 2 and 5 between powers of ten where fewer than two decades are shown, else nothing."""
    from matplotlib.ticker import FuncFormatter

    low, high = axes.get_ylim()
    near = low > 0 and high / low < 100

    def label(value: float, _: int) -> str:
        leading = value / 10 ** np.floor(np.log10(value) + 1e-9)
        return f"{value:.3g}" if near and round(leading, 3) in (2, 3, 5) else ""

    return FuncFormatter(label)


def _thin(budgets: list[int]) -> list[int]:
    """Tick positions that keep a readable distance on a logarithmic axis."""
    kept: list[int] = []
    for budget in budgets:
        if not kept or np.log(budget / kept[-1]) > 0.11:
            kept.append(budget)
    return kept


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, with white background and no varying metadata (equal records give equal bytes)."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def save_png(data: bytes, path: str | os.PathLike[str]) -> None:
    """Write PNG bytes atomically."""
    with replacing(path, "wb") as stream:
        stream.write(data)


def draw_contact_sheet(rows: list[tuple[str, list[np.ndarray | None]]], columns: list[str], title: str) -> Figure:
    """Small mosaics of samples: one row per sampler, one column per budget, the same noise everywhere.

    Parameters
    ----------
    rows : list of (label, list of uint8 (H, W, C) arrays or None)
    columns : list of str
        Headings, as many as entries in each row.
    title : str
        Written above.
    """
    from matplotlib.figure import Figure

    first = next(image for _, images in rows for image in images if image is not None)
    aspect = first.shape[0] / first.shape[1]
    cell = 1.5
    label_width = 0.075 * max(len(label) for label, _ in rows) + 0.15
    width, height = label_width + cell * len(columns), cell * aspect * len(rows) + 0.65
    figure = Figure(figsize=(width, height), dpi=150)
    figure.text(0.01, 1 - 0.08 / height, title, va="top", fontsize=10)
    gap = 0.06
    for i, (label, images) in enumerate(rows):
        bottom = (len(rows) - 1 - i) * cell * aspect
        middle = (bottom + cell * aspect / 2) / height
        figure.text((label_width - 0.08) / width, middle, label, ha="right", va="center", fontsize=9)
        for j, image in enumerate(images):
            left = label_width + j * cell
            if i == 0:
                centre = (left + cell / 2 - gap / 2) / width
                figure.text(centre, 1 - 0.6 / height, columns[j], ha="center", va="bottom", fontsize=9)
            if image is None:
                continue
            box = (left / width, bottom / height, (cell - gap) / width, (cell * aspect - gap) / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            grey = image.shape[-1] == 1
            axes.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    return figure
