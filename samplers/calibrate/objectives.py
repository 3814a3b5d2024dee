"""What a search makes small: errors to converged trajectories, a distance of features, or a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..analysis import Spectrum, SpectrumLike, as_spectrum, transfer
from ..anchors import missing_anchors
from ..run_state import Hook, NonFiniteError, RunState
from ..table import Table
from .extractor import Extractor, digest_of
from .learned import condition_means
from .row_fits import Reference
from .trajectories import Problem, mean_error

_GROUPING = 0.02


class Objective(Protocol):
    """A number for a table, smaller is better; infinite where the run is not finite.

    Attributes
    ----------
    name : str
        Told apart from others by a saved search, with the JSON values of an attribute `identity` where there is one.
    samples : int
        Network calls of one judgement for each call of the table.
    """

    name: str
    samples: int

    def __call__(self, table: Table) -> float:
        """The number."""
        ...


class EndPointError:
    """Mean over samples of the RMSE per value to the converged end points.

    Parameters
    ----------
    problem : Problem
        Of these samples.
    x_init, ends : Tensor (B, ...)
    chunk : int, optional
        Largest batch given to the network.
    anchors : mapping of Tensor (B, ...), optional
        For tables that have them.
    """

    name = "end point"

    def __init__(
        self,
        problem: Problem,
        x_init: Tensor,
        ends: Tensor,
        chunk: int | None = None,
        anchors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.problem, self.x_init, self.ends, self.chunk = problem, x_init, ends, chunk
        self.anchors = dict(anchors or {})
        self.samples = len(x_init)

    def __call__(self, table: Table) -> float:
        """The error, or infinity; costs B·N calls."""
        given = {name: self.anchors[name] for name in table.anchors if name in self.anchors}
        try:
            out = self.problem.run(table, self.x_init, chunk=self.chunk, anchors=given)
            found = mean_error(out - self.ends)
        except NonFiniteError:
            return math.inf
        return found if math.isfinite(found) else math.inf


class TrajectoryError:
    """Mean of the end-point error and the errors of all states that the network is called at, over their scale.

    Parameters
    ----------
    reference : Reference
        Converged trajectories of the samples.
    """

    name = "trajectory"

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.samples = len(reference.start)

    def __call__(self, table: Table) -> float:
        """The error, or infinity; costs B·N calls."""
        seen = _Queries()
        reference = self.reference
        total, count = 0.0, 0
        try:
            for rows, part in reference.problem.chunks(self.samples, reference.chunk):
                seen.states = []
                out = part.run(table, reference.start[rows], hooks=[seen])
                errors = [mean_error(out - reference.end[rows])]
                for k, query in seen.states:
                    level = table.rows[k].level
                    if level.lam > reference.lam[0]:
                        scale = math.hypot(level.signal, level.noise)
                        errors.append(mean_error(query - reference.at(level)[rows]) / scale)
                total += sum(errors) / len(errors) * len(out)
                count += len(out)
        except NonFiniteError:
            return math.inf
        return total / count if math.isfinite(total) else math.inf


class _Queries(Hook):
    def __init__(self) -> None:
        self.states: list[tuple[int, Tensor]] = []

    def before_model(self, run: RunState, query: Tensor) -> None:
        self.states.append((run.row, query))


class FeatureDistance:
    """Fréchet distance between features of a table's samples and of a reference set.

    Parameters
    ----------
    problem : Problem
    x_init : Tensor (B, ...)
    features : callable Tensor (B, ...) -> Tensor (B, F), or a sequence of them that are joined
        Not the one that results are reported with.
    target : Tensor (M, F)
        Features of the reference set: data, or converged samples.
    name : str
        Of the extractor; tables found with it are not judged in its space, see `extractor.check_judge`.
    chunk : int, optional

    Attributes
    ----------
    extractor : Extractor
        Features and name.
    marker : dict
        What such a table keeps of the extractor.
    identity : dict
        Extractor and target.

    Raises
    ------
    ValueError
        Fewer than two samples on either side, or a target that is not a finite matrix.
    """

    def __init__(
        self,
        problem: Problem,
        x_init: Tensor,
        features: Callable[[Tensor], Tensor | Sequence[Tensor]],
        target: Tensor,
        *,
        name: str = "features",
        chunk: int | None = None,
    ) -> None:
        if target.ndim != 2 or len(target) < 2 or not bool(torch.isfinite(target).all()):
            raise ValueError(f"target has shape {tuple(target.shape)}; a finite matrix of at least 2 rows is needed")
        if len(x_init) < 2:
            raise ValueError(f"x_init holds {len(x_init)} samples; a distance of features needs at least 2")
        self.problem, self.x_init, self.target = problem, x_init, target
        self.name, self.chunk, self.samples = f"distance of {name}", chunk, len(x_init)
        self.extractor = Extractor(features, name)
        self.marker = self.extractor.marker
        self.identity = {**self.marker, "target": digest_of({"target": target})}
        self._means: dict[str, Tensor] | None = None

    def on(self, problem: Problem, x_init: Tensor) -> FeatureDistance:
        """The same distance of samples from other starts, whose conditions belong to `problem`."""
        given = self.extractor
        return FeatureDistance(problem, x_init, given.features, self.target, name=given.name, chunk=self.chunk)

    def counted_by(self, problem: Problem) -> FeatureDistance:
        """The same with its calls counted by another problem."""
        own = self.problem
        return self.on(replace(problem, model_kwargs=own.model_kwargs, guidance=own.guidance), self.x_init)

    def __call__(self, table: Table) -> float:
        """The distance, or infinity; costs B·N calls, and at most B once where a table needs condition means."""
        try:
            out = self.problem.run(table, self.x_init, chunk=self.chunk, anchors=self._anchors(table))
        except NonFiniteError:
            return math.inf
        if not bool(torch.isfinite(out).all()):
            return math.inf
        with torch.no_grad():
            return frechet(torch.cat([layer.flatten(1) for layer in self.extractor.of(out)], 1), self.target)

    def _anchors(self, table: Table) -> dict[str, Tensor]:
        if not missing_anchors(table):
            return {}
        if self._means is None:
            self._means = condition_means(self.problem, self.x_init, self.chunk)
        return self._means


def frechet(first: Tensor, second: Tensor) -> float:
    """|Δmean|² + tr(C + C' − 2(CC')^½) of two sets of features (n, F) and (m, F), biased as small sets are.

    With centred sets A, B the last term is the sum of singular values of A·Bᵀ/√((n − 1)(m − 1)), which needs no
    covariance and no matrix root. Of a set larger than F its triangular factor says the same.
    """
    a, b = first.detach().double(), second.detach().double()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    a, b = (a - a.mean(0)) / math.sqrt(len(a) - 1), (b - b.mean(0)) / math.sqrt(len(b) - 1)
    a, b = (torch.linalg.qr(c, mode="r").R if len(c) > c.shape[1] else c for c in (a, b))
    common = torch.linalg.svdvals(a @ b.T).sum()
    return float(apart + a.square().sum() + b.square().sum() - 2.0 * common)


class GaussianError:
    """RMSE per value on Gaussian data, in closed form: no network call.

    Parameters
    ----------
    spectra : see `analysis.as_spectrum`, or a sequence of Spectrum
        Of several the worst counts, each relative to the spread of its data.

    Raises
    ------
    ValueError
        As `as_spectrum`.
    """

    name = "Gaussian transfer"
    samples = 0

    def __init__(self, spectra: SpectrumLike | Sequence[Spectrum]) -> None:
        several = isinstance(spectra, (list, tuple)) and all(isinstance(s, Spectrum) for s in spectra)
        given: list[Any] = list(spectra) if several else [spectra]  # type: ignore[arg-type]
        self.spectra = [as_spectrum(s).grouped(_GROUPING) for s in given]

    def __call__(self, table: Table) -> float:
        """The error; ValueError for tables that Gaussian data do not fit."""
        if len(self.spectra) == 1:
            return transfer(table, self.spectra[0]).rmse
        return max(transfer(table, s).rmse / s.spread for s in self.spectra)
