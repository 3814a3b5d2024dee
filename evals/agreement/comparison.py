"""Our tables on the levels of stock schedulers, and how far the two ends lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import DiscretePath
from pathline.samplers import Nodes, Table, build_table, run

from .stock import EDM, FLOW, Setting, StockRun, output, run_stock, start_and_noises

SAME_LEVEL = 1e-5
"""A last step that changes signal/noise by less than this is one of length zero but for rounding."""
PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "velocity"}


@dataclass(frozen=True)
class Comparison:
    """One run of both sides.

    Attributes
    ----------
    error : largest |ours − theirs| / max(1, |theirs|)
    rounding : the same for the class as released, with float32 latents, on its own float32 levels
    calls : (theirs, ours)
    """

    error: float
    rounding: float
    calls: tuple[int, int]


def compare(setting: Setting, steps: int, *, rounding: bool = True) -> Comparison:
    """Run a stock scheduler and our table on its levels.

    Raises
    ------
    ValueError
        The table does not visit the levels of the stock run, so that the two are different methods.
    """
    theirs = run_stock(setting, steps)
    ours, table = run_ours(setting, steps, theirs)
    _check_levels(setting, theirs, table)
    single = math.nan
    if rounding:
        released = run_stock(setting, steps, widened=False)
        single = relative_error(run_ours(setting, steps, released)[0], released.sample)
    return Comparison(relative_error(ours, theirs.sample), single, (len(theirs.levels), table.evaluations))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to max(1, |theirs|); infinite where theirs is not finite."""
    if not bool(torch.isfinite(theirs).all()):
        return math.inf
    return float(((ours - theirs).abs() / theirs.abs().clamp_min(1.0)).max())


def nodes_of(setting: Setting, theirs: StockRun) -> Nodes:
    """The levels of the steps of a stock run, without inner stages and without a last step of length zero."""
    levels = theirs.levels
    if setting.name == "PNDMScheduler" and not setting.config.get("skip_prk_steps"):
        return _index_nodes(theirs)
    if setting.name.startswith("KDPM2"):
        levels = levels[::2]
    levels = list(dict.fromkeys([*levels, theirs.end]))
    signal, noise = np.array(levels).T
    if len(levels) > 2 and signal[-1] * noise[-2] < signal[-2] * noise[-1] * (1 + SAME_LEVEL):
        signal, noise = signal[:-1], noise[:-1]
    return Nodes(signal, noise, np.arange(len(signal), dtype=np.float64))


def _index_nodes(theirs: StockRun) -> Nodes:
    """Nodes on the training schedule, whose middles in time are training levels: for PNDM's Runge–Kutta start."""
    labels = np.array([*theirs.timesteps[:12:4], *theirs.timesteps[12:]])
    signal, noise = np.array([*theirs.levels[:12:4], *theirs.levels[12:]]).T
    path = DiscretePath(theirs.powers)
    times = 1.0 - (labels + 1.0) / path.steps
    if theirs.end != theirs.levels[-1]:
        (end_signal, end_noise), last = theirs.end, float(path.time_at(math.log(theirs.end[0] / theirs.end[1])))
        signal, noise, times = np.append(signal, end_signal), np.append(noise, end_noise), np.append(times, last)
    return Nodes(signal, noise, times, path)


def run_ours(setting: Setting, steps: int, theirs: StockRun) -> tuple[Tensor, Table]:
    """Our sample from the same start, with the same draws, and the table."""
    nodes = nodes_of(setting, theirs)
    if setting.config.get("prediction_type") == "flow_prediction" or setting.name in FLOW:
        nodes = Nodes(nodes.signal, nodes.noise, nodes.signal)
    table = build_table(setting.method, nodes, **setting.options(steps, theirs))
    called = iter([row.level for row in table.rows if row.calls_network])
    kind = str(setting.config.get("prediction_type", "flow_prediction" if setting.name in FLOW else "epsilon"))
    kind = "sample" if setting.name in EDM else kind
    sign = -1.0 if kind == "flow_prediction" else 1.0
    start, noises = start_and_noises()

    def network(x: Tensor, t: Tensor) -> Tensor:
        level = next(called)
        return sign * output(x, level.signal, level.noise, kind)

    calls_per_step = 2 if setting.name == "KDPM2AncestralDiscreteScheduler" else 1

    def drawn(row: int, slot: int, like: Tensor) -> Tensor:
        return noises[row // calls_per_step]

    x = start * nodes.noise[0] if setting.name in EDM else start
    result = run(table, network, x, prediction=PREDICTIONS[kind], noise=drawn)
    assert isinstance(result, Tensor)
    return result, table


def _check_levels(setting: Setting, theirs: StockRun, table: Table) -> None:
    """Every level of ours must be one of theirs."""
    visited = np.array([math.log(s) - math.log(n) if s > 0 else -math.inf for s, n in theirs.levels])
    for level in (row.level for row in table.rows if row.calls_network):
        gap = _distance(visited, level.lam)
        if gap > 1e-6:
            raise ValueError(f"{setting.label}: our table calls the network at λ = {level.lam:.6g}, theirs does not")


def _distance(visited: Sequence[float] | np.ndarray, lam: float) -> float:
    values = np.asarray(visited)
    if math.isinf(lam):
        return 0.0 if bool((values == lam).any()) else math.inf
    finite = values[np.isfinite(values)]
    return float(np.abs(finite - lam).min()) if len(finite) else math.inf
