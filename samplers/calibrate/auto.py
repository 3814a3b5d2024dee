"""`choose`: method, levels and fitted parts for one network and budget, by their error on trajectories kept out.

Cheap candidates come first: untuned methods on named grids. What is fitted afterwards must beat the best of them on the
same hold-out, so that the choice is never worse there than no calibration at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..fitted import described_fit
from ..grids import make_nodes
from ..nodes import Nodes
from ..run_state import NonFiniteError
from ..sampling import plan
from ..table import Table
from .compensation import search_ratios
from .integration import fit_integration
from .learned import learn_rows
from .level_search import gits
from .trajectories import Problem, Trajectories, reference_states, root_mean_square

UNTUNED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("dpm++", {"order": 2}),
    ("dpm++", {"order": 3}),
    ("ipndm", {"order": 2}),
    ("ipndm", {"order": 3}),
    ("ipndm", {"order": 2, "afs": True}),
    ("ipndm", {"order": 3, "afs": True}),
    ("deis", {"order": 3}),
    ("ghvb", {}),
    ("ddim", {}),
)
GRIDS = ("logsnr", "karras", "time", "shifted", "linspace")
_FIRST_LOOK = 4  # samples on which every untuned candidate runs; the best quarter of them goes on
_RATIO_SAMPLES = 10  # as published
_REFERENCE = 48  # network calls of one converged end point, about


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes
    ----------
    name : str
    error : float
        RMSE per value on the hold-out; infinite where the run was not finite.
    calls : int
        Network calls that finding and judging it took.
    table : Table or None
        None where it was not tried; then `note` says why.
    tuned : bool
    note : str
    """

    name: str
    error: float
    calls: int
    table: Table | None
    tuned: bool = False
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """The table of least hold-out error, and everything that was tried, best first.

    Attributes
    ----------
    table : Table
        With its provenance, see `fitted.described_fit`.
    error, untuned_error : float
        Hold-out errors of the choice and of the best untuned candidate.
    trials : tuple of Trial
    calls : int
        Network calls in all.
    """

    table: Table
    error: float
    untuned_error: float
    trials: tuple[Trial, ...]
    calls: int


