"""A smooth, nonlinear, time-dependent problem with a known solution, for measured orders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, VPPath
from pathline.samplers import (
    Case,
    Hook,
    Level,
    Nodes,
    RunState,
    Table,
    build_table,
    list_methods,
    method_info,
    propagate,
    run,
)


def gaussian_methods() -> list[str]:
    """Registered methods that run on any Gaussian path (bridges have tests of their own)."""
    return [name for name in list_methods() if not method_info(name).requires]


LAM_RANGE = (-0.3, 0.35)
PATH = VPPath()


@dataclass(frozen=True)
class Manufactured:
    """Data prediction D(x, t) under which the probability-flow ODE has the solution signal·curve(λ).

    With x̃ = x/signal the flow reads dx̃/dλ = D − x̃. The curve is not symmetric and D depends on λ and,
    nonlinearly, on x, so that wrong labels and compensating errors show.
    """

    path: GaussianPath = PATH

    @staticmethod
    def curve(lam: Tensor) -> Tensor:
        """x̃(λ), three components."""
        return torch.stack([torch.sin(1.3 * lam + 0.4), torch.exp(-0.5 * lam), 0.3 * lam**2 + torch.cos(2 * lam)], -1)

    @staticmethod
    def slope(lam: Tensor) -> Tensor:
        """dx̃/dλ."""
        return torch.stack(
            [1.3 * torch.cos(1.3 * lam + 0.4), -0.5 * torch.exp(-0.5 * lam), 0.6 * lam - 2 * torch.sin(2 * lam)], -1
        )

    def solution(self, level: Level) -> Tensor:
        """Exact state at a level, shape (1, 3)."""
        return level.signal * self.curve(torch.tensor([level.lam], dtype=torch.float64))

    def noise(self, lam: float) -> Tensor:
        """Exact noise prediction along the solution, shape (1, 3)."""
        at = torch.tensor([lam], dtype=torch.float64)
        return -self.slope(at) * torch.exp(at)  # ε = (x̃ − D)·e^λ

    def model(self, x: Tensor, t: Tensor) -> Tensor:
        """The network, a function of its label alone (not of the table's levels)."""
        lam, signal = self.path.lam(t), self.path.signal(t)
        off = x / signal[:, None] - self.curve(lam)
        rate = torch.cos(lam)[:, None] * torch.sin(off) + 0.3 * off
        return self.curve(lam) + self.slope(lam) + rate


def uniform_nodes(variable: str, steps: int, path: GaussianPath = PATH) -> Nodes:
    """Nodes uniform in λ, in noise/signal or in time, between finite levels."""
    low, high = LAM_RANGE
    if variable == "lam":
        lam = np.linspace(low, high, steps + 1)
    elif variable == "noise_ratio":
        lam = -np.log(np.linspace(np.exp(-low), np.exp(-high), steps + 1))
    else:
        ends = path.time_at(torch.tensor([low, high], dtype=torch.float64))
        lam = path.lam(torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)).numpy()
    times = path.time_at(torch.tensor(lam))
    point = path.at(times)
    return Nodes(*(np.asarray(c) for c in point[:2]), np.asarray(times), path)


class ExactStart(Hook):
    """Replaces every state computed in the first rows by the exact solution on its level.

    A velocity of momentum methods is replaced by what an infinite exact past would have made of it:
    Σ_k β(1 − β)^k ε_{i−k} on the grid continued towards noise.
    """

    def __init__(self, table: Table, problem: Manufactured, rows: int, momentum: float = 1.0) -> None:
        self.problem, self.rows, self.momentum = problem, rows, momentum
        self.values = propagate(table) if rows else {}

    def after_row(self, run: RunState) -> None:
        if run.row >= self.rows:
            return
        rows = run.table.rows
        levels = [rows[run.row].level, rows[run.row + 1].level if run.row + 1 < len(rows) else run.table.end]
        for target, _ in rows[run.row].updates:
            signal, noise = self.values[target][0], self.values[target][2]
            if abs(signal) + abs(noise - 1.0) < 1e-9:
                run.values[target] = self.velocity(*levels)
            for level in levels:
                if abs(signal - level.signal) + abs(noise - level.noise) < 1e-9:
                    run.values[target] = self.problem.solution(level)

    def velocity(self, level: Level, after: Level) -> Tensor:
        beta = self.momentum
        ratio, step = np.exp(-level.lam), np.exp(-level.lam) - np.exp(-after.lam)
        past = range(1 if beta == 1 else 1 + int(40 / beta))
        return sum(
            (beta * (1 - beta) ** k * self.problem.noise(float(-np.log(ratio + k * step))) for k in past),
            torch.zeros(1, 3),
        )


def end_error(method: str, case: Case, steps: int, exact_history: int) -> float:
    """Largest error at the end of one run on a grid uniform in the case's own variable."""
    problem = Manufactured()
    nodes = uniform_nodes(case.variable, steps)
    options = dict(case.options)
    table = without_lowering(method, nodes, options)
    momentum = float(case.options.get("order", 1)) % 1 or 1.0
    start = ExactStart(table, problem, exact_history, momentum)
    x = run(table, problem.model, problem.solution(nodes.level(0)), prediction="data", hooks=[start])
    assert isinstance(x, Tensor)
    return float((x - problem.solution(nodes.level(steps))).abs().max())


def without_lowering(method: str, nodes: Nodes, options: dict[str, object]) -> Table:
    """The method without order lowering at the end, where it has that option."""
    if "lower_order_final" in method_info(method).options:
        options = {"lower_order_final": False, **options}
    return build_table(method, nodes, **options)


def slope(steps: list[int], errors: list[float]) -> float:
    """Least-squares order over the errors between 1e-11 and 1e-2; needs three of them."""
    kept = [(n, e) for n, e in zip(steps, errors, strict=True) if 1e-11 < e < 1e-2]
    assert len(kept) >= 3, f"only {len(kept)} errors lie in the fit range: {errors}"
    x, y = np.log([n for n, _ in kept]), np.log([e for _, e in kept])
    return float(-np.polyfit(x, y, 1)[0])
