"""Levels found on a network's trajectories: the dynamic programmes of GITS and of optimal stepsize search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..border import Border
from ..grids import make_nodes
from ..nodes import Nodes
from ..numerics import Array
from ..registry import build_table
from ..run_state import Hook, RunState
from ..table import Table
from .trajectories import Problem

TEACHER = 60
"""Steps of the trajectories that levels are chosen from."""


@dataclass(frozen=True)
class FoundLevels:
    """Levels chosen from those of a teacher.

    Attributes
    ----------
    nodes : Nodes
        For `sample(..., grid=nodes)`.
    chosen : tuple of int
        Their places among the teacher's nodes.
    calls : int
        Network calls that the search took.
    """

    nodes: Nodes
    chosen: tuple[int, ...]
    calls: int


def gits(
    problem: Problem,
    x_init: Tensor,
    steps: int,
    *,
    gamma: float = 1.15,
    teacher: int = TEACHER,
    chunk: int | None = None,
) -> FoundLevels:
    """Levels whose Euler jumps leave the trajectories' regular shape least (Chen et al. 2024, GITS).

    The cost of a jump is how much farther from the chord of its trajectory it ends than the teacher does there; a
    dynamic programme adds the costs of later jumps, each γ times less trusted than the one before. One teacher run
    (iPNDM-4 on the ρ = 7 grid) pays for any number of steps.

    Parameters
    ----------
    problem : Problem
    x_init : Tensor (B, ...)
        States at the start of the path; the authors take 256.
    steps : int
        Number of steps, which is that of the calls of a multistep method; the last one ends at noise 0.
    gamma : float > 0
    teacher : int > steps
    chunk : int, optional
        Largest batch given to the network.

    Raises
    ------
    ValueError
        steps, gamma or teacher out of range.
    BudgetError
        Before the first call.
    """
    nodes = _teacher_nodes(problem, steps, teacher)
    if not gamma > 0:
        raise ValueError(f"gamma={gamma!r} is not possible; it must be positive")
    table = build_table("ipndm", nodes, order=4)
    before = problem.calls
    problem.require(table.evaluations * len(x_init), f"a teacher of {teacher} steps over {len(x_init)} samples")
    cost = torch.zeros(nodes.steps + 1, nodes.steps + 1, dtype=torch.float64)
    for rows, part in problem.chunks(len(x_init), chunk):
        cost += len(x_init[rows]) / len(x_init) * _jump_costs(part, table, nodes, x_init[rows])
    chosen = shortest_path(cost.numpy(), steps, gamma)
    return FoundLevels(_picked(nodes, chosen), chosen, problem.calls - before)


def shortest_path(cost: Array, steps: int, gamma: float = 1.0) -> tuple[int, ...]:
    """Nodes of the cheapest way from the first to the last node in `steps` jumps.

    V_1(i) = c(i, end) and V_k(i) = min over j > i of c(i, j) + γ·V_{k−1}(j).

    Parameters
    ----------
    cost : (M + 1, M + 1) array
        c(i, j) of the jump from i to j > i.
    steps : int ≤ M
    gamma : float
    """
    end = len(cost) - 1
    value = cost[:, end].copy()
    value[end] = np.inf
    choices = []
    for _ in range(steps - 1):
        total = np.where(np.triu(np.ones_like(cost), 1) > 0, cost + gamma * value, np.inf)
        choices.append(total.argmin(1))
        value = total.min(1)
    chosen = [0]
    for choice in reversed(choices):
        chosen.append(int(choice[chosen[-1]]))
    return (*chosen, end)


def optimal_stepsizes(
    problem: Problem, x_init: Tensor, steps: int, *, teacher: int = TEACHER, chunk: int | None = None
) -> FoundLevels:
    """Levels whose own first-order run stays closest to the teacher (Pei et al. 2025, OSS): k calls at every node.

    For every number k of steps and every node the state of the best k-step run that ends there is kept; the levels of
    the best run of `steps` are found for each sample and their medians taken.

    Parameters
    ----------
    problem, x_init, steps, teacher, chunk : as in `gits`
        The cost is at most B·teacher·(steps + 1) calls.

    Raises
    ------
    ValueError
        steps or teacher out of range.
    BudgetError
        Before the first call.
    """
    nodes = _teacher_nodes(problem, steps, teacher)
    before = problem.calls
    problem.require(teacher * (steps + 1) * len(x_init), f"a search over {len(x_init)} samples and {teacher} levels")
    found = [_best_runs(part, nodes, x_init[rows], steps) for rows, part in problem.chunks(len(x_init), chunk)]
    inner = torch.cat(found).double().median(0).values.round().long().tolist()
    chosen = _distinct([0, *inner, nodes.steps])
    return FoundLevels(_picked(nodes, chosen), chosen, problem.calls - before)


class _Recorder(Hook):
    """States and data predictions of every call."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.data: list[Tensor] = []

    def after_model(self, run: RunState, query: Tensor, output: Tensor) -> None:
        row = run.table.rows[run.row]
        level = row.level
        self.states.append(query)
        data = output if row.form == "data" else (query - level.noise * output) / level.signal
        self.data.append(data)


