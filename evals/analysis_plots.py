"""Pictures of what `Table.analyse` finds: stability regions, and the bias of every eigenvalue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathline.samplers.analysis import Analysis, Stability

from .plots import COLOURS, DASHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 241


def draw_stability(
    maps: Sequence[tuple[str, Stability]],
    title: str = "",
    *,
    real: tuple[float, float] = (-2.3, 0.4),
    imag: tuple[float, float] = (0.0, 1.8),
) -> Figure:
    """Boundaries of the stability regions of several methods, and their amplification on the real axis.

    Parameters
    ----------
    maps : sequence of (label, Stability), of one variable
    title : str
    real, imag : range of the complex plane; the regions are symmetric about the real axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.4, 4.0), dpi=100, layout="constrained")
    plane, line = figure.subplots(1, 2, width_ratios=(1.25, 1))
    z = np.linspace(real[0], min(0.0, real[1]), 600)
    for k, (label, found) in enumerate(maps):
        style = {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k // len(COLOURS) % len(DASHES)]}
        _boundary(plane, found, real, imag, style)
        line.plot(z, found.amplification(z), linewidth=1.5, label=label, **style)
    _finish_plane(plane, maps[0][1], real, imag)
    if title:
        plane.set_title(title, loc="left", fontsize=10)
    line.axhline(1.0, color="#888888", linewidth=0.8)
    line.set_ylim(0.0, 2.0)
    line.set_xlabel("z, real")
    line.set_ylabel("amplification per step of the grid")
    line.set_title("below 1: errors die out", loc="left", fontsize=10)
    figure.legend(*line.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    _plain(plane, line)
    return figure


def draw_analysis(analysis: Analysis) -> Figure:
    """Stability region and amplification of one table, and its bias by eigenvalue where a spectrum was given.

    Raises
    ------
    ValueError
        There is neither a stability function nor a spectrum.
    """
    from matplotlib.figure import Figure

    parts = int(analysis.stability is not None) + int(analysis.transfer is not None)
    if not parts:
        raise ValueError("nothing can be drawn: the method has no stability function, and no --stats were given")
    figure = Figure(figsize=(5.4 * parts, 4.2), dpi=130, layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, parts)))
    if analysis.stability is not None:
        _draw_region(axes.pop(0), analysis.stability)
    if analysis.transfer is not None:
        _draw_bias(axes.pop(0), analysis)
    options = ", ".join(f"{k}={v}" for k, v in analysis.table.options.items())
    figure.suptitle(f"{analysis.table.method}({options}), {analysis.table.evaluations} evaluations", fontsize=9)
    return figure


def _draw_region(axes: Axes, found: Stability) -> None:
    limit = max(found.real_limit(lowest=-20.0), -20.0)
    reach = max(abs(limit), found.step if found.variable == "lam" else 0.0)
    right = 1.15 * reach if found.variable == "lam" else 0.5
    real, imag = (1.2 * limit - 0.2, 0.2 + right), (-1.2 * reach, 1.2 * reach)
    x, y, values = found.region(real, imag, _POINTS)
    shades = axes.contourf(x, y, values, levels=np.linspace(0.0, 1.0, 6), cmap="Blues_r", alpha=0.75)
    axes.figure.colorbar(shades, ax=axes, label="amplification", shrink=0.8)
    _boundary(axes, found, real, imag, {"color": COLOURS[0], "linestyle": "-"})
    _finish_plane(axes, found, real, imag)
    axes.set_title(f"stable down to {limit:.4g} on the real axis", loc="left", fontsize=9)
    _plain(axes)


def _boundary(
    axes: Axes, found: Stability, real: tuple[float, float], imag: tuple[float, float], style: dict[str, str]
) -> None:
    x, y, values = found.region(real, imag, _POINTS)
    axes.contour(x, y, values, levels=[1.0], colors=style["color"], linestyles=style["linestyle"], linewidths=1.5)


def _finish_plane(axes: Axes, found: Stability, real: tuple[float, float], imag: tuple[float, float]) -> None:
    meaning = f"z = h·κ, data prediction κ·x/signal, h = {found.step:.3g} in λ"
    axes.axhline(0.0, color="#bbbbbb", linewidth=0.7)
    axes.axvline(0.0, color="#bbbbbb", linewidth=0.7)
    axes.set_xlim(*real)
    axes.set_ylim(*imag)
    axes.set_aspect("equal")
    axes.set_xlabel(f"real part of {meaning if found.variable == 'lam' else f'z = step·κ in {found.variable}'}")
    axes.set_ylabel("imaginary part")


def _draw_bias(axes: Axes, analysis: Analysis) -> None:
    found = analysis.transfer
    assert found is not None
    kept = found.spectrum.values > 1e-6 * found.spectrum.values.max()
    order = np.argsort(found.spectrum.values[kept])
    variance, bias = found.spectrum.values[kept][order], found.bias[kept][order]
    axes.plot(variance, bias, color=COLOURS[1], marker=".", markersize=4, linewidth=1.2)
    axes.axhline(1.0, color="#888888", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("variance of the data along an eigenvector")
    axes.set_ylabel("standard deviation of the samples / of the data")
    axes.set_title(f"W2 {found.w2:.4g}, RMSE per value {found.rmse:.4g}", loc="left", fontsize=9)
    _plain(axes)


def _plain(*all_axes: Axes) -> None:
    for axes in all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
