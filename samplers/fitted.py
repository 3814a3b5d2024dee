"""Tables that were fitted to a network: what they were fitted on, and what they may be run on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pathline.interpolants import DiscretePath, GaussianPath, StochasticInterpolant

from .nodes import points_at
from .table import Table

SUFFIXES = (".safetensors", ".json")
UNKNOWN: Any = object()
_NEAR = 1e-6  # levels that differ by less are the same path's
_NEAR_DISCRETE = 1e-5  # those of a schedule with betas, which interpolates a continuous path at its training steps
_SAME_SCALE = 1e-6


def is_table(method: Any) -> bool:
    """True for a Table, and for the name of a file that holds one."""
    return isinstance(method, (Table, os.PathLike)) or (isinstance(method, str) and method.endswith(SUFFIXES))


def open_table(method: Table | str | os.PathLike[str]) -> Table:
    """The table itself, or the one in a file; errors as in `Table.load`."""
    return method if isinstance(method, Table) else Table.load(Path(method))


def check_fit(
    table: Table,
    *,
    path: GaussianPath | StochasticInterpolant | None = None,
    prediction: str | None = None,
    guidance: Any = UNKNOWN,
    network: str | None = None,
) -> None:
    """Raise unless `table` was made for this path, and, if it was fitted, for this prediction, guidance and network.

    Parameters
    ----------
    table : Table
    path : the path of the model, None where it is not known
    prediction : what the model returns
    guidance : Guidance or None; UNKNOWN where something else guides the model
    network : identity of the network, such as a hash of its weights; None where it is not known

    Raises
    ------
    ValueError
        Names what differs; `table.released()` drops what the table says about its network.
    """
    if isinstance(path, GaussianPath):
        _check_levels(table, path)
    fit = table.provenance
    differences = []
    if "prediction" in fit and prediction is not None and fit["prediction"] != prediction:
        differences.append(f"a {fit['prediction']} prediction, not {prediction}")
    if "guidance" in fit and guidance is not UNKNOWN and not _same_guidance(fit["guidance"], guidance):
        differences.append(f"guidance {_worded(fit['guidance'])}, not {_worded(_scale(guidance))}")
    if network is not None and fit.get("network", network) != network:
        differences.append(f"the network {fit['network']}, not {network}")
    if differences:
        raise ValueError(
            f"table {table.method!r} was fitted to {' and '.join(differences)}; fit one for this use, or force it with "
            f"{'force=True' if 'statistics' in table.options else 'table.released()'}"
        )


def described_fit(*, path: GaussianPath, prediction: str, guidance: Any = None, **facts: Any) -> dict[str, Any]:
    """What a fitted table says about its network, for `Table.provenance`.

    Parameters
    ----------
    path, prediction, guidance : as in `check_fit`
    **facts : JSON values
        Such as network (a hash), samples, seed, calls, holdout_error, base_error, versions.
    """
    return {"path": repr(path), "prediction": prediction, "guidance": _scale(guidance), **facts}


def _check_levels(table: Table, path: GaussianPath) -> None:
    nodes: Mapping[str, Any] = table.nodes
    if not {"signal", "noise", "time"} <= nodes.keys() or "anchor" in nodes:
        return
    signal, noise, time = (np.array(nodes[key], dtype=np.float64) for key in ("signal", "noise", "time"))
    if not ((time >= 0) & (time <= 1)).all():
        return  # labels of another kind than path times
    on_path = points_at(path, time)
    off, near = np.abs(on_path[1] - noise), _NEAR
    if isinstance(path, DiscretePath):  # diffusers keeps signal² in float32: of a small noise, the square is near
        off, near = np.minimum(off, np.abs(on_path[1] ** 2 - noise**2)), _NEAR_DISCRETE
    apart = np.abs(on_path[0] - signal) + off
    apart[noise == 0.0] = 0.0  # a clean end may be added to a path that stops before
    if (apart > near * np.maximum(1.0, noise)).any():
        k = int(np.argmax(apart))
        raise ValueError(
            f"table {table.method!r} was made for another path than {path!r}: at time {time[k]:g} it has signal "
            f"{signal[k]:.6g} and noise {noise[k]:.6g}, the path {on_path[0][k]:.6g} and {on_path[1][k]:.6g}"
        )


def _scale(guidance: Any) -> float | str | None:
    if guidance is None:
        return None
    if (summary := getattr(guidance, "summary", None)) is not None:
        return str(summary)
    scale = getattr(guidance, "scale", None)
    return float(scale) if isinstance(scale, (int, float)) else type(guidance).__name__


def _same_guidance(fitted: Any, guidance: Any) -> bool:
    scale = _scale(guidance)
    plain = (None, 1.0)  # the conditional model itself
    if isinstance(fitted, float) and isinstance(scale, float):
        return abs(fitted - scale) <= _SAME_SCALE
    return fitted == scale or (fitted in plain and scale in plain)


def _worded(scale: Any) -> str:
    return "none" if scale is None else f"{scale:g}" if isinstance(scale, float) else str(scale)
