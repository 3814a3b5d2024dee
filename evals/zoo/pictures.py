"""Pictures of the zoo page: one small PNG for each method, stability on the left and error on the right."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pathline.samplers.analysis import Stability

from ..plots import COLOURS, png_bytes
from .measurements import Curve, Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MINE, REFERENCE, SHADE, FAINT = COLOURS[0], "#8a8a8a", "#cfe3f1", "#e4e4e4"
SIZE, DPI = (6.4, 2.45), 110
REAL, IMAGINARY, POINTS = (-4.0, 1.0), (0.0, 3.0), 121
_PALETTE = 48
AXES_OF = {
    "lam": "z = h·κ,  D = κ·x/signal,  h = {step:g}",
    "noise_ratio": "z = δ·κ,  ε = κ·x/signal",
    "time": "z = δ·κ,  velocity = κ·x",
}


def draw_entry(entry: Entry, reference: tuple[str, Curve], floor: float | None) -> bytes:
    """The picture of a method as PNG bytes.

    Parameters
    ----------
    entry : Entry
    reference : (name, curve)
        Drawn in grey for comparison.
    floor : float or None
        Error of exact draws, for distances of laws.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    if entry.region is not None:
        draw_region(left, entry.region)
    else:
        _explain(left, entry.no_region)
    label = "energy distance to the data law" if entry.lawful else "RMSE to the converged end"
    draw_curves(right, {reference[0]: reference[1], entry.info.name: entry.curve}, label, floor)
    return small_png(figure)


def draw_adaptive(name: str, curve: Curve, reference: tuple[str, Curve]) -> bytes:
    """The picture of an adaptive method: error over the evaluations that its tolerances cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0] * 0.56, SIZE[1]), dpi=DPI, layout="constrained")
    draw_curves(figure.subplots(), {reference[0]: reference[1], name: curve}, "RMSE to the converged end", None)
    return small_png(figure)


def draw_region(axes: Axes, region: Stability) -> None:
    """Where errors do not grow (shaded), and where the exact solution does not (left of the dashed line)."""
    x, y, values = region.region(REAL, IMAGINARY, POINTS)
    y, values = np.concatenate([-y[:0:-1], y]), np.concatenate([values[:0:-1], values])
    axes.contourf(x, y, values, levels=[0.0, 1.0], colors=[SHADE])
    axes.contour(x, y, values, levels=[1.0], colors=[MINE], linewidths=1.2)
    edge = region.step if region.variable == "lam" else 0.0
    axes.axvline(edge, color=REFERENCE, linewidth=1.0, linestyle="--")
    axes.axhline(0.0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel("Re z", fontsize=8, labelpad=1)
    axes.set_ylabel("Im z", fontsize=8, labelpad=1)
    axes.set_title(AXES_OF[region.variable].format(step=region.step), fontsize=7.5, loc="left")
    _plain(axes)


def draw_curves(axes: Axes, curves: dict[str, Curve], label: str, floor: float | None) -> None:
    """Errors over evaluations, both axes logarithmic; the last curve is the method's own."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    own = list(curves)[-1]
    for name, curve in curves.items():
        points = np.array([(n, e) for n, e in curve if np.isfinite(e) and e > 0])
        if name != own and curve == curves[own]:
            continue
        if len(points):
            style = (MINE, "o", "-", 1.6) if name == own else (REFERENCE, "", "--", 1.1)
            axes.plot(*points.T, color=style[0], marker=style[1], linestyle=style[2], linewidth=style[3], ms=3.5,
                      label=name)  # fmt: skip
    if floor is not None:
        axes.axhline(floor, color=REFERENCE, linewidth=1.0, linestyle=":", label="exact draws")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 40, 100, 300]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(base=10))
    axes.yaxis.set_minor_formatter(FuncFormatter(_minor_label(axes)))
    axes.grid(which="major", color=FAINT, linewidth=0.7)
    axes.set_xlabel("network evaluations", fontsize=8, labelpad=1)
    axes.set_title(label, fontsize=7.5, loc="left")
    axes.legend(fontsize=7, frameon=False, loc="best", handlelength=1.6)
    _plain(axes)


def _minor_label(axes: Axes) -> Callable[[float, int], str]:
    """Labels 2 and 5 between powers of ten where fewer than two of these are shown."""
    low, high = axes.get_ylim()
    few = np.floor(np.log10(high)) - np.ceil(np.log10(low)) < 1

    def label(value: float, _: int) -> str:
        leading = value / 10 ** np.floor(np.log10(value) + 1e-9)
        return f"{value:g}" if few and round(leading, 3) in (2, 5) else ""

    return label


def _explain(axes: Axes, why: str) -> None:
    """Words instead of a region."""
    import textwrap

    axes.set_axis_off()
    text = "\n".join(textwrap.wrap(f"No stability function: {why}", 40))
    axes.text(0.0, 0.5, text, fontsize=7.5, va="center", color="#555555", transform=axes.transAxes)


def _plain(axes: Axes) -> None:
    axes.tick_params(which="both", labelsize=7, length=2.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def small_png(figure: Figure) -> bytes:
    """The figure with a palette of a few colours, a third of the bytes."""
    from PIL import Image

    image = Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")
    stream = io.BytesIO()
    reduced = image.quantize(_PALETTE, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(stream, format="png", optimize=True)
    return stream.getvalue()
