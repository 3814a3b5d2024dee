"""Improved integration approximation (IIA): least-squares weights on features that a method has at hand anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import unknown_name

from ..compensation import corrector_updates
from ..frames import check
from ..nodes import Nodes
from ..numerics import Array
from ..program import Linear
from ..registry import build_table
from ..table import Row, Table, Terms, Update
from .trajectories import (
    Problem,
    Trajectories,
    mean_error,
    prepare,
    reference_calls,
    reference_states,
    root_mean_square,
)
from .walk import Walk, check_walkable

FEATURES = ("differences", "noise", "differences+noise", "slopes", "mean-slope")
_OF_HEUN = FEATURES[3:]
TARGETS = ("trajectory", "restart")
_TINY = 1e-14  # keeps the system regular where features are multiples of each other
_AMPLITUDE = "none: IIA weighs {what}, which changes the amplitude of point masses"


@dataclass(frozen=True)
class IntegrationFit:
    """Weights found for one model, grid and base, with what they gain.

    Attributes
    ----------
    table : Table
        The base with the weighted features added to its steps, and its provenance.
    weights : tuple of N tuples
        γ of every step, in the order of `step_features`; empty where a step has none.
    residuals : tuple of (base, fitted) per step
        Root mean square difference of the step's state to its target, both after the weights of the steps before.
    train, hold_out : (base, calibrated) `mean_error` at the end; hold_out None without kept samples.
    calls : mapping
        Network calls of the "reference" trajectories, the "fit" and the "check" of both errors.
    features, target : as asked for
    """

    table: Table
    weights: tuple[tuple[float, ...], ...]
    residuals: tuple[tuple[float, float], ...]
    train: tuple[float, float]
    hold_out: tuple[float, float] | None
    calls: Mapping[str, int]
    features: str
    target: str


def fit_integration(
    problem: Problem,
    nodes: Nodes,
    x_init: Tensor,
    *,
    base: str = "ddim",
    base_options: Mapping[str, Any] | None = None,
    features: str | None = None,
    history: int = 1,
    target: str = "trajectory",
    ridge: float = 1e-6,
    last_step: bool = True,
    hold_out: int = 0,
    references: Tensor | None = None,
    per_step: int = 16,
    chunk: int | None = None,
) -> IntegrationFit:
    """Add Σ_k γ_k q_k to every step of a base, γ by least squares (Zhang et al. 2023, IIA).

    The steps are fitted in order, each from the states that the weights before it lead to; γ minimises the mean squared
    distance of the step's state to its target over samples and values, a system of at most 2·(history + 1) unknowns.
    One run of the base pays for all of it, besides the targets.

    Parameters
    ----------
    problem, nodes, x_init : as in `search_ratios`
    base : str
        "ddim" (IIA-DDIM), "dpm++" or another method of one call per step without corrector (IIA-DPM), "heun" (IIA-EDM).
    base_options : mapping, optional
    features : {"differences", "noise", "slopes", "mean-slope"}, optional
        For one call per step: "differences" D_i − D_{i−1} and ε_i − ε_{i−1} (and older ones with more history), which
        keep point masses, none in the first step; "noise" the newest guided noise ε_i alone; "differences+noise" both.
        For Heun: "slopes" the first slope ε_i and the change of D between the two calls (IIA-EDM), "mean-slope" the
        mean of both slopes (BIIA-EDM). Default "differences", for Heun "slopes".
    history : int ≥ 0
        Earlier steps whose features are used too; "differences" need at least 1, "noise" uses none.
    target : {"trajectory", "restart"}
        "trajectory": the converged state of the same start noise, so that accumulated errors are corrected too.
        "restart" (the paper): the state that `per_step` fine steps lead to from where this step begins.
    ridge : float ≥ 0
        Relative to the mean square of each feature.
    last_step : bool
        False leaves the last step as it is.
    hold_out, references, per_step, chunk : as in `prepare`

    Raises
    ------
    ValueError
        An option out of range, features that the base does not have, a stochastic base or one with a corrector, what
        `prepare` refuses.
    BudgetError
        Before the first call of the references or of the fit, when the budget does not pay for it.
    """
    features = features or ("slopes" if base == "heun" else "differences")
    _check(base, features, history, target, ridge)
    options = {"variant": "sigma", **(base_options or {})} if base == "heun" else dict(base_options or {})
    plain = build_table(base, nodes, **options)
    check_walkable(plain)
    if base != "heun" and any(corrector_updates(plain)):
        raise ValueError(f"base={base!r} corrects its states, which would undo the fit; use a predictor, such as dpm++")
    of_steps = step_features(plain, features, history)
    begun = problem.calls
    fit, kept = prepare(
        problem, x_init, nodes, hold_out=hold_out, references=references, per_step=per_step, chunk=chunk
    )
    referenced = problem.calls
    run = _Fit(plain, nodes, fit, of_steps, ridge)
    fine = sum(reference_calls(nodes.part(i, i + 1), problem.path, per_step) for i in range(nodes.steps))
    problem.require((plain.evaluations + fine * (target == "restart")) * len(fit.x_init), "the fit of IIA weights")
    run.go(per_step if target == "restart" else 0, last_step, chunk)
    fitted = problem.calls
    table = run.labelled(base, features)
    train = (fit.end_error(plain, chunk=chunk), run.end_error)
    held = None if kept is None else (kept.end_error(plain, chunk=chunk), kept.end_error(table, chunk=chunk))
    calls = {"reference": referenced - begun, "fit": fitted - referenced, "check": problem.calls - fitted}
    weights = tuple(tuple(float(g) for g in step) for step in run.weights)
    errors = {"train_error": train[1], "holdout_error": None if held is None else held[1]}
    facts = {"name": "iia", "nfe": table.evaluations, "train": len(fit.x_init), "calls": problem.calls - begun}
    table = problem.fitted(table, **facts, **errors)
    return IntegrationFit(table, weights, tuple(run.residuals), train, held, calls, features, target)


def _check(base: str, features: str, history: int, target: str, ridge: float) -> None:
    for name, value, allowed in (("features", features, FEATURES), ("target", target, TARGETS)):
        if value not in allowed:
            raise unknown_name(name, value, allowed)
    if (base == "heun") != (features in _OF_HEUN):
        able = [f for f in FEATURES if (f in _OF_HEUN) == (base == "heun")]
        raise ValueError(f"features={features!r} is not possible with base={base!r}; allowed: {', '.join(able)}")
    if not isinstance(history, int) or history < ("differences" in features):
        raise ValueError(f"history={history!r} is not possible; it must be at least {int('differences' in features)}")
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge!r} is not possible; it must be at least 0")


def step_rows(table: Table) -> list[range]:
    """The rows of every step: one call, or two where a Heun step is taken (its rows store noise)."""
    if table.method != "heun":
        return [range(i, i + 1) for i in range(len(table.rows))]
    steps, row = list[range](), 0
    while row < len(table.rows):
        calls = 1 if table.rows[row].form == "data" else 2
        steps.append(range(row, row + calls))
        row += calls
    return steps


def step_features(table: Table, features: str, history: int) -> list[list[Linear]]:
    """The features of every step as expressions in the table's values, newest first.

    Raises
    ------
    ValueError
        A row that stores the velocity, or the noise at signal 0.
    """
    steps = [[table.rows[r] for r in rows] for rows in step_rows(table)]
    if features not in _OF_HEUN:
        return [
            [_noise(steps[i][0])] * ("noise" in features)
            + _differences([step[0] for step in steps[: i + 1]], history if "differences" in features else 0)
            for i in range(len(steps))
        ]
    own = [_slopes(step, mean=features == "mean-slope") for step in steps]
    return [[f for j in range(i, max(-1, i - history - 1), -1) for f in own[j]] for i in range(len(steps))]


def _differences(rows: Sequence[Row], history: int) -> list[Linear]:
    """Differences of D and of ε between each of the last rows and the one before it, newest first."""
    pairs = list(zip(rows[:0:-1], rows[-2::-1], strict=True))[:history]
    return [form(newer) - form(older) for newer, older in pairs for form in (_data, _noise)]


def _slopes(step: Sequence[Row], mean: bool) -> list[Linear]:
    if len(step) == 1:
        return [_noise(step[0])]
    first, second = step
    if mean:
        return [0.5 * (_noise(first) + _noise(second))]
    return [_noise(first), _data(first) - _data(second)]


def _data(row: Row) -> Linear:
    state, output = Linear({row.query or 0: 1.0}), Linear({row.output or 0: 1.0})
    if row.form == "data":
        return output
    if row.form == "noise" and row.level.signal > 0.0:
        return (state - row.level.noise * output) / row.level.signal
    raise _refused(row)


def _noise(row: Row) -> Linear:
    state, output = Linear({row.query or 0: 1.0}), Linear({row.output or 0: 1.0})
    if row.form == "noise":
        return output
    if row.form == "data":
        return (state - row.level.signal * output) / row.level.noise
    raise _refused(row)


def _refused(row: Row) -> ValueError:
    return ValueError(
        f"IIA needs data and noise at time {row.level.time:g}, which a base that stores {row.form} has not"
    )


def with_features(
    table: Table, features: Sequence[Sequence[Linear]], weights: Sequence[Sequence[float] | Array]
) -> Table:
    """The table with Σ_k weights_ik·features_ik added to the state that step i leads to."""
    rows, result = list(table.rows), table.result
    for i, (last, state) in enumerate(_step_ends(table)):
        added = Linear({})
        for weight, feature in zip(weights[i], features[i], strict=True):
            added = added + float(weight) * feature
        if not any(weight != 0.0 for weight in weights[i]):
            continue
        row = rows[last]
        updates = [
            u if u.target != state else Update(state, _terms(Linear(dict(u.terms)) + added)) for u in row.updates
        ]
        if state not in [u.target for u in row.updates]:  # a last step that returns the network's output
            result = 1 + max(v for r in rows for v in (*(u.target for u in r.updates), r.output or 0))
            updates.append(Update(result, _terms(Linear({state: 1.0}) + added)))
        rows[last] = replace(row, updates=tuple(updates))
    return replace(table, rows=tuple(rows), result=result)


def _terms(expression: Linear) -> Terms:
    return tuple((v, float(c)) for v, c in expression.terms.items() if c != 0.0)


def _step_ends(table: Table) -> list[tuple[int, int]]:
    """For every step its last row and the value of the state it leads to."""
    steps = step_rows(table)
    following = [table.rows[step[0]].query for step in steps[1:]]
    return [(step[-1], state or 0) for step, state in zip(steps, [*following, table.result], strict=True)]


class _Fit:
    """The pass over the steps of one table."""

    def __init__(
        self, plain: Table, nodes: Nodes, fit: Trajectories, features: list[list[Linear]], ridge: float
    ) -> None:
        self.plain, self.nodes, self.fit = plain, nodes, fit
        self.features, self.ridge = features, ridge
        self.weights = [np.zeros(len(of_step)) for of_step in self.features]
        self.residuals: list[tuple[float, float]] = []
        self.end_error = float("nan")

    def go(self, fine_steps: int, last_step: bool, chunk: int | None) -> None:
        """Fit all steps; `fine_steps` above 0 restarts the target from where each step begins."""
        walk = Walk(self.fit.problem, self.plain, self.fit.x_init, chunk)
        steps = step_rows(self.plain)
        for i, (rows, (_, number)) in enumerate(zip(steps, _step_ends(self.plain), strict=True)):
            begin = walk.values[self.plain.rows[rows[0]].query or 0]
            for row in rows:
                walk.go(self.plain, row)
            goal = self.fit.states[i + 1]
            if fine_steps:
                part = self.nodes.part(i, i + 1)
                start = begin.to(self.fit.x_init.dtype)
                goal = reference_states(self.fit.problem, start, part, per_step=fine_steps, chunk=chunk)[-1]
            features = [walk.value(feature) for feature in self.features[i]]
            if features and (last_step or i + 1 < len(steps)):
                self.weights[i] = ridge_weights(features, goal - walk.values[number], self.ridge)
            state = walk.values[number]
            before = root_mean_square(state - goal)
            for weight, feature in zip(self.weights[i], features, strict=True):
                state = state + float(weight) * feature
            walk.values[number] = state
            self.residuals.append((before, root_mean_square(state - goal)))
        self.end_error = mean_error(walk.values[self.plain.result] - self.fit.states[-1])

    def labelled(self, base: str, kind: str) -> Table:
        """The calibrated table, with its frame and how it was made."""
        table = with_features(self.plain, self.features, self.weights)
        what = {"differences": "", "slopes": "slopes", "mean-slope": "mean slopes"}.get(kind, "the noise")
        weights = [[float(g) for g in step] for step in self.weights]
        options = {"base": base, "base_options": self.plain.options, "features": kind, "weights": weights}
        frame = _AMPLITUDE.format(what=what) if what else table.frame
        labelled = replace(table, method="iia", frame=frame, options=options)
        check(labelled)
        return labelled


def ridge_weights(features: Sequence[Tensor], target: Tensor, ridge: float) -> Array:
    """γ that minimises ‖target − Σ γ_k features_k‖² + ridge·Σ (‖features_k‖·γ_k)², in float64."""
    columns = torch.stack([f.detach().to(torch.float64).flatten() for f in features])
    gram = (columns @ columns.T).cpu().numpy()
    goal = (columns @ target.detach().to(torch.float64).flatten()).cpu().numpy()
    length = np.sqrt(np.diag(gram))
    length[length == 0.0] = 1.0  # a feature that vanishes gets no weight
    scaled = gram / np.outer(length, length) + max(ridge, _TINY) * np.eye(len(length))
    return np.asarray(np.linalg.solve(scaled, goal / length) / length)