def choose(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    hold_out: int | None = None,
    chunk: int | None = None,
    facts: dict[str, Any] | None = None,
    report: Callable[[Trial], None] | None = None,
) -> Choice:
    """Find the best table of `nfe` calls for a network.

    Tried in this order, each while the problem's budget pays for it: untuned methods on named grids (all on a few
    samples, the best quarter on the whole hold-out), levels of GITS, compensation ratios, least-squares weights (IIA),
    learned rows.

    Parameters
    ----------
    problem : Problem
        Its budget bounds the network calls of everything together.
    x_init : Tensor (B, ...)
        Starts; the conditions of these samples belong to the problem.
    nfe : int ≥ 1
    hold_out : int, optional
        The last samples, which judge and are never fitted to; by default a third.
    chunk : int, optional
        Largest batch given to the network.
    facts : dict of JSON values, optional
        Kept in the table's provenance: the network's hash, seeds, versions.
    report : callable, optional
        Called with every trial as it ends.

    Raises
    ------
    ValueError
        Fewer than two samples to fit or to judge.
    BudgetError
        Before the first call, when the budget does not pay for the hold-out and one candidate.
    """
    held = max(2, len(x_init) // 3) if hold_out is None else hold_out
    if not 2 <= held <= len(x_init) - 2:
        raise ValueError(
            f"hold_out={held!r} of {len(x_init)} samples is not possible; at least 2 are needed to judge and to fit"
        )
    before = problem.calls
    problem.require(held * (_REFERENCE + nfe), f"a hold-out of {held} samples")
    search = _Search(problem, x_init, nfe, held, chunk, report)
    search.untuned()
    for name, attempt in search.fits():
        search.attempt(name, attempt)
    tried = sorted((t for t in search.trials if t.table is not None), key=lambda t: t.error)
    best, plain = tried[0], next(t for t in tried if not t.tuned)
    if best.table is None or not math.isfinite(best.error):
        raise NonFiniteError(f"none of {len(tried)} candidates of {nfe} calls gave finite samples")
    calls = problem.calls - before
    known: dict[str, Any] = {
        "nfe": nfe,
        "samples": len(x_init),
        "holdout_samples": held,
        "holdout_error": best.error,
        "calls": calls,
    }
    known |= {"untuned_error": plain.error, "chosen": best.name, **(facts or {})}
    fit = described_fit(path=problem.path, prediction=problem.prediction, guidance=problem.guidance, **known)
    rest = [t for t in search.trials if t.table is None]
    return Choice(replace(best.table, provenance=fit), best.error, plain.error, (*tried, *rest), calls)


class _Search:
    """The hold-out with its converged ends, and the trials so far."""

    def __init__(
        self,
        problem: Problem,
        x_init: Tensor,
        nfe: int,
        held: int,
        chunk: int | None,
        report: Callable[[Trial], None] | None,
    ) -> None:
        self.problem, self.x_init, self.nfe, self.held = problem, x_init, nfe, held
        self.chunk, self.report = chunk, report
        self.trials: list[Trial] = []
        batch = len(x_init)
        rows = slice(batch - held, batch)
        whole = make_nodes(problem.path, "logsnr", 1)
        part = problem.part(rows, batch)
        ends = reference_states(part, x_init[rows], whole, per_step=_REFERENCE, chunk=chunk)
        self.judge = Trajectories(part, x_init[rows], ends)
        self.fitted = problem.part(slice(0, batch - held), batch)
        self.starts = x_init[: batch - held]

    def error(self, table: Table, count: int | None = None) -> float:
        """Hold-out error of a table, of its first `count` samples only if given."""
        judge = self.judge
        if count is not None:
            rows = slice(0, count)
            judge = Trajectories(judge.problem.part(rows, self.held), judge.x_init[rows], judge.states[:, rows])
        try:
            found = root_mean_square(judge.problem.run(table, judge.x_init, chunk=self.chunk) - judge.states[-1])
        except NonFiniteError:
            return math.inf
        return found if math.isfinite(found) else math.inf

    def note(self, trial: Trial) -> None:
        """Keep a trial and report it."""
        self.trials.append(trial)
        if self.report is not None:
            self.report(trial)

    def untuned(self) -> None:
        """Named methods on named grids: all on a few samples, the best quarter on the whole hold-out."""
        tables: dict[str, Table] = {}
        for method, options in UNTUNED:
            for grid in GRIDS:
                try:
                    table = plan(self.problem.path, method, nfe=self.nfe, grid=grid, **options)
                except ValueError:
                    continue  # too few calls for this method, or levels that it cannot use
                tables[f"{method} {_worded(options)}on {grid}"] = table
        few = min(_FIRST_LOOK, self.held)
        affordable = (
            int(self.problem.calls_left // (2 * few * self.nfe))
            if math.isfinite(self.problem.calls_left)
            else len(tables)
        )
        names = list(tables)[: max(1, affordable)]
        first = {name: self.error(tables[name], few) for name in names}
        ranked = sorted(first, key=lambda name: first[name])
        plain = [name for name in ranked if _levels(tables[name]) == self.nfe]  # levels that fits can start from
        going_on = dict.fromkeys([*ranked[: -(-len(ranked) // 4)], *plain[:1]])
        for name in going_on:
            if self.trials and self.problem.calls_left < self.held * self.nfe:
                break
            before = self.problem.calls
            error = self.error(tables[name])
            self.note(Trial(name, error, self.problem.calls - before, tables[name]))

    def fits(self) -> Iterator[tuple[str, Callable[[], Table]]]:
        """What is fitted, from cheap to dear, on the levels of the best untuned candidate or on levels of its own."""
        problem, starts, chunk = self.fitted, self.starts, self.chunk
        # what is fitted calls the network at every level, so an analytic first step would be a level too many
        best = min((t for t in self.trials if _levels(t.table) == self.nfe), key=lambda t: t.error, default=None)
        if best is None or best.table is None:
            return
        levels = best.table.nodes
        nodes = Nodes(levels["signal"], levels["noise"], levels["time"], problem.path)
        some = starts[:_RATIO_SAMPLES]

        def integration() -> Table:
            return fit_integration(problem, nodes, starts, features="differences+noise", chunk=chunk).table

        def compensation() -> Table:
            part = problem.part(slice(0, len(some)), len(starts))
            return search_ratios(part, nodes, some, base="unipc", base_options={"order": 2}, chunk=chunk).table

        def rows() -> Table:
            return learn_rows(problem, starts, self.nfe, holdout=0.25, chunk=chunk).table

        def own_levels(order: int) -> Table:
            return plan(None, "ipndm", grid=gits(problem, starts, nodes.steps, chunk=chunk).nodes, order=order)

        yield f"IIA on the levels of {best.name}", integration
        yield f"DC UniPC-2 on the levels of {best.name}", compensation
        yield "learned rows", rows
        for order in (2, 3):
            yield f"ipndm-{order} on GITS levels", partial(own_levels, order)

    def attempt(self, name: str, fit: Callable[[], Table]) -> None:
        """Fit and judge, or say that the budget does not pay for it."""
        before = self.problem.calls
        try:
            self.problem.require(self.held * self.nfe, "the hold-out")
            table = fit()
            if table.evaluations > self.nfe:
                raise ValueError(f"it takes {table.evaluations} calls instead of {self.nfe}")
            error = self.error(table)
        except (NonFiniteError, ValueError) as reason:  # the budget, or too few steps for this fit
            self.note(Trial(name, math.inf, self.problem.calls - before, None, tuned=True, note=str(reason)))
            return
        self.note(Trial(name, error, self.problem.calls - before, table, tuned=True))


def _levels(table: Table | None) -> int:
    """Number of steps of a table."""
    return 0 if table is None else len(table.nodes["signal"]) - 1


def _worded(options: dict[str, Any]) -> str:
    return "".join(f"{key}={value} " for key, value in options.items())
