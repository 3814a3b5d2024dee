"""What every calibration starts from: a network whose calls are counted, and its converged trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import PREDICTIONS, DiscretePath, EDMPath, GaussianPath, VEPath, unknown_name

from ..fitted import described_fit
from ..guidance import ClassifierFree, Guidance
from ..loop import check_start, run
from ..nodes import Nodes, points_at, times_at
from ..numerics import Array
from ..registry import build_table
from ..run_state import Hook, RunState
from ..table import Table

_BEYOND = 2.5  # how far past the default range of λ a reference goes where the path allows it
_FEWEST = 2  # reference steps inside any step
_ORDER = 4


class BudgetError(ValueError):
    """A calibration asks for more network calls than its budget; raised before the call."""


@dataclass
class _Meter:
    calls: int = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """A network to calibrate for; itself a model, whose calls are guided and counted.

    `problem(x, t, **model_kwargs)` is the guided output, so that a problem can be given to `run` and `sample` in the
    place of a model (without guidance, which would be applied twice; a table fitted under guidance as `released()`).

    Attributes
    ----------
    model : callable (x, t, **model_kwargs) -> output, t of shape (B,) the path's time
    path : GaussianPath
    prediction : {"data", "noise", "velocity", "v", "score"}
    guidance : Guidance, optional
    model_kwargs : mapping
        Tensors whose first dimension is the batch are cut with it (see `part`), also those of `ClassifierFree`.
    budget : int, optional
        Most network calls: one sample once through the network is 1, and so is a guided pair.
    reserve : int
        Calls of the budget that are kept for something else.

    Raises
    ------
    ValueError
        A model or guidance that cannot be called, an unknown prediction, a budget below 1.
    """

    model: Callable[..., Tensor]
    path: GaussianPath
    prediction: str = "data"
    guidance: Guidance | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    reserve: int = 0
    _meter: _Meter = field(default_factory=_Meter, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("model", self.model), ("guidance", self.guidance)):
            if not callable(value) and (value is not None or name == "model"):
                raise ValueError(f"{name}={value!r} is not possible; it must be callable")
        if not isinstance(self.path, GaussianPath):
            raise ValueError(f"path={self.path!r} is not possible; calibration works on Gaussian paths")
        if self.prediction not in PREDICTIONS:
            raise unknown_name("prediction", self.prediction, PREDICTIONS)
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget={self.budget!r} is not possible; it must be at least 1 network call")

    @property
    def calls(self) -> int:
        """Network calls so far, those of all parts together."""
        return self._meter.calls

    @property
    def calls_left(self) -> float:
        """Calls that the budget still pays for; infinite without one."""
        return math.inf if self.budget is None else self.budget - self.reserve - self.calls

    def require(self, calls: int, purpose: str) -> None:
        """Raise BudgetError unless the budget pays for `calls` more; `purpose` is named in the message."""
        if calls > self.calls_left:
            raise BudgetError(
                f"{purpose} needs {calls} network calls, but of budget={self.budget} only {self.calls_left} are left"
            )

    def charge(self, calls: int) -> None:
        """Count network calls that are not made through `problem(...)`, such as what a derivative costs beside it."""
        self._meter.calls += calls

    def fitted(self, table: Table, **facts: Any) -> Table:
        """`table` with a provenance: this path, prediction and guidance, and `facts` in JSON values."""
        known = described_fit(path=self.path, prediction=self.prediction, guidance=self.guidance, **facts)
        return replace(table, provenance=known)

    def one_condition(self, batch: int) -> bool:
        """Whether all samples of a batch have the same condition, so that one of them stands for the others."""
        guidance = self.guidance
        given = [*self.model_kwargs.values()]
        given += guidance.unconditional.values() if isinstance(guidance, ClassifierFree) else ()
        own = [value for value in given if isinstance(value, Tensor) and value.shape[:1] == (batch,)]
        return all(bool((value == value[:1]).all()) for value in own)

    def part(self, rows: slice | Tensor, batch: int) -> Problem:
        """The problem of some samples of a batch: what belongs to each sample is cut, calls are counted together."""
        guidance = self.guidance
        if isinstance(guidance, ClassifierFree):
            guidance = replace(guidance, unconditional=_cut(guidance.unconditional, rows, batch))
        return replace(self, model_kwargs=_cut(self.model_kwargs, rows, batch), guidance=guidance)

    def chunks(self, batch: int, size: int | None) -> Iterator[tuple[slice, Problem]]:
        """Slices of at most `size` samples and the problem of each."""
        size = batch if size is None else size
        if size < 1:
            raise ValueError(f"chunk={size!r} is not possible; it must be at least 1")
        for start in range(0, batch, size):
            rows = slice(start, min(start + size, batch))
            yield rows, self.part(rows, batch)

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Guided output of the network at states (B, ...) and times (B,); costs B calls.

        Raises
        ------
        BudgetError
            Before the call, when the budget does not pay for it.
        """
        self.require(len(x), f"a batch of {len(x)}")
        self._meter.calls += len(x)
        if self.guidance is None:
            return self.model(x, t, **kwargs)
        return self.guidance(self.model, x, t, dict(kwargs))

    def run(self, table: Table, x_init: Tensor, *, chunk: int | None = None, **options: Any) -> Tensor:
        """Samples (B, ...) of a table, in batches of at most `chunk`; options are those of `samplers.run`.

        Tensors of `anchors` whose first dimension is the batch are cut with it.
        """
        parts, batch, anchors = [], len(x_init), dict(options.pop("anchors", None) or {})
        for rows, part in self.chunks(batch, chunk):
            out = run(
                table,
                part,
                x_init[rows],
                prediction=self.prediction,
                model_kwargs=part.model_kwargs,
                samples=range(rows.start, rows.stop),
                anchors=_cut(anchors, rows, batch),
                **options,
            )
            assert isinstance(out, Tensor)
            parts.append(out)
        return torch.cat(parts)


