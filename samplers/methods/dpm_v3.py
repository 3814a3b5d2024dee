"""DPM-Solver-v3: exponential multistep in the coordinates of a network's own statistics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from math import factorial
from typing import Any

import numpy as np

from ..ems import ConstantStatistics, ModelStatistics, Statistics, StepIntegrals, as_statistics
from ..nodes import Nodes
from ..numerics import Array
from ..program import Linear, Program, dot
from ..registry import Case, Reference, register
from ..table import Coefficient, Table
from ..transforms import ONES
from .multistep import check_order, check_variant, step_orders

DPM_SOLVER_V3 = Reference(
    key="zheng2023dpmsolverv3",
    authors="Zheng, Kaiwen and Lu, Cheng and Chen, Jianfei and Zhu, Jun",
    title="DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics",
    year=2023,
    venue="NeurIPS",
    arxiv="2310.13268",
)
CORRECTORS = ("all", "noisy", "clean", "none")
HALF = -0.478
"""λ of Stable Diffusion's schedule at t = 0.5."""
_FRAME = "none: exact where the network follows its own statistics"


@register(
    "dpm-solver-v3",
    cases=[
        Case({"order": 2}, 2, 2),
        Case({"order": 1}, 2, 2),
        Case({"order": 1, "corrector": "none"}, 1, 1),
        Case({"order": 3, "corrector": "none"}, 3, 2),
        Case({"order": 4, "corrector": "none"}, 4, 2),
        Case({"order": 3, "pseudo": True, "corrector": "none"}, 2, 2),
        Case({"order": 2, "corrector_pseudo": False}, 2, 2),
        Case({"order": 2, "corrector": "none", "statistics": "noise"}, 2, 2),
    ],
    reference=DPM_SOLVER_V3,
)
def dpm_solver_v3(
    nodes: Nodes,
    *,
    statistics: str | os.PathLike[str] | ModelStatistics = "data",
    order: int = 2,
    pseudo: bool = False,
    corrector: str = "all",
    corrector_pseudo: bool = True,
    boundary: float = HALF,
    lower_order_final: bool = True,
    snap: bool = False,
    force: bool = False,
) -> Table:
    """DPM-Solver-v3 of order 1–4: exponential multistep around measured statistics l, s, b of the network.

    What is interpolated is g, see `samplers.ems`. The corrector takes the output at the predicted state, keeps f there,
    and costs no call; the last state is not corrected. A last step to noise 0 returns the data prediction, a first one
    from signal 0 is the first-order data step. With statistics of a network the coefficients are arrays.

    Parameters
    ----------
    statistics : {"data", "noise"}, ModelStatistics or a file of them
        "data" and "noise" are the constants under which the method is DPM-Solver++ and DPM-Solver with exact weights.
    order : {1, 2, 3, 4}
        Outputs used by the predictor; released are 2 under guidance, else 3.
    pseudo : bool
        Take the k-th derivative from the k + 1 newest outputs (paper, section 3.3) instead of all: at most order 2, and
        calmer over few large steps; released for 5 evaluations and fewer.
    corrector : {"all", "noisy", "clean", "none"}
        States that are corrected: all, or the half with λ below or from `boundary` on. For strong guidance the paper
        advises the clean half, its code corrects the noisy one.
    corrector_pseudo : bool
        A corrector from one output more than the predictor's, with the derivatives of `pseudo`; False takes as many
        outputs as the predictor, so that the first step is not corrected.
    boundary : float
        λ that parts the halves; the default is the middle of Stable Diffusion's schedule (t = 0.5).
    lower_order_final : bool
        Lower the order to …, 2, 1 over the last steps.
    snap : bool
        Move inner nodes to the nearest level of the statistics, as the released code does.
    force : bool
        Use statistics measured on another path, with another prediction or guidance.
    """
    check_order("dpm-solver-v3", order, 1, 4)
    check_variant("dpm-solver-v3", corrector, CORRECTORS, argument="corrector")
    found = as_statistics(statistics)
    if isinstance(found, ModelStatistics):
        if nodes.path is not None and not force:
            found.check_path(nodes.path)
        nodes = _snapped(nodes, found.lam) if snap else nodes
    orders = step_orders(nodes, order, lower_order_final)
    behind = [0] * nodes.steps
    for i, lam in enumerate(nodes.lam[:-1]):  # the corrected order of every state; 0 and 1 correct nothing
        if i and np.isfinite(nodes.lam[i - 1]) and corrector in ("all", "noisy" if lam < boundary else "clean"):
            behind[i] = orders[i - 1] + corrector_pseudo
    table = _Solver(nodes, found, pseudo, corrector_pseudo).table(orders, behind)
    if isinstance(found, ModelStatistics):
        file = {} if isinstance(statistics, ModelStatistics) else {"file": os.path.basename(statistics)}
        known = {} if force else found.provenance()
        table = replace(table, options={"statistics": file | found.recorded()}, provenance=known)
    return table


