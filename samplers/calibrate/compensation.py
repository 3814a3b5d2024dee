"""Search of the ratios of dynamic compensation, step by step along converged trajectories (Zhao et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import unknown_name

from ..compensation import compensated, corrector_updates, step_ratios
from ..nodes import Nodes
from ..numerics import Array
from ..registry import build_table
from ..table import Table
from .trajectories import Problem, Trajectories, mean_error, prepare
from .walk import Walk, check_walkable

OBJECTIVES = ("corrected", "predicted")
_TOLERANCE = 1e-3
_NEAR = 0.05


@dataclass(frozen=True)
class CompensationFit:
    """Ratios found for one model, grid and base, with what they gain.

    Attributes
    ----------
    table : Table
        The calibrated method, as `build_table("dc-solver", nodes, base=..., ratios=ratios)` makes it, with its
        provenance.
    ratios : tuple of N floats
    step_losses : tuple of (before, after) per searched step
        Mean squared difference of the step's state to the converged one at ρ = 1 and at the ratio chosen, both after
        the ratios of the steps before.
    train, hold_out : (base, calibrated) `mean_error` at the end, hold_out None without kept samples.
    evaluations : tuple of int
        Evaluations of the step's loss on a network call; 0 where the loss is a polynomial of the ratio.
    calls : mapping
        Network calls of the "reference" trajectories, the "search" and the "check" of both errors.
    objective : {"corrected", "predicted"}
    """

    table: Table
    ratios: tuple[float, ...]
    step_losses: tuple[tuple[float, float], ...]
    train: tuple[float, float]
    hold_out: tuple[float, float] | None
    evaluations: tuple[int, ...]
    calls: Mapping[str, int]
    objective: str


def search_ratios(
    problem: Problem,
    nodes: Nodes,
    x_init: Tensor,
    *,
    base: str = "unipc",
    base_options: Mapping[str, Any] | None = None,
    dc_order: int = 2,
    objective: str = "corrected",
    evaluations: int = 8,
    bounds: tuple[float, float] = (-1.0, 3.0),
    fixed: Sequence[float] = (),
    hold_out: int = 0,
    references: Tensor | None = None,
    per_step: int = 16,
    chunk: int | None = None,
) -> CompensationFit:
    """One ratio per step, greedily in order: the state after the step comes closest to the converged trajectory.

    The state that a step predicts is a polynomial of degree dc_order in its ratio, so its squared distance is minimised
    exactly, without a network call. The state after the corrector, which the release compares, also depends on the
    ratio through one network call: it is modelled by the polynomial through dc_order + 1 evaluated ratios, whose
    distance is minimised exactly and evaluated next, until the ratio moves by less than 1e-3. That takes about five
    calls per sample and step and no gradient, where the release takes 20 to 40 calls with gradients. Steps without a
    corrector (the last one, and all of a predictor-only base) need no call in either objective.

    Parameters
    ----------
    problem : Problem
    nodes : Nodes
        On the problem's path; references are exact at its times.
    x_init : Tensor (B, ...)
        States at node 0: 10 are enough for the released search. Conditions belong to the problem.
    base, base_options, dc_order : as in method "dc-solver"
    objective : {"corrected", "predicted"}
        Which state is compared; "predicted" costs one call per sample and step in all.
    evaluations : int ≥ dc_order + 2
        Most network evaluations for one step, each of B calls.
    bounds : (lowest, highest) ratio
    fixed : sequence of float
        Ratios of the first steps that are known already, for instance from a search that was cut short.
    hold_out, references, per_step, chunk : as in `prepare`

    Raises
    ------
    ValueError
        An option out of range, a base that is stochastic or has inner stages, fewer than dc_order + 1 steps, what
        `prepare` refuses.
    BudgetError
        Before the first call of the search or of the references, when the budget may not pay for it.
    """
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)
    if evaluations < dc_order + 2:
        raise ValueError(
            f"evaluations={evaluations!r} is not possible; at least dc_order + 2 = {dc_order + 2} are needed"
        )
    low, high = bounds
    if not low < 1.0 < high:
        raise ValueError(f"bounds={bounds!r} is not possible; the lower one must be below 1 and the upper one above")
    plain = build_table(base, nodes, **dict(base_options or {}))
    check_walkable(plain)
    compensated(plain, 1.1, order=dc_order)  # refuses a base that cannot be compensated
    if nodes.steps <= dc_order:
        raise ValueError(f"{nodes.steps} steps have nothing to compensate at dc_order={dc_order}; use more steps")
    known = step_ratios([*fixed, *[1.0] * (nodes.steps - len(fixed))], nodes.steps, dc_order)
    start = problem.calls
    fit, check = prepare(
        problem, x_init, nodes, hold_out=hold_out, references=references, per_step=per_step, chunk=chunk
    )
    referenced = problem.calls
    search = _Search(plain, fit, dc_order, evaluations if objective == "corrected" else 0, bounds, chunk)
    problem.require(search.most_calls, "the search of compensation ratios")
    search.run(known, len(fixed))
    searched = problem.calls
    ratios = tuple(search.ratios.tolist())
    table = build_table(
        "dc-solver", nodes, base=base, ratios=ratios, dc_order=dc_order, base_options=dict(base_options or {})
    )
    train = (fit.end_error(plain, chunk=chunk), search.end_error)
    kept = None if check is None else (check.end_error(plain, chunk=chunk), check.end_error(table, chunk=chunk))
    calls = {
        "reference": referenced - start,
        "search": searched - referenced,
        "check": problem.calls - searched,
    }
    losses, counts = tuple(search.losses), tuple(search.counts)
    errors = {"train_error": train[1], "holdout_error": None if kept is None else kept[1]}
    facts = {"name": "dc-solver", "nfe": table.evaluations, "train": len(fit.x_init), "calls": problem.calls - start}
    table = problem.fitted(table, **facts, **errors)
    return CompensationFit(table, ratios, losses, train, kept, counts, calls, objective)


class _Search:
    """The greedy pass over the steps of one table."""

    def __init__(
        self,
        plain: Table,
        fit: Trajectories,
        order: int,
        evaluations: int,
        bounds: tuple[float, float],
        chunk: int | None,
    ) -> None:
        self.plain, self.order, self.bounds = plain, order, bounds
        self.evaluations = evaluations
        self.states = fit.states
        self.walk = Walk(fit.problem, plain, fit.x_init, chunk)
        self.ratios = np.ones(len(plain.rows))
        self.losses: list[tuple[float, float]] = []
        self.counts: list[int] = []
        self.corrected = [
            row.updates[count - 1].target if count else None
            for row, count in zip(plain.rows, corrector_updates(plain), strict=True)
        ]

    @property
    def most_calls(self) -> int:
        """Network calls that the search cannot exceed."""
        steps = len(self.plain.rows)
        searched = sum(self._reads_network(i) for i in range(self.order, steps)) * self.evaluations
        return (steps + searched) * len(self.states[0])

    @property
    def end_error(self) -> float:
        """`mean_error` at the end, after `run`."""
        return mean_error(self.walk.values[self._table().result] - self.states[-1])

    def run(self, ratios: Array, fixed: int) -> None:
        """Choose every ratio but the first `fixed` of `ratios`."""
        output: Tensor | None = None
        for i, ratio in enumerate(ratios):
            self.ratios[i] = ratio
            self.walk.go(self._table(), i, output)
            output = None
            if i >= max(self.order, fixed):
                output = self._choose(i)
                self.walk.values = self.walk.updated(self._table(), i, self.walk.values)

    def _table(self, step: int = 0, ratio: float = 1.0) -> Table:
        ratios = self.ratios.copy()
        if step:
            ratios[step] = ratio
        return compensated(self.plain, ratios, order=self.order)

    def _reads_network(self, i: int) -> bool:
        return i + 1 < len(self.ratios) and self.corrected[i + 1] is not None

    def _loss(self, state: Tensor, node: int) -> float:
        return float((state - self.states[node]).to(torch.float64).square().mean())

    def _predicted(self, i: int, ratio: float) -> tuple[Table, dict[int, Tensor], Tensor]:
        table = self._table(i, ratio)
        values = self.walk.updated(table, i, self.walk.values)
        query = table.rows[i + 1].query if i + 1 < len(self.ratios) else table.result
        assert query is not None
        return table, values, values[query]

    def _choose(self, i: int) -> Tensor | None:
        """Set ratio i; returns the output of the next row under it where that was evaluated."""

        def predicted(ratio: float) -> Tensor:
            return self._predicted(i, ratio)[2]

        places = np.linspace(1.0, 2.0, self.order + 1)  # any will do: the state is a polynomial of this degree
        best = self._minimiser(places, [predicted(float(r)) for r in places], i + 1)
        if not (self.evaluations and self._reads_network(i)):
            pair = (self._loss(predicted(1.0), i + 1), self._loss(predicted(best), i + 1))
            self._keep(i, best, pair, 0)
            return None
        outputs: dict[float, Tensor] = {}

        def corrected(ratio: float) -> Tensor:
            table, values, query = self._predicted(i, ratio)
            row = table.rows[i + 1]
            assert row.output is not None
            outputs[ratio] = values[row.output] = self.walk.query(table, i + 1, query)
            return self.walk.updated(table, i + 1, values)[self.corrected[i + 1] or 0]

        found = self._refined(corrected, best, i + 1)
        losses = {r: self._loss(state, i + 1) for r, state in found.items()}
        best = min(losses, key=lambda r: losses[r])
        self._keep(i, best, (losses[1.0], losses[best]), len(found))
        return outputs[best]

    def _keep(self, i: int, ratio: float, losses: tuple[float, float], evaluations: int) -> None:
        self.ratios[i] = ratio
        self.losses.append(losses)
        self.counts.append(evaluations)

    def _refined(self, evaluate: Callable[[float], Tensor], first: float, node: int) -> dict[float, Tensor]:
        """States at the ratios tried: 1, the first guess, points between, then minimisers of the model."""
        step = first - 1.0 if abs(first - 1.0) > _NEAR else 2 * _NEAR
        spread = 1.0 + step * np.arange(self.order + 1) / max(1, self.order - 1)
        guesses = [float(r) for r in np.clip(spread, *self.bounds)]
        found = {r: evaluate(r) for r in dict.fromkeys(guesses)}
        while len(found) < self.evaluations and len(found) > self.order:
            nearest = sorted(found, key=lambda r: self._loss(found[r], node))[: self.order + 1]
            ratio = self._minimiser(np.array(nearest), [found[r] for r in nearest], node)
            if min(abs(ratio - r) for r in found) < _TOLERANCE:
                break
            found[ratio] = evaluate(ratio)
        return found

    def _minimiser(self, ratios: Array, states: list[Tensor], node: int) -> float:
        """Ratio within the bounds that minimises the distance of the polynomial through the states."""
        stacked = torch.stack([s - self.states[node] for s in states]).to(torch.float64).flatten(1)
        gram = (stacked @ stacked.T).cpu().numpy()
        centre, scale = float(ratios.mean()), float(np.ptp(ratios))
        inverse = np.linalg.inv(np.vander((ratios - centre) / scale, increasing=True))
        monomials = inverse @ gram @ inverse.T  # inner products of the polynomial's vector coefficients
        degree = len(ratios) - 1
        loss = np.array([np.trace(monomials[::-1], offset=k) for k in range(-degree, degree + 1)])
        roots = np.polynomial.polynomial.polyroots(np.polynomial.polynomial.polyder(loss))
        real = roots[np.abs(roots.imag) < 1e-9 * (1.0 + np.abs(roots.real))].real
        candidates = np.append(np.clip(centre + scale * real, *self.bounds), self.bounds)
        losses = np.polynomial.polynomial.polyval((candidates - centre) / scale, loss)
        return float(candidates[np.argmin(losses)])