def _cut(values: Mapping[str, Any], rows: slice | Tensor, batch: int) -> dict[str, Any]:
    return {
        key: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (batch,) else value
        for key, value in values.items()
    }


def sample_errors(residual: Tensor) -> Tensor:
    """Root mean square per value of each sample's residual: (B,), float64, from (B, ...)."""
    return residual.detach().double().flatten(1).square().mean(1).sqrt()


def mean_error(residual: Tensor) -> float:
    """Mean over samples of the root mean square per value of residuals (B, ...): the error of all calibrations.

    A sample that ends in another mode than its reference then weighs no more than its distance; in the root mean
    square of all it would hide the others.
    """
    return float(sample_errors(residual).mean())


def root_mean_square(difference: Tensor) -> float:
    """Root mean square per value, in float64."""
    return math.sqrt(float(difference.detach().to(torch.float64).square().mean()))


def reference_calls(nodes: Nodes, path: GaussianPath, per_step: int = 16) -> int:
    """Network calls that `reference_states` spends on one sample."""
    return len(_refined_lam(nodes, path, per_step)[0]) - 1


def reference_states(
    problem: Problem, x_init: Tensor, nodes: Nodes, *, per_step: int = 16, chunk: int | None = None
) -> Tensor:
    """The converged solution of the probability-flow ODE at every node, exact in the nodes' times.

    A predictor-corrector of order 5 (UniPC with exact weights) runs on a grid that holds all nodes and is otherwise
    even in λ. Where λ is infinite at an end of the path, the grid first goes 2.5 beyond the path's default range.

    Parameters
    ----------
    problem : Problem
        Supplies the path; `nodes` must lie on it. Time labels of `nodes` are not used.
    x_init : Tensor (B, ...)
        States at node 0.
    nodes : Nodes
        N + 1 nodes.
    per_step : int ≥ 2
        Reference steps for each step of `nodes`, on average; the cost is about B·N·per_step calls.
    chunk : int, optional
        Largest batch given to the network.

    Returns
    -------
    Tensor (N + 1, B, ...), float32 or wider.

    Raises
    ------
    BudgetError
        Before the first call, when the budget does not pay for all of it.
    NonFiniteError
        The network's outputs made a state non-finite.
    ValueError
        per_step out of range, nodes that do not lie on the problem's path, or x_init that is not a finite batch.
    """
    check_start(x_init, problem.guidance)
    lam, places = _refined_lam(nodes, problem.path, per_step)
    fine = _nodes_at(problem.path, lam, places, nodes)
    table = build_table("unipc", fine, order=_ORDER, variant="exact", lower_order_final=False)
    problem.require(table.evaluations * len(x_init), f"{len(x_init)} reference trajectories")
    wide = torch.promote_types(x_init.dtype, torch.float32)
    states = x_init.new_empty((nodes.steps + 1, *x_init.shape), dtype=wide)
    for rows, part in problem.chunks(len(x_init), chunk):
        part.run(table, x_init[rows], hooks=[_Recorder(states[:, rows], places)])
    return states


class _Recorder(Hook):
    """Copies the states at the given rows of a table of one call per node, and its result, into `states`."""

    def __init__(self, states: Tensor, places: list[int]) -> None:
        self.states = states
        self.index = {place: i for i, place in enumerate(places)}

    def before_model(self, run: RunState, query: Tensor) -> None:
        if run.row in self.index:
            self.states[self.index[run.row]] = query

    def after_row(self, run: RunState) -> None:
        if run.row == len(run.table.rows) - 1:
            self.states[-1] = run.values[run.table.result]