class _Solver:
    """Strings the steps of one table together; `history` holds (λ, f), newest first."""

    def __init__(self, nodes: Nodes, statistics: Statistics, pseudo: bool, corrector_pseudo: bool) -> None:
        self.nodes, self.statistics = nodes, statistics
        self.pseudo, self.corrector_pseudo = pseudo, corrector_pseudo
        self.program = Program(nodes, () if isinstance(statistics, ConstantStatistics) else (ONES,))
        self.history: list[tuple[float, Linear]] = []

    def table(self, orders: Sequence[int], behind: Sequence[int]) -> Table:
        """Rows of all nodes; `behind[i]` is the order that state i is corrected with."""
        nodes, program = self.nodes, self.program
        before = x = program.state
        for i in range(nodes.steps):
            if nodes.signal[i] == 0.0:
                x = self._from_noise(x, i)
                continue
            f = self._evaluated(x, i)
            if behind[i] > 1:
                x = self._corrected(x, before, f, i, (orders[i - 1], behind[i]))
            self.history.insert(0, (float(nodes.lam[i]), f))
            before, x = x, self._predicted(x, i, orders[i])
        constant = isinstance(self.statistics, ConstantStatistics)
        return program.finish(x, frame="point_mass" if constant else _FRAME)

    def _evaluated(self, x: Linear, i: int) -> Linear:
        """The f of node i, from the one call there."""
        signal, noise = float(self.nodes.signal[i]), float(self.nodes.noise[i])
        l, form = self.statistics.at(float(self.nodes.lam[i])), self.statistics.form  # noqa: E741
        output = self.program.query(x, i, form)
        f = (1.0 - l) / signal * x - output if form == "data" else noise / signal * output - l / signal * x
        return f if isinstance(self.statistics, ConstantStatistics) else self.program.let(f)

    def _from_noise(self, x: Linear, i: int) -> Linear:
        carry = float(self.nodes.noise[i + 1] / self.nodes.noise[i])
        return self.program.let(carry * x + float(self.nodes.signal[i + 1]) * self.program.query(x, i, "data"))

    def _predicted(self, x: Linear, i: int, order: int) -> Linear:
        """The state at node i + 1 from the `order` newest outputs."""
        signal, after = float(self.nodes.signal[i]), float(self.nodes.signal[i + 1])
        start, end = self.history[0][0], float(self.nodes.lam[i + 1])
        if not np.isfinite(end):  # the data prediction at the corrected state, where f is what it was
            rest = (1.0 - self.statistics.at(start)) * (after / signal)
            return self.program.let(rest * x - after * self.history[0][1])
        used = self.history[:order]
        step = self.statistics.step(start, end, [lam for lam, _ in used], order)
        weights = _weights(step.moments, [lam - start for lam, _ in used], self.pseudo)
        moved = self._integral(step, weights, [f for _, f in used]) + self._constant(step.shift)
        return self.program.let((after / signal) * step.decay * x - after * step.decay * moved)

    def _corrected(self, x: Linear, before: Linear, f: Linear, i: int, orders: tuple[int, int]) -> Linear:
        """State i with the new output f among the nodes; `orders` are those of its prediction and its correction.

        A table of arrays adds the difference of the two rules to the prediction, so that whatever a pipeline did to it
        is kept; schedulers rewrite scalar tables themselves.
        """
        order, behind = orders
        start, end = self.history[0][0], float(self.nodes.lam[i])
        signal, after = float(self.nodes.signal[i - 1]), float(self.nodes.signal[i])
        old = self.history[: max(order, behind - 1)]
        levels = [old[0], (end, f), *old[1:]]
        step = self.statistics.step(start, end, [lam for lam, _ in levels], max(orders))
        places = [lam - start for lam, _ in levels]
        weights = [*_weights(step.moments, places[:behind], self.corrector_pseudo), *[0.0] * (len(levels) - behind)]
        if isinstance(self.statistics, ConstantStatistics):
            moved = self._integral(step, weights, [value for _, value in levels])
            return self.program.let((after / signal) * step.decay * before - after * step.decay * moved)
        without = [0, *range(2, order + 1)]
        predictor = _weights(step.moments, [places[j] for j in without], self.pseudo)
        for j, weight in zip(without, predictor, strict=True):
            weights[j] = weights[j] - weight
        moved = self._integral(step, weights, [value for _, value in levels])
        return self.program.let(x - after * step.decay * moved)

    def _integral(self, step: StepIntegrals, weights: Sequence[Coefficient], values: Sequence[Linear]) -> Linear:
        """Σ weight·g with g = scale·f − offset."""
        offset = sum((w * o for w, o in zip(weights, step.offsets, strict=True)), 0.0)
        return dot([w * c for w, c in zip(weights, step.scales, strict=True)], values) - self._constant(offset)

    def _constant(self, value: Coefficient) -> Linear:
        return value * self.program.anchor(ONES) if self.program.anchors else Linear({})


