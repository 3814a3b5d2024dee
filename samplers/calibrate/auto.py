"""`choose`: method, levels and fitted parts for one network and budget, by their error on trajectories kept out.

Or by a distance of features of samples that are none of those.

Cheap candidates come first: untuned methods on named grids. What is fitted afterwards must beat the best of them on the
same hold-out, so that the choice is never worse there than no calibration at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, unknown_name

from ..analysis import Spectrum
from ..anchors import missing_anchors
from ..fitted import described_fit
from ..grids import make_nodes
from ..loop import check_start
from ..nodes import Nodes
from ..numerics import Array
from ..run_state import NonFiniteError
from ..table import Table
from .extractor import KEY
from .fitters import AUTO, FITTERS, Fit, FitTask
from .learned import condition_means
from .objectives import FeatureDistance
from .resume import Parts
from .row_fits import Reference, dense_nodes, make_reference, trajectory_calls
from .trajectories import Problem, reference_states, sample_errors
from .trials import Choice, Trial
from .untuned import DEFAULT, untuned_tables

_GRIDS_TRIED = 3  # on which a fit begins
_JUDGES = 8  # noises of a hold-out, where there are enough: one that changes mode decides among fewer
_FIRST_LOOK = (12, 4, 2, 1)  # samples on which every untuned candidate runs; the best quarter of them goes on
_LOOK_SHARE = 0.3  # of the budget, at most, where fewer samples still make it possible
_ENDS_SHARE = 0.2  # of the budget, at most, for converged ends of the hold-out as exact as those that are fitted to
_PIECE = 32  # trajectories that are computed, and kept, together
_REFERENCE = 48  # network calls of one where that is too much, about
_LEAST_DISTANCES = 4  # untuned candidates whose distance is taken, where the budget pays for them
_DISTANCES_SHARE = 0.5  # of the budget, at most, for distances of untuned candidates


def choose(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    method: str = "auto",
    hold_out: int | None = None,
    arrays: bool = True,
    analytic: bool = True,
    condition_means: bool = False,
    spectrum: Spectrum | None = None,
    distance: FeatureDistance | None = None,
    chunk: int | None = None,
    facts: dict[str, Any] | None = None,
    report: Callable[[Trial], None] | None = None,
    parts: Parts | None = None,
) -> Choice:
    """Find the best table of `nfe` calls for a network.

    Tried in this order, each while the problem's budget pays for it: untuned methods on named grids (all on a few
    samples, the best quarter on the whole hold-out), then the fits of `fitters.AUTO`.

    Parameters
    ----------
    problem : Problem
        Its budget bounds the network calls of everything together.
    x_init : Tensor (B, ...)
        Starts; the conditions of these samples belong to the problem.
    nfe : int ≥ 1
    method : str
        "auto": the table of least hold-out error of all, which is never worse there than the best untuned one. A name
        of `FITTERS`: the best table of that fit, whatever it gains.
    hold_out : int, optional
        The last samples, which judge and are never fitted to; by default a third, of few samples up to half.
    arrays : bool
        False chooses only among tables without arrays, which a .json file or a scheduler's config can hold.
    analytic : bool
        False chooses only among tables whose first call is at the start, without an analytic first step: diffusers'
        flow pipelines run no others.
    condition_means : bool
        True admits tables that must be given the mean of each sample's condition when they are run.
    spectrum : Spectrum, optional
        Of the data: admits tables fitted to it without a network call.
    distance : FeatureDistance, optional
        Compared in the place of the hold-out error, which is told all the same. Its samples should be none of `x_init`;
        the calls of its problem count here. "s3", "trained" and "ld3" make a distance in its features small themselves,
        the others the error. The table keeps the name of the extractor, and cannot be judged with it afterwards.
    chunk : int, optional
        Largest batch given to the network.
    facts : dict of JSON values, optional
        Kept in the table's provenance: the network's hash, seeds, versions.
    report : callable, optional
        Called with every trial as it ends.
    parts : Parts, optional
        Keeps what is finished.

    Raises
    ------
    ValueError
        An unknown method, nfe below 1, fewer than two samples to fit or to judge; or a named method that is not
        possible, with the reason.
    BudgetError
        Before the first call, when the budget does not pay for the hold-out and one candidate.
    NonFiniteError
        No candidate gave finite samples.
    """
    if method != "auto" and method not in FITTERS:
        raise unknown_name("calibration method", method, ["auto", *FITTERS])
    check_start(x_init, problem.guidance)
    held = max(2, min(_JUDGES, len(x_init) // 2), len(x_init) // 3) if hold_out is None else hold_out
    if nfe < 1:
        raise ValueError(f"nfe={nfe!r} is not possible; at least 1 call is needed")
    if not 2 <= held <= len(x_init) - 2:
        raise ValueError(
            f"hold_out={held!r} of {len(x_init)} samples is not possible; at least 2 are needed to judge and to fit"
        )
    before = problem.calls
    least, purpose = held * (_REFERENCE + nfe), f"a hold-out of {held} samples"
    if distance is not None:
        distance = distance.counted_by(problem)
        least, purpose = least + distance.samples * nfe, f"{purpose} and one distance of {distance.samples} more"
    problem.require(least, purpose)
    allowed = {"arrays": arrays, "analytic": analytic, "condition_means": condition_means}
    search = _Search(
        problem, x_init, nfe, held, allowed, chunk=chunk, report=report, parts=parts or Parts(), distance=distance
    )
    search.untuned()
    search.fits(AUTO if method == "auto" else (method,), spectrum)
    tried = sorted((t for t in search.trials if t.table is not None), key=lambda t: t.score)
    candidates = tried if method == "auto" else [t for t in tried if t.tuned]
    if not candidates:
        raise ValueError(f"method {method!r} found no table: " + "; ".join(t.note for t in search.trials if t.note))
    best, plain = candidates[0], next(t for t in tried if not t.tuned)
    if best.table is None or not math.isfinite(best.score):
        raise NonFiniteError(f"none of {len(candidates)} candidates of {nfe} calls gave finite samples")
    told: dict[str, Any] = {"nfe": nfe, "samples": len(x_init), "holdout_samples": held, "chosen": best.name}
    told |= {"holdout_error": best.error, "untuned_error": plain.error, "calls": problem.calls - before}
    told |= facts or {}
    table = _described(best.table, problem, distance, best, plain, told)
    others = [t for t in (*tried, *(t for t in search.trials if t.table is None)) if t is not best]
    objective = "error" if distance is None else distance.name
    trials = (replace(best, table=table), *others)
    return Choice(table, best.error, plain.error, trials, problem.calls - before, objective)


def _described(
    table: Table,
    problem: Problem,
    distance: FeatureDistance | None,
    best: Trial,
    plain: Trial,
    facts: dict[str, Any],
) -> Table:
    """The table with its provenance; the extractor is kept twice, as `released` drops the provenance."""
    options = table.options
    if distance is not None:
        facts = {**facts, "objective": distance.name, "holdout_distance": best.score, "untuned_distance": plain.score}
        facts |= {"distance_samples": distance.samples, KEY: distance.marker}
        options = {**options, KEY: distance.marker}
    fit = described_fit(path=problem.path, prediction=problem.prediction, guidance=problem.guidance, **facts)
    return replace(table, options=options, provenance={**table.provenance, **fit})


class _Search:
    """The hold-out with its converged ends, and the trials so far."""

    def __init__(
        self,
        problem: Problem,
        x_init: Tensor,
        nfe: int,
        held: int,
        allowed: dict[str, bool],
        *,
        chunk: int | None,
        report: Callable[[Trial], None] | None,
        parts: Parts,
        distance: FeatureDistance | None,
    ) -> None:
        self.distance, self.judging = distance, (held + (0 if distance is None else distance.samples)) * nfe
        self.problem, self.nfe, self.held, self.allowed = problem, nfe, held, allowed
        self.chunk, self.report, self.parts = chunk, report, parts
        self.trials: list[Trial] = []
        batch = len(x_init)
        judge, fit = slice(batch - held, batch), slice(0, batch - held)
        self.judge, self.judged = problem.part(judge, batch), x_init[judge]
        self.starts = x_init[fit]
        self.fitted = replace(problem.part(fit, batch), reserve=self.judging)  # for judging what is fitted

        def ends() -> Array:
            if held * trajectory_calls(problem) <= _ENDS_SHARE * problem.calls_left:
                found = make_reference(self.judge, self.judged, {}, chunk).end
            else:  # networks that are not smooth take more steps than these to converge
                whole = make_nodes(problem.path, "logsnr", 1)
                found = reference_states(self.judge, self.judged, whole, per_step=_REFERENCE, chunk=chunk)[-1]
            return np.asarray(found.cpu().numpy())

        self.ends = torch.as_tensor(parts.array("converged ends of the hold-out", problem, ends)).to(x_init.device)
        self._anchors: dict[str, Tensor] | None = None
        self._reference: Reference | None = None

    def errors(self, name: str, table: Table, first: int, last: int) -> Array:
        """Errors (last − first,) of hold-out samples, the first and one past the last of which are given."""
        rows = slice(first, last)

        def compute() -> Array:
            part, x = self.judge.part(rows, self.held), self.judged[rows]
            given = {key: value[rows] for key, value in self.anchors(table).items()}
            try:
                out = part.run(table, x, chunk=self.chunk, anchors=given)
            except NonFiniteError:
                return np.full(len(x), np.inf)
            return np.nan_to_num(sample_errors(out - self.ends[rows]).cpu().numpy(), nan=np.inf)

        return self.parts.array(f"errors of {name}, samples {first} to {last - 1}", self.problem, compute)

    def anchors(self, table: Table) -> dict[str, Tensor]:
        """What the table must be given on the hold-out."""
        if not missing_anchors(table):
            return {}
        if self._anchors is None:
            self._anchors = condition_means(self.judge, self.judged, self.chunk)
        return self._anchors

    def apart(self, name: str, table: Table) -> float | None:
        """Distance of the table's features, where that is what chooses."""
        judge = self.distance
        if judge is None:
            return None
        return float(self.parts.array(f"distance of {name}", self.problem, lambda: np.array([judge(table)]))[0])

    def reference(self) -> Reference:
        """Converged trajectories of the samples to fit to, computed when first asked for."""
        if self._reference is None:

            def states(part: Problem, x: Tensor) -> Array:
                return np.asarray(make_reference(part, x, {}, self.chunk).states.cpu().numpy())

            count = len(self.starts)
            self.fitted.require(count * trajectory_calls(self.fitted), f"{count} reference trajectories")
            found = [  # in pieces, so that one that is cut short does not lose all
                self.parts.array(
                    f"trajectories to fit to, from {rows.start}", self.problem, partial(states, part, self.starts[rows])
                )
                for rows, part in self.fitted.chunks(count, _PIECE)
            ]
            known = torch.as_tensor(np.concatenate(found, 1)).to(self.starts.device)
            nodes = dense_nodes(self.fitted)
            start = self.starts.to(known)
            self._reference = Reference(self.fitted, start, (), known, nodes.lam[:-1], nodes, self.chunk)
        return self._reference

    def note(self, trial: Trial) -> None:
        """Keep a trial and report it."""
        self.trials.append(trial)
        if self.report is not None:
            self.report(trial)

    def untuned(self) -> None:
        """Named methods on named grids: all on a few samples, the best quarter on the whole hold-out."""
        tables = untuned_tables(self.problem, self.nfe, analytic=self.allowed["analytic"])
        left = self.problem.calls_left
        cost = {min(look, self.held): self._look(min(look, self.held)) for look in _FIRST_LOOK}
        few = next((look for look in cost if cost[look] * len(tables) <= _LOOK_SHARE * left), min(cost))
        affordable = int(left / 2 // cost[few]) if math.isfinite(left) else len(tables)
        names = list(tables)[: max(1, affordable)]
        if len(names) < len(tables):
            without = f"{len(tables) - len(names)} of {len(tables)} untuned methods"
            note = f"budget={self.problem.budget} does not pay for a look at them"
            self.note(Trial(without, math.inf, 0, None, note=note))
        first = {name: self.errors(name, tables[name], 0, few) for name in names}
        ranked = sorted(first, key=lambda name: float(first[name].mean()))
        plain = [name for name in ranked if _levels(tables[name]) == self.nfe]  # levels that fits can start from
        best = [*ranked[: -(-len(ranked) // 4)], *plain[:1]]
        if self.distance is not None:  # what is near in error need not be near in features
            best = [*plain[:1], *(name for name in names if name == DEFAULT), *best, *ranked[:_LEAST_DISTANCES]]
            best = [
                name for k, name in enumerate(best) if not any(tables[b].rows == tables[name].rows for b in best[:k])
            ]
        kept = 0.0 if self.distance is None else (1.0 - _DISTANCES_SHARE) * left
        for place, name in enumerate(dict.fromkeys(best)):
            rest = self.held - few
            if place and self.problem.calls_left - kept < self.judging - few * self.nfe:
                break
            before = self.problem.calls
            errors = [first[name]] + ([self.errors(name, tables[name], few, self.held)] if rest else [])
            apart = self.apart(name, tables[name])
            spent = self.problem.calls - before + few * tables[name].evaluations
            self.note(Trial(name, float(np.concatenate(errors).mean()), spent, tables[name], distance=apart))

    def _look(self, few: int) -> float:
        """Network calls for each untuned method, of which a quarter goes on to the whole hold-out."""
        return self.nfe * (few + (self.held - few) / 4)

    def fits(self, methods: tuple[str, ...], spectrum: Spectrum | None) -> None:
        """All fits of the named kinds, on the levels of the best untuned candidate or on levels of their own."""
        # what is fitted calls the network at every level, so an analytic first step would be a level too many
        plain = [
            (t.error, t.name, t.table) for t in self.trials if t.table is not None and _levels(t.table) == self.nfe
        ]
        if not plain:
            return
        plain.sort(key=lambda found: found[0])
        _, name, base = plain[0]
        grids = _distinct([table.nodes for _, _, table in plain], self.problem.path)[:_GRIDS_TRIED]
        told: dict[str, Any] = {"chunk": self.chunk, "spectrum": spectrum, "file": self.parts.file, **self.allowed}
        told["distance"] = self.distance
        task = FitTask(self.fitted, self.starts, self.nfe, base, name, grids, self.reference, **told)
        for method in methods:
            for name, fit in FITTERS[method](task):
                self.attempt(name, fit)

    def attempt(self, name: str, fit: Fit) -> None:
        """Fit and judge, or say that the budget does not pay for it."""
        before = self.problem.calls

        def checked() -> Table:
            self.problem.require(self.judging, "the hold-out")
            table = fit()
            if table.evaluations > self.nfe:
                raise ValueError(f"it takes {table.evaluations} calls instead of {self.nfe}")
            self.check_allowed(table)
            return table

        try:
            table = self.parts.table(name, self.problem, checked)
            error = float(self.errors(name, table, 0, self.held).mean())
            apart = self.apart(name, table)
        except ValueError as reason:
            self.note(Trial(name, math.inf, self.problem.calls - before, None, tuned=True, note=str(reason)))
            return
        said = "; ".join(table.provenance.get("notes", ()))
        self.note(Trial(name, error, self.problem.calls - before, table, tuned=True, note=said, distance=apart))

    def check_allowed(self, table: Table) -> None:
        """Raise ValueError for a table of a kind that was not asked for."""
        if not self.allowed["arrays"] and not table.fits_json:
            raise ValueError("it has arrays, which were not asked for")
        if not self.allowed["analytic"] and not (table.rows[0].calls_network and table.rows[0].query == 0):
            raise ValueError("its first call is not at the start")
        if missing_anchors(table) and not self.allowed["condition_means"]:
            raise ValueError(f"it needs {', '.join(sorted(missing_anchors(table)))} whenever it is run")


def _levels(table: Table | None) -> int:
    """Number of steps of a table."""
    return 0 if table is None else len(table.nodes["signal"]) - 1


def _distinct(records: list[dict[str, Any]], path: GaussianPath) -> tuple[Nodes, ...]:
    """Nodes from what tables record of them, each once, in order."""
    once = dict[tuple[float, ...], dict[str, Any]]()
    for record in records:
        once.setdefault(tuple(record["time"]), record)
    return tuple(Nodes(each["signal"], each["noise"], each["time"], path) for each in once.values())
