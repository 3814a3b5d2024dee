"""Align Your Steps: levels that minimise a bound on how far first-order steps lead away from the reverse SDE.

The bound (Sabour, Fidler and Kreis 2024, eq. 9; here for λ instead of noise/signal) is

    Σ_i ∫ from λ_i to λ_{i+1} of e^{2λ}·E‖D(x_λ, λ) − D(x_{λ_i}, λ_i)‖² dλ

over data noised by one Brownian path for both levels. The authors optimise it level after level with fresh draws;
here the expectation is estimated once for all pairs of a fine grid, at one call for each level and sample, and a
dynamic programme finds the levels of the least sum, for any number of steps.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..border import Border
from ..files import replacing
from ..grids import make_nodes
from ..keyed_noise import keyed_normal
from ..loop import check_start
from ..nodes import Nodes
from ..numerics import Array
from ..run_state import NonFiniteError
from ..sampling import plan
from ..table import Table
from .level_search import shortest_path
from .trajectories import Problem, mean_error, reference_calls, reference_states, split
from .untuned import STARTS

TAILS = (0.0, 1.0, 2.0, 3.0, 4.0)
"""Lengths in λ, before the end of the path, that are tried as beyond the bound."""
_REFERENCE = 48  # calls of one converged end, about
_BATCH = 16  # samples noised at a time where `chunk` says nothing
_SLOT = 1
_TINY = 1e-9


@dataclass(frozen=True, eq=False)
class Aligned:
    """Levels of least bound, and what a method gains on them.

    Attributes
    ----------
    table : Table
        The method on the levels found, or on the best named grid where that is no worse on the hold-out.
    nodes : Nodes
        The levels found, for `sample(..., grid=nodes)`.
    holdout_error, base_error : float
        Mean over hold-out samples of the RMSE per value to their converged end points: of the table, and of the method
        on the best named grid.
    bound, base_bound : float
        The bound per value, of the levels found and of those of that grid (moved to the fine grid's levels).
    calls : int
        Network calls in all.
    notes : tuple of str
    """

    table: Table
    nodes: Nodes
    holdout_error: float
    base_error: float
    bound: float
    base_bound: float
    calls: int
    notes: tuple[str, ...] = ()


def align_steps(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    method: str = "dpm++",
    options: Mapping[str, Any] | None = None,
    grids: Sequence[str] = STARTS,
    data: Tensor | None = None,
    levels: int = 60,
    tails: Sequence[float] = TAILS,
    holdout: float | int = 0.25,
    seed: int = 0,
    chunk: int | None = None,
    ends: Tensor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Aligned:
    """Optimise the levels of a method with `nfe` calls for one network.

    Parameters
    ----------
    problem : Problem
        Where its budget does not pay for all samples, the bound is estimated on fewer and a note says so.
    x_init : Tensor (B, ...)
        Starts; the last ones judge.
    nfe : int ≥ 1
    method, options : what runs on the levels: any deterministic method without anchors.
    grids : sequence of str
        Compared with; the best on the hold-out is the base.
    data : Tensor (B − held, ...), optional
        Clean data that belong to the conditions of the first samples; by default their converged ends.
    levels : int > nfe
        Of the fine grid, even in λ: calls for each sample.
    tails : sequence of float ≥ 0
        The integral may end before the path's largest λ, by the one of these with the least hold-out error. Weights
        grow like 1/noise², so that details of the size of the last noise, which no error shows, would draw most levels
        (the authors stop their optimisation early instead).
    holdout : float in (0, 1) or int
        Share or number of samples that judge.
    seed : int
        Keys the noise.
    chunk : int, optional
        Largest batch given to the network.
    ends : Tensor (B, ...), optional
        Converged ends that are known already.
    checkpoint : path, optional
        A .npz file in which sums are kept after every batch, and from which an interrupted estimate goes on; it does
        not know the network, which must be the same. What it measured is counted again.

    Raises
    ------
    ValueError
        Arguments out of range, ends or data of another shape or not finite, a checkpoint of another estimate.
    BudgetError
        Before the first call, when the budget does not pay for the ends, the judging and one sample's levels.
    """
    check_start(x_init, problem.guidance)
    train, held = split(len(x_init), holdout)
    given = dict(options or {})
    bases = [_base(problem, method, given, nfe, grid) for grid in grids]
    if not bases or levels <= nfe or not tails or min(tails) < 0:
        raise ValueError(
            f"grids={grids!r}, levels={levels!r} and tails={tails!r} are not possible; at least one grid, more than "
            f"{nfe} levels, and lengths in λ of at least 0"
        )
    _check_states("ends", ends, tuple(x_init.shape))
    _check_states("data", data, (train, *x_init.shape[1:]))
    before, judging = problem.calls, held * nfe * (len(bases) + len(tails))
    fine = make_nodes(problem.path, "logsnr", levels)
    path = None if checkpoint is None else Path(checkpoint)
    sums = _Sums.open(path, _key(problem, fine, x_init, data, seed), levels)
    problem.charge(sums.calls)
    _find_ends(sums, problem, x_init, slice(0 if data is None else train, train + held), ends, chunk, judging)
    sums.save(path)
    assert sums.ends is not None
    known = sums.ends.to(x_init.device)
    clean, target = known[:train] if data is None else data, known[-held:]
    notes = _add_samples(sums, problem.part(slice(0, train), len(x_init)), fine, clean, seed, chunk, path, judging)
    error = partial(_error, problem.part(slice(train, train + held), len(x_init)), x_init[train:], target, chunk)
    errors = [error(table) for table in bases]
    base, base_error = bases[int(np.argmin(errors))], min(errors)
    steps = len(base.nodes["signal"]) - 1
    tried: list[tuple[float, Table, Nodes, float]] = []
    for tail in tails:
        found = _picked(fine, shortest_path(sums.costs(fine, tail), steps))
        table = plan(problem.path, method, grid=found, **given)
        tried.append((error(table), table, found, tail))
    new, table, found, tail = min(tried, key=lambda one: one[0])
    notes.append(f"the bound ends at λ = {problem.path.lambda_max - tail:.3g}")
    if not new < base_error:
        notes.append(f"the levels found ({new:.4g}) did not beat the base ({base_error:.4g}) on the hold-out")
        new, table = base_error, base
    costs = sums.costs(fine, tail)
    bounds = [sum(costs[i, j] for i, j in pairwise(_near(nodes, fine))) for nodes in (found.config(), base.nodes)]
    calls = problem.calls - before
    facts = {"train": sums.count, "calls": calls, "holdout_error": new, "base_error": base_error, "notes": notes}
    table = problem.fitted(table, name="ays", nfe=nfe, **facts)
    return Aligned(table, found, new, base_error, float(bounds[0]), float(bounds[1]), calls, tuple(notes))


@dataclass
class _Sums:
    """Σ over samples of the mean squares of differences of data predictions, for all pairs of levels.

    `calls` is what it took, the converged ends included.
    """

    key: str
    total: Array
    count: int = 0
    ends: Tensor | None = None
    calls: int = 0

    @classmethod
    def open(cls, path: Path | None, key: str, levels: int) -> _Sums:
        """What a file holds, or none yet."""
        if path is None or not path.exists():
            return cls(key, np.zeros((levels, levels)))
        try:
            with np.load(path, allow_pickle=False) as kept:
                ends = torch.from_numpy(kept["ends"])
                found = cls(str(kept["key"]), kept["total"], int(kept["count"]), ends, int(kept["calls"]))
        except (OSError, KeyError, ValueError, EOFError) as reason:
            raise ValueError(f"checkpoint {path} cannot be read: {reason}") from reason
        if found.key != key:
            raise ValueError(f"checkpoint {path} belongs to other starts, data, levels or seed; remove it")
        return found

    def save(self, path: Path | None) -> None:
        """Write, where there is a file."""
        if path is None or self.ends is None:
            return
        with replacing(path, "wb") as stream:
            ends = self.ends.cpu().numpy()
            np.savez(stream, key=self.key, total=self.total, count=self.count, ends=ends, calls=self.calls)

    def costs(self, fine: Nodes, tail: float) -> Array:
        """The bound's integral from each level of `fine` to each later one, and to the end, (M + 1, M + 1).

        What lies less than `tail` before the last λ does not count.
        """
        lam = fine.lam[:-1].copy()
        lam[0] = lam[1] - (lam[2] - lam[1]) if np.isneginf(lam[0]) and len(lam) > 2 else lam[0]
        weighted = np.exp(2 * lam) * self.total / max(self.count, 1)
        pieces = 0.5 * np.diff(lam) * (weighted[:, 1:] + weighted[:, :-1])  # (i, k): from λ_k to λ_{k+1}
        pieces *= np.arange(len(lam) - 1)[None, :] >= np.arange(len(lam))[:, None]
        pieces[:, lam[1:] > lam[-1] - tail + _TINY] = 0.0
        cost = np.full((len(lam) + 1, len(lam) + 1), np.inf)
        cost[:-1, 1:-1] = np.cumsum(pieces, 1)
        cost[:-1, -1] = np.sum(pieces, 1)
        return cost


def _find_ends(
    sums: _Sums,
    problem: Problem,
    x_init: Tensor,
    rows: slice,
    ends: Tensor | None,
    chunk: int | None,
    judging: int,
) -> None:
    """The converged ends of some samples, given, kept already or computed now; checks the budget before."""
    whole = make_nodes(problem.path, "logsnr", 1)
    known = ends is not None or sums.ends is not None
    cost = 0 if known else reference_calls(whole, problem.path, _REFERENCE) * (rows.stop - rows.start)
    problem.require(
        cost + judging + (len(sums.total) if sums.count == 0 else 0),
        f"{0 if known else rows.stop - rows.start} converged ends, the judging and the levels of one sample",
    )
    if ends is not None:
        sums.ends = ends[rows]
    elif sums.ends is None:
        part, before = problem.part(rows, len(x_init)), problem.calls
        sums.ends = reference_states(part, x_init[rows], whole, per_step=_REFERENCE, chunk=chunk)[-1]
        sums.calls += problem.calls - before


def _add_samples(
    state: _Sums,
    problem: Problem,
    fine: Nodes,
    data: Tensor,
    seed: int,
    chunk: int | None,
    path: Path | None,
    reserve: int,
) -> list[str]:
    """Add the samples that are not counted yet, as many as the budget pays for."""
    levels = fine.steps
    while state.count < len(data):
        left = problem.calls_left - reserve
        size = int(min(chunk or _BATCH, len(data) - state.count, left // levels if math.isfinite(left) else len(data)))
        if size < 1:
            return [f"the budget paid for the levels of {state.count} of {len(data)} samples"]
        rows = slice(state.count, state.count + size)
        part, before = problem.part(rows, len(data)), problem.calls
        predicted = _predictions(part, fine, data[rows], range(rows.start, rows.stop), seed)
        for i in range(levels):
            gap = (predicted[i:] - predicted[i]).square().mean(2).sum(1)
            state.total[i, i:] += gap.cpu().numpy()
        if not np.isfinite(state.total).all():
            raise NonFiniteError(f"data predictions of noised samples {rows.start} to {rows.stop - 1} are not finite")
        state.count += size
        state.calls += problem.calls - before
        state.save(path)
    return []


def _predictions(problem: Problem, fine: Nodes, data: Tensor, samples: range, seed: int) -> Tensor:
    """Data predictions (M, B, d) in float64 along Brownian paths that noise the data from clean to pure."""
    border = Border(problem, data, problem.prediction)
    index = torch.as_tensor(samples, device=data.device)
    found: list[Tensor] = []
    noise = torch.zeros_like(data)
    for k in range(fine.steps - 1, -1, -1):
        fresh = keyed_normal(data.shape[1:], seed, index, k, _SLOT, dtype=data.dtype, device=data.device)
        kept = 0.0 if k == fine.steps - 1 else float(np.exp(fine.lam[k] - fine.lam[k + 1]))
        noise = kept * noise + math.sqrt(1.0 - kept**2) * fresh
        x = float(fine.signal[k]) * data + float(fine.noise[k]) * noise
        with torch.no_grad():
            found.append(border.at(fine.level(k), "data", x, problem.model_kwargs).flatten(1).double())
    return torch.stack(found[::-1])


def _error(judge: Problem, x_init: Tensor, target: Tensor, chunk: int | None, table: Table) -> float:
    """Hold-out error, infinite where the run leaves the range of numbers."""
    try:
        return mean_error(judge.run(table, x_init, chunk=chunk) - target)
    except NonFiniteError:
        return math.inf


def _picked(fine: Nodes, chosen: Sequence[int]) -> Nodes:
    places = list(chosen)
    return Nodes(fine.signal[places], fine.noise[places], fine.time[places], fine.path)


def _near(levels: Mapping[str, Any], fine: Nodes) -> tuple[int, ...]:
    """Places in `fine` nearest to the levels of other nodes, apart; the first and last are the ends."""
    with np.errstate(divide="ignore"):
        lam = np.log(levels["signal"]) - np.log(levels["noise"])
    places = [0]
    for value in lam[1:-1]:
        places.append(max(places[-1] + 1, int(np.argmin(np.abs(fine.lam[:-1] - value)))))
    return (*(min(p, fine.steps - len(lam) + 1 + i) for i, p in enumerate(places)), fine.steps)


def _base(problem: Problem, method: str, options: Mapping[str, Any], nfe: int, grid: str) -> Table:
    table = plan(problem.path, method, nfe=nfe, grid=grid, **options)
    if table.stochastic or table.anchors:
        raise ValueError(f"levels are judged with a deterministic method without anchors, which {method!r} is not")
    return table


def _check_states(name: str, states: Tensor | None, shape: tuple[int, ...]) -> None:
    if states is not None and (tuple(states.shape) != shape or not bool(torch.isfinite(states).all())):
        raise ValueError(f"{name} of shape {tuple(states.shape)} must be finite and of shape {shape}")


def _key(problem: Problem, fine: Nodes, x_init: Tensor, data: Tensor | None, seed: int) -> str:
    """Tells estimates apart by all they are made from but the network."""
    digest = hashlib.sha256(repr((problem.path, problem.prediction, problem.guidance, seed)).encode())
    digest.update(fine.lam.tobytes())
    for tensor in (x_init, data):
        digest.update(b"" if tensor is None else tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()
