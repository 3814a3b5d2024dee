"""Search of the decisions of every step in stages: propose, rank by a predictor, measure the most promising.

The plan of S³ (Liu et al. 2023, USF): evolutionary proposals from the best so far, a predictor learned from what was
measured, a few measurements per stage. The predictor here is a Gaussian process over levels and rules whose mean is
the closed-form error on Gaussian data, where a spectrum is given: that ranks before a network call is spent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import unknown_name

from ..loop import check_start
from ..numerics import Array
from ..table import Table
from .decisions import GRIDS, Decisions, DecisionSpace
from .extractor import KEY
from .objectives import EndPointError, GaussianError, Objective, TrajectoryError
from .row_fits import Reference, make_reference, trajectory_calls
from .search_state import Memory, identity_of
from .trajectories import Problem, split

ERRORS = ("end point", "trajectory")
_PARENTS = 15
_PROPOSALS = 8  # for each measurement
_SURPRISES = 4  # one measurement in so many is of a proposal drawn by lot
_FINALISTS = 3
_REACH = 0.6  # in λ, over which errors resemble each other
_SWAPS = 1.5  # changed rules after which they do not
_DOUBT = 0.05  # of the predictor in a measured log error
_WORST = 1e6

Factory = Callable[[Problem, Tensor], Objective]


@dataclass(frozen=True)
class Measured:
    """One measurement of a search.

    Attributes
    ----------
    stage : int
        0 for untuned runs; −1 for a judgement on the hold-out.
    decisions : Decisions
    error : float
    predicted : float
        What the predictor said before; nan without one.
    calls : int
        Network calls of the whole search so far.
    """

    stage: int
    decisions: Decisions
    error: float
    predicted: float
    calls: int


@dataclass(frozen=True, eq=False)
class FoundSteps:
    """A run found by search, judged on the hold-out.

    Attributes
    ----------
    table : Table
        With its provenance; the best untuned run where nothing found beat it.
    decisions : Decisions
    holdout_error, base_error : float
        Of the table, and of the best untuned run measured: mean over hold-out samples of the RMSE per value to the
        converged end points, or the given objective on the hold-out.
    train_error : float
    calls : int
        Network calls, references included.
    notes : tuple of str
    """

    table: Table
    decisions: Decisions
    holdout_error: float
    base_error: float
    train_error: float
    calls: int
    notes: tuple[str, ...] = ()


def search_steps(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    space: DecisionSpace | None = None,
    objective: str | Factory = "end point",
    predictor: GaussianError | None = None,
    holdout: float | int = 0.25,
    stages: int = 4,
    evaluations: int = 24,
    seed: int = 0,
    state: str | os.PathLike[str] | None = None,
    report: Callable[[Measured], None] | None = None,
    chunk: int | None = None,
) -> FoundSteps:
    """Search rules, levels and first step of a run of `nfe` calls.

    Parameters
    ----------
    problem : Problem
        Its budget bounds all calls; the search ends early, and judges, where it does not pay for another measurement.
    x_init : Tensor (B, ...)
        Starts; the last of them, `holdout`, only judge.
    space : DecisionSpace, optional
        By default that of `decisions.RULES`.
    objective : {"end point", "trajectory"} or callable (problem, x_init) -> Objective
        What is made small on the training samples; a callable also judges, on the hold-out, such as
        `lambda problem, x: FeatureDistance(problem, x, features, target)`.
    predictor : GaussianError, optional
        Ranks proposals; on guided networks its rank correlation is about nothing, and it should be left out.
    stages, evaluations : int ≥ 0, int ≥ 4
        Stages after the untuned runs, and measurements in each.
    seed : int
    state : path, optional
        JSON file of all measurements, written after each; a search that was cut short goes on from it with the same
        result. What it measured is counted again, and only the references are paid for twice, and the two calls that
        tell the network where it is no torch module.
    report : callable, optional
        Called with every `Measured`.
    chunk : int, optional
        Largest batch given to the network.

    Raises
    ------
    ValueError
        Arguments out of range, or a state of another search.
    BudgetError
        Before the first call, when the budget does not pay for references, one measurement and one judgement.
    """
    check_start(x_init)
    _, held = split(len(x_init), holdout)
    if stages < 0 or evaluations < 4:
        raise ValueError(f"stages={stages!r}, evaluations={evaluations!r} are not possible; at least 0 and 4")
    if isinstance(objective, str) and objective not in ERRORS:
        raise unknown_name("objective", objective, ERRORS)
    space = space or DecisionSpace(problem.path, nfe)
    if (space.nfe, repr(space.path)) != (nfe, repr(problem.path)):
        raise ValueError(f"space is one of {space.nfe} calls on {space.path!r}, not of {nfe} on {problem.path!r}")
    before, batch = problem.calls, len(x_init)
    per_sample = trajectory_calls(problem) if isinstance(objective, str) else 0
    problem.require(batch * (per_sample + nfe) + held * nfe, f"{batch} references, a measurement and a judgement")
    given = objective if isinstance(objective, str) else _given(problem, x_init, held, objective)
    named = given if isinstance(given, str) else getattr(given[1], "identity", given[1].name)
    counts = (held, evaluations, seed)
    memory = Memory(state, {} if state is None else _identity(problem, x_init, space, named, predictor, *counts))
    with torch.no_grad():
        fit, judge = _errors(problem, x_init, held, given, chunk) if isinstance(given, str) else given
        search = _Search(problem, space, fit, judge, memory, predictor=predictor, report=report, seed=seed)
        search.untuned(evaluations)
        for stage in range(1, stages + 1):
            if not search.stage(stage, evaluations):
                break
        best, base = search.judged()
    calls = problem.calls - before
    facts: dict[str, Any] = {
        "nfe": nfe,
        "samples": batch,
        "holdout_samples": held,
        "holdout_error": best[0],
        "base_error": base,
    }
    facts |= {"objective": judge.name, "calls": calls, "seed": seed}
    table = space.table(best[1])
    if marker := getattr(judge, "marker", None):  # kept twice, as `released` drops the provenance
        facts, table = {**facts, KEY: marker}, replace(table, options={**table.options, KEY: marker})
    table = problem.fitted(table, **facts)
    train = search.errors[best[1]]
    return FoundSteps(table, best[1], best[0], base, train, calls, tuple(search.notes))


def _given(problem: Problem, x: Tensor, held: int, objective: Factory) -> tuple[Objective, Objective]:
    """The objective on the training samples, and on the hold-out."""
    fit, judge = (
        objective(problem.part(rows, len(x)), x[rows]) for rows in (slice(0, len(x) - held), slice(len(x) - held, None))
    )
    return fit, judge


def _errors(problem: Problem, x: Tensor, held: int, objective: str, chunk: int | None) -> tuple[Objective, Objective]:
    """The error made small on the training samples, and the one that judges on the hold-out."""
    batch = len(x)
    parts = (slice(0, batch - held), slice(batch - held, batch))
    whole = make_reference(problem, x, {}, chunk)
    fit, judge = (
        replace(whole, problem=problem.part(r, batch), start=whole.start[r], states=whole.states[:, r]) for r in parts
    )
    first: Objective = TrajectoryError(fit) if objective == "trajectory" else _end_error(fit)
    return first, _end_error(judge)


def _end_error(reference: Reference) -> EndPointError:
    return EndPointError(reference.problem, reference.start, reference.end, reference.chunk)


class _Search:
    """Everything measured so far, and the predictor over it."""

    def __init__(
        self,
        problem: Problem,
        space: DecisionSpace,
        fit: Objective,
        judge: Objective,
        memory: Memory,
        *,
        predictor: GaussianError | None,
        report: Callable[[Measured], None] | None,
        seed: int,
    ) -> None:
        self.problem, self.space, self.fit, self.judge, self.memory = problem, space, fit, judge, memory
        self.gaussian, self.report, self.rng = predictor, report, np.random.default_rng(seed)
        self.errors: dict[Decisions, float] = {}
        self.plain: list[Decisions] = []
        self.notes: list[str] = []
        self._free: dict[Decisions, float] = {}

    def untuned(self, count: int) -> None:
        """Measure one rule for all steps on named grids, the `count` most promising, at least one of each rule."""
        space = self.space
        places = [(k, g, a) for k in range(len(space.rules)) for g in GRIDS for a in range(len(space.afs))]
        self.rng.shuffle(places)
        every = list(dict.fromkeys(space.uniform(str(g), int(k), int(a)) for k, g, a in places))
        ranked = sorted(every, key=self.predicted) if self.gaussian else every
        first = {d.rules[0]: d for d in reversed(ranked)}  # the best of every rule
        chosen = list(dict.fromkeys([*ranked[: -(-count // 2)], *sorted(first.values(), key=ranked.index), *ranked]))
        for decisions in chosen[:count]:
            if not self.measure(0, decisions):
                break
            self.plain.append(decisions)

    def stage(self, number: int, count: int) -> bool:
        """Propose, rank and measure; False where the budget is spent."""
        parents = sorted(self.errors, key=lambda d: self.errors[d])[:_PARENTS]
        proposals = list(dict.fromkeys(d for d in self._proposals(parents, count) if d not in self.errors))
        scores = self.scores(proposals)
        order = np.argsort(scores, kind="stable")
        surprises = count // _SURPRISES
        sure, rest = order[: count - surprises], order[count - surprises :]
        lot = self.rng.choice(rest, size=min(surprises, len(rest)), replace=False)
        chosen = [int(k) for k in (*sure, *lot)]
        found = []
        for k in chosen:
            if not self.measure(number, proposals[k], float(scores[k])):
                return False
            found.append(self.errors[proposals[k]])
        if len(found) > 3:
            agreement = _rank_correlation(scores[chosen], np.array(found))
            self.notes.append(f"stage {number}: best {min(found):.4g}, predictor's rank correlation {agreement:.2f}")
        return True

    def _proposals(self, parents: Sequence[Decisions], count: int) -> list[Decisions]:
        found = []
        weight = 0.8 ** np.arange(len(parents))
        for k in range(_PROPOSALS * count):
            if k % 10 == 9:
                found.append(self.space.random(self.rng))
                continue
            a, b = (parents[int(i)] for i in self.rng.choice(len(parents), size=2, p=weight / weight.sum()))
            child = self.space.crossed(a, b, self.rng) if k % 2 else a
            found.append(self.space.mutated(child, self.rng))
        return found

    def measure(self, stage: int, decisions: Decisions, predicted: float = math.nan) -> bool:
        """Measure on the training samples; False where the budget does not leave enough to judge."""
        reserve = (_FINALISTS + 1 if len(self.errors) else 1) * self.judge.samples * self.space.nfe
        if self.problem.calls_left < self.fit.samples * self.space.nfe + reserve:
            self.notes.append(f"the budget ended the search after {len(self.errors)} measurements")
            return False
        self.errors[decisions] = self._cost(stage, decisions, self.fit, predicted)
        return True

    def _cost(self, stage: int, decisions: Decisions, objective: Objective, predicted: float = math.nan) -> float:
        calls = objective.samples * self.space.nfe
        known = self.memory.get(objective is self.judge, decisions)
        if known is None:
            known = objective(self.space.table(decisions))
            self.memory.add(objective is self.judge, decisions, known)
        else:
            self.problem.charge(calls)
        if self.report is not None:
            self.report(Measured(stage, decisions, known, predicted, self.problem.calls))
        return known

    def judged(self) -> tuple[tuple[float, Decisions], float]:
        """The best run by hold-out error, with that error, and the error of the best untuned one."""
        ranked = sorted(self.errors, key=lambda d: self.errors[d])
        plain = min(self.plain, key=lambda d: self.errors[d])
        base = self._cost(-1, plain, self.judge)
        best = (base, plain)
        for decisions in [d for d in ranked if d != plain][:_FINALISTS]:
            if self.problem.calls_left < self.judge.samples * self.space.nfe:
                break
            best = min(best, (self._cost(-1, decisions, self.judge), decisions), key=lambda entry: entry[0])
        if best[1] == plain:
            self.notes.append("nothing found beat the best untuned run on the hold-out; it is kept")
        return best, base

    # --- predictor ------------------------------------------------------------------------------------------

    def predicted(self, decisions: Decisions) -> float:
        """Log of the closed-form error; 0 without a spectrum."""
        if self.gaussian is None:
            return 0.0
        if decisions not in self._free:
            self._free[decisions] = math.log(min(max(self.gaussian(self.space.table(decisions)), 1e-12), _WORST))
        return self._free[decisions]

    def scores(self, proposals: Sequence[Decisions]) -> Array:
        """Predicted log error of each: a line in the closed-form error, and a Gaussian process over the rest."""
        seen = list(self.errors)
        target = np.log(np.clip([self.errors[d] for d in seen], 1e-12, _WORST))
        target = np.minimum(target, np.median(target) + 3.0)  # runs that break down say no more than that they do
        known, new = (np.array([[1.0, self.predicted(d)] for d in group]) for group in (seen, proposals))
        line = np.linalg.lstsq(known, target, rcond=1e-9)[0]
        kernel = _resemblance(seen, seen) + _DOUBT * np.eye(len(seen))
        rest = np.linalg.solve(kernel, target - known @ line)
        return np.asarray(new @ line + _resemblance(proposals, seen) @ rest)


def _resemblance(first: Sequence[Decisions], second: Sequence[Decisions]) -> Array:
    """Kernel between runs; 0 between those of different numbers of steps."""
    found = np.zeros((len(first), len(second)))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            if len(a.rules) == len(b.rules) and a.afs == b.afs:
                swaps = sum(p != q for p, q in zip(a.rules, b.rules, strict=True))
                apart = float(np.square(np.subtract(a.lam, b.lam)).sum()) / _REACH**2
                found[i, j] = math.exp(-0.5 * apart - swaps / _SWAPS)
    return found


def _rank_correlation(first: Array, second: Array) -> float:
    a, b = (np.argsort(np.argsort(v)).astype(float) for v in (first, second))
    return float(np.corrcoef(a, b)[0, 1])


def _identity(
    problem: Problem,
    x_init: Tensor,
    space: DecisionSpace,
    objective: Any,
    predictor: GaussianError | None,
    *counts: int,
) -> dict[str, Any]:
    spectra = [] if predictor is None else [[s.values.tolist(), s.counts.tolist()] for s in predictor.spectra]
    content = {
        "space": space.config(),
        **identity_of(problem, x_init),
        "objective": objective,
        "predictor": hashlib.sha256(json.dumps(spectra).encode()).hexdigest(),
        "holdout, evaluations, seed": list(counts),
    }
    return dict(json.loads(json.dumps(content)))