def _jump_costs(problem: Problem, table: Table, nodes: Nodes, x: Tensor) -> Tensor:
    """Mean excess distance from the chord, (M + 1, M + 1), of first-order jumps between all pairs of nodes."""
    recorder = _Recorder()
    end = problem.run(table, x, hooks=[recorder])
    flat = [state.flatten(1).double() for state in (*recorder.states, end)]
    direction = flat[0] - nodes.signal[0] * flat[-1] / nodes.signal[-1]
    direction = direction / direction.norm(dim=1, keepdim=True)

    def off_chord(state: Tensor, k: int) -> Tensor:
        apart = state / nodes.signal[k] - flat[-1] / nodes.signal[-1]
        return (apart - (apart * direction).sum(1, keepdim=True) * direction).norm(dim=1).mean()

    cost = torch.full((nodes.steps + 1, nodes.steps + 1), torch.inf, dtype=torch.float64)
    own = [off_chord(flat[j], j) if nodes.signal[j] > 0 else torch.zeros(()) for j in range(nodes.steps + 1)]
    for i, data in enumerate(recorder.data):
        for j in range(i + 1, nodes.steps + 1):
            cost[i, j] = off_chord(_jump(nodes, i, j, flat[i], data.flatten(1).double()), j) - own[j]
    return cost


def _jump(nodes: Nodes, i: int, j: int, x: Tensor, data: Tensor) -> Tensor:
    """One first-order step from node i to node j."""
    carry = nodes.noise[j] / nodes.noise[i]
    return carry * x + (nodes.signal[j] - carry * nodes.signal[i]) * data


def _best_runs(problem: Problem, nodes: Nodes, x: Tensor, steps: int) -> Tensor:
    """Inner nodes (B, steps − 1) of the best first-order run of each sample."""
    recorder = _Recorder()
    end = problem.run(build_table("ddim", nodes), x, hooks=[recorder])
    target = torch.stack([*recorder.states, end]).flatten(2)
    count, batch = nodes.steps + 1, len(x)
    border = Border(problem, x, problem.prediction)
    state = x.flatten(1)[None].expand(count, -1, -1).clone().to(target.dtype)
    best = torch.full((count, batch), torch.inf, dtype=target.dtype)
    best[0] = 0.0
    came_from = []
    for _ in range(steps):
        new_state, new_best = state.clone(), best.clone()
        source = torch.arange(count)[:, None].expand(-1, batch).clone()
        for i in range(nodes.steps):
            reached = torch.isfinite(best[i])
            if not bool(reached.any()):
                continue
            data = border.at(nodes.level(i), "data", state[i].reshape(x.shape), problem.model_kwargs).flatten(1)
            for j in range(i + 1, count):
                moved = _jump(nodes, i, j, state[i], data)
                distance = (moved - target[j]).square().mean(1)
                wins = reached & (distance < new_best[j])
                new_best[j] = torch.where(wins, distance, new_best[j])
                new_state[j] = torch.where(wins[:, None], moved, new_state[j])
                source[j] = torch.where(wins, torch.full_like(source[j], i), source[j])
        state, best = new_state, new_best
        came_from.append(source)
    place = torch.full((batch,), nodes.steps)
    trail = []
    for source in reversed(came_from):
        place = source[place, torch.arange(batch)]
        trail.append(place)
    return torch.stack(trail[::-1], 1)[:, 1:]


def _teacher_nodes(problem: Problem, steps: int, teacher: int) -> Nodes:
    if not 1 <= steps < teacher:
        raise ValueError(f"steps={steps!r} is not possible; from a teacher of {teacher} steps 1 to {teacher - 1} are")
    return make_nodes(problem.path, "karras", teacher)


def _distinct(places: list[int]) -> tuple[int, ...]:
    """Medians of several samples may coincide: moved apart as little as possible, both ends kept."""
    for k in range(1, len(places) - 1):
        places[k] = max(places[k], places[k - 1] + 1)
    for k in range(len(places) - 2, 0, -1):
        places[k] = min(places[k], places[k + 1] - 1)
    return tuple(places)


def _picked(nodes: Nodes, chosen: tuple[int, ...]) -> Nodes:
    places = list(chosen)
    return Nodes(nodes.signal[places], nodes.noise[places], nodes.time[places], nodes.path)