def _refined_lam(nodes: Nodes, path: GaussianPath, per_step: int) -> tuple[Array, list[int]]:
    """λ of the reference grid, and where the nodes stand in it."""
    if per_step < _FEWEST:
        raise ValueError(f"per_step={per_step!r} is not possible; it must be at least {_FEWEST}")
    low, high = converged_range(path)
    ends = [(float(a), float(b)) for a, b in zip(nodes.lam[:-1], nodes.lam[1:], strict=True)]
    finite = [
        (a if math.isfinite(a) else min(low, b - _BEYOND), b if math.isfinite(b) else max(high, a)) for a, b in ends
    ]
    total = sum(b - a for a, b in finite) or 1.0  # the last step of a trained schedule alone has no length in λ
    lam, places = [float(nodes.lam[0])], [0]
    for (a, b), (first, last) in zip(ends, finite, strict=True):
        pieces = max(_FEWEST, round(per_step * nodes.steps * (last - first) / total))
        inner = np.linspace(first, last, pieces + 1)
        lam += [*(float(v) for v in inner if a < v < b), b]
        places.append(len(lam) - 1)
    return np.array(lam), places


def converged_range(path: GaussianPath) -> tuple[float, float]:
    """Range of λ that references cover: wider than samplers use where λ is infinite at an end of the path.

    The range of a trained noise schedule is not left.
    """
    low, high = path.lambda_min, path.lambda_max
    if math.isinf(float(path.lam(0.0))):
        low -= _BEYOND
    if math.isinf(float(path.lam(1.0))) and not isinstance(path, (DiscretePath, EDMPath, VEPath)):
        high += _BEYOND
    return low, high


def _nodes_at(path: GaussianPath, lam: Array, places: list[int], nodes: Nodes) -> Nodes:
    signal, noise, _, _ = points_at(path, times_at(path, lam))
    signal[places], noise[places] = nodes.signal, nodes.noise
    return Nodes(signal, noise, path=path)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Samples of a problem and their converged states.

    Attributes
    ----------
    problem : Problem
        With the conditions of these samples.
    x_init : Tensor (B, ...)
        States at node 0, in the network's precision.
    states : Tensor (N + 1, B, ...)
        `reference_states` at the nodes.
    """

    problem: Problem
    x_init: Tensor
    states: Tensor

    def end_error(self, table: Table, *, chunk: int | None = None) -> float:
        """`mean_error` of a table's samples to the converged end; costs its calls."""
        return mean_error(self.problem.run(table, self.x_init, chunk=chunk) - self.states[-1])


def prepare(
    problem: Problem,
    x_init: Tensor,
    nodes: Nodes,
    *,
    hold_out: int = 0,
    references: Tensor | None = None,
    per_step: int = 16,
    chunk: int | None = None,
) -> tuple[Trajectories, Trajectories | None]:
    """Trajectories to fit to, and the last `hold_out` of the batch, which are only looked at afterwards.

    Parameters
    ----------
    problem, x_init, nodes, per_step, chunk : as in `reference_states`
    hold_out : int ≥ 0
        Number of samples kept out; 0 gives None.
    references : Tensor (N + 1, B, ...), optional
        Converged states that are known already, computed otherwise.

    Raises
    ------
    ValueError
        Nothing left to fit to, or references of another shape or that are not finite.
    BudgetError, NonFiniteError
        As in `reference_states`.
    """
    batch = len(x_init)
    if not 0 <= hold_out < batch:
        raise ValueError(
            f"hold_out={hold_out!r} is not possible; it must leave at least 1 of {batch} samples to fit to"
        )
    if references is None:
        references = reference_states(problem, x_init, nodes, per_step=per_step, chunk=chunk)
    if tuple(references.shape) != (nodes.steps + 1, *x_init.shape):
        shape = (nodes.steps + 1, *x_init.shape)
        raise ValueError(f"references has shape {tuple(references.shape)}; the states at all nodes have shape {shape}")
    if not bool(torch.isfinite(references).all()):
        raise ValueError("references holds NaN or infinite values")
    fitted, kept = slice(0, batch - hold_out), slice(batch - hold_out, batch)
    fit, check = (Trajectories(problem.part(r, batch), x_init[r], references[:, r]) for r in (fitted, kept))
    return fit, check if hold_out else None


def split(batch: int, holdout: float | int) -> tuple[int, int]:
    """Numbers of trajectories to fit to and to judge with.

    Raises
    ------
    ValueError
        One of them is none.
    """
    held = holdout if isinstance(holdout, int) else round(holdout * batch)
    if not 1 <= held < batch:
        raise ValueError(f"holdout={holdout!r} of {batch} trajectories is not possible; both parts need at least one")
    return batch - held, held