def _weights(moments: Sequence[Coefficient], places: Sequence[float], pseudo: bool) -> list[Coefficient]:
    """Weights of g at `places`, counted in λ from the step's beginning, in ∫e^{∫(l + s)}·g dλ; the beginning is first.

    That is moment_0·g + Σ_k moment_k·(k-th derivative of g).
    """
    rows = _derivatives(np.asarray(places), pseudo)
    later = [
        sum((m * float(row[j]) for m, row in zip(moments[1:], rows, strict=False)), 0.0) for j in range(len(places))
    ]
    return [moments[0] + later[0], *later[1:]]


def _derivatives(places: Array, pseudo: bool) -> Array:
    """Rows k = 1, 2, … of weights that give the k-th derivative at the first of n places, array (n − 1, n).

    Exact for polynomials through all places; with `pseudo` k!·(k-th divided difference) of the first k + 1.
    """
    n = len(places)
    rows = np.zeros((n - 1, n))
    if n == 1:
        return rows
    if pseudo:
        for k in range(1, n):
            apart = places[: k + 1, None] - places[None, : k + 1] + np.eye(k + 1)
            rows[k - 1, : k + 1] = factorial(k) / apart.prod(axis=1)
        return rows
    unit = np.abs(places[1:]).max()
    powers = (places[1:, None] / unit) ** np.arange(1, n)
    scale = np.array([factorial(k) / unit**k for k in range(1, n)])
    rows[:, 1:] = scale[:, None] * np.linalg.inv(powers)
    rows[:, 0] = -rows[:, 1:].sum(axis=1)
    return rows


def _snapped(nodes: Nodes, grid: Array) -> Nodes:
    """Nodes whose inner ones stand on the nearest level of `grid`."""
    lam = nodes.lam.copy()
    inner = np.arange(1, nodes.steps)
    nearest = np.abs(lam[inner, None] - grid[None]).argmin(axis=1)
    lam[inner] = grid[nearest]
    if not (np.diff(lam) > 0).all():
        raise ValueError(
            f"snap=True would move two of {nodes.steps + 1} nodes to one of {len(grid)} levels of the statistics; "
            "use fewer steps or snap=False"
        )
    if not len(inner):
        return nodes
    levels = [nodes.level(0), *nodes.between_all(lam[inner]), nodes.level(nodes.steps)]
    names = ["signal", "noise", "time"]
    if np.array_equal(nodes.clock, nodes.time) and all(level.noise_rate is not None for level in levels):
        names += ["signal_rate", "noise_rate"]
    columns: dict[str, Any] = {name: [getattr(level, name) for level in levels] for name in names}
    return Nodes(**columns, path=nodes.path)
