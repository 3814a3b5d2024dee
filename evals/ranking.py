"""Ranking methods and grids for a data set from its covariance alone: seconds, no network, no samples."""

from __future__ import annotations

import csv
import io
import json
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathline.interpolants import GaussianPath
from pathline.samplers import (
    Nodes,
    Table,
    build_table,
    grid_info,
    list_grids,
    list_methods,
    make_nodes,
    method_info,
    plan,
)
from pathline.samplers.analysis import Spectrum, transfer

from .files import write_text
from .moments import Moments
from .settings import Spec, parse_spec

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_VISIBLE = 1e-6
_USUAL = ("logsnr", "time", "karras")
CAUTION = (
    "Exact for Gaussian data and an exact network. Trained networks rank differently (most of all at high noise, where "
    "noise prediction says little of the data), guidance is outside the model, and below about 6 evaluations it is too "
    "trusting: take the leaders to a real comparison with pathline sweep."
)


@dataclass(frozen=True)
class Ranked:
    """One method on one grid.

    Attributes
    ----------
    method, grid : str
        Specs as `pathline sweep` takes them.
    nfe, evaluations : int
        Budget and what is spent of it.
    rmse : float
        Root mean square error per value to the probability-flow end point, or W2/√d where `stochastic`.
    w2 : float
        2-Wasserstein distance of the sampled law to the data; its square is the Fréchet distance in data space.
    worst_bias : float
        Standard deviation over the data's, along the direction where it is furthest from 1 (in the logarithm), of
        those with more than a millionth of the largest variance.
    """

    method: str
    grid: str
    nfe: int
    evaluations: int
    stochastic: bool
    rmse: float
    w2: float
    worst_bias: float


@dataclass(frozen=True)
class Ranking:
    """All pairs, best first within each budget.

    Attributes
    ----------
    rows : tuple of Ranked
    refused : tuple of str
        Pairs that cannot be run, with the reason.
    seconds : float
    """

    rows: tuple[Ranked, ...]
    refused: tuple[str, ...]
    seconds: float

    def of(self, nfe: int) -> list[Ranked]:
        """The rows of one budget, best first."""
        return [row for row in self.rows if row.nfe == nfe]


def spectrum_of(name: str) -> Spectrum:
    """The covariance spectrum of a data set by name, as `pathline stats` names it.

    Parameters
    ----------
    name : str
        Statistics or sample .npz, image folder, data set, or bed:NAME.

    Raises
    ------
    ValueError
        It cannot be read, or its statistics are those of features instead of pixels.
    """
    from .judge import named_data
    from .sources import BED_PREFIX, open_source

    if name.startswith(BED_PREFIX):
        exact = open_source(name).data().exact
        assert exact is not None
        return Spectrum.from_moments(*exact)
    data = named_data(name)
    if isinstance(data, Moments):
        space = data.metadata.get("features")
        if isinstance(space, dict) and space.get("space") != "raw":
            raise ValueError(f"{name} holds statistics of features {space}; a sampler needs those of the data (raw)")
        moments = data
    else:
        moments = Moments.of(data.samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer samples than values leave zeros in the spectrum, which is no harm here
        return Spectrum.from_moments(moments.mean, moments.covariance)


def default_methods(*, afs: bool = True) -> list[str]:
    """Every declared configuration of every method that starts from noise, and the deterministic ones with `afs`."""
    specs: list[str] = []
    for name in list_methods():
        info = method_info(name)
        if not info.requires:
            specs += [str(Spec(name, case.options)) for case in info.cases if _is_plain(case.options)]
    return list(dict.fromkeys([*specs, *(_with_afs(text) for text in specs if afs)]))


def _is_plain(options: dict[str, object]) -> bool:
    return not any(isinstance(v, (dict, list, tuple)) for v in options.values())  # a spec holds plain values


def _with_afs(text: str) -> str:
    spec = parse_spec(text)
    return str(Spec(spec.name, {**spec.options, "afs": True}))


def default_grids() -> list[str]:
    """Every grid that needs no option, the usual ones first."""
    names = [name for name in list_grids() if not grid_info(name).requires]
    return sorted(names, key=lambda name: (_USUAL.index(name) if name in _USUAL else len(_USUAL), name))


def rank(
    spectrum: Spectrum,
    path: GaussianPath,
    nfe: Sequence[int],
    methods: Iterable[str] | None = None,
    grids: Iterable[str] | None = None,
) -> Ranking:
    """Rank methods on grids by their error on Gaussian data.

    Parameters
    ----------
    spectrum : Spectrum
    path : GaussianPath
    nfe : sequence of int ≥ 1
        Budgets of evaluations.
    methods, grids : iterables of str, optional
        Specs; default `default_methods()` and `default_grids()`.

    Raises
    ------
    ValueError
        An unknown method or grid, or nothing that can be run.

    Notes
    -----
    States start as `path.prior` draws them, and errors are to the probability flow from there, as in `pathline sweep`.
    Grids that are the same on this path are ranked once.
    """
    began = time.perf_counter()
    hows = [parse_spec(text) for text in (default_methods() if methods is None else methods)]
    wheres = [parse_spec(text) for text in (default_grids() if grids is None else grids)]
    for spec in hows:
        method_info(spec.name)
    for spec in wheres:
        grid_info(spec.name)
    plans = _Plans(path, spectrum)
    wheres = plans.distinct(wheres)
    origin = float(path.signal(0.0)), float(path.noise(0.0))
    small = spectrum.grouped()
    rows: list[Ranked] = []
    refused: list[str] = []
    for budget in nfe:
        for how in hows:
            for where in wheres:
                try:
                    rows.append(_judge(plans.table(how, where, budget), small, origin, (how, where, budget)))
                except ValueError as error:
                    refused.append(f"{how} on {where}, NFE {budget}: {error}")
    if not rows:
        raise ValueError("nothing can be ranked; " + (refused[0] if refused else "no methods or no grids were given"))
    rows.sort(key=lambda row: (list(nfe).index(row.nfe), row.rmse, row.method, row.grid))
    return Ranking(tuple(rows), tuple(refused), time.perf_counter() - began)


def rank_data_set(
    stats: str,
    path: str,
    nfe: Sequence[int],
    methods: Iterable[str] | None = None,
    grids: Iterable[str] | None = None,
    *,
    afs: bool = True,
) -> Ranking:
    """`rank` by names, as the command line gives them; grids "gaussian" without a spectrum get the data's own.

    Raises
    ------
    ValueError
        As `rank`, and for data or a path that cannot be had.
    """
    from pathline.training.setup import make_path

    where = parse_spec(path)
    on = make_path(where.name, where.options)
    data = spectrum_of(stats)
    given = None if grids is None else list(grids)
    return rank(data, on, nfe, default_methods(afs=afs) if methods is None else methods, given)


class _Plans:
    """Tables with their nodes shared: a path is asked once for each grid and number of steps."""

    def __init__(self, path: GaussianPath, spectrum: Spectrum) -> None:
        self.path, self.spectrum = path, spectrum
        self._steps: dict[tuple[str, int], int] = {}
        self._nodes: dict[tuple[str, int], Nodes] = {}

    def table(self, how: Spec, where: Spec, budget: int) -> Table:
        """The table of most steps within a budget; what a step costs does not depend on where it lies."""
        if "method" in grid_info(where.name).options:
            options = {"spectrum": self.spectrum, **where.options}
            return plan(self.path, how.name, nfe=budget, grid=where.name, grid_options=options, **how.options)
        key = (str(how), budget)
        if key not in self._steps:
            self._steps[key] = self._affordable(how, where, budget)
        return build_table(how.name, self._on(where, self._steps[key]), **how.options)

    def distinct(self, wheres: list[Spec]) -> list[Spec]:
        """The grids that differ on this path: some are the same there under two names."""
        kept: dict[tuple[float, ...] | str, Spec] = {}
        for where in wheres:
            tuned = "method" in grid_info(where.name).options
            kept.setdefault(str(where) if tuned else tuple(np.round(self._on(where, 7).time, 9).tolist()), where)
        return list(kept.values())

    def _affordable(self, how: Spec, where: Spec, budget: int) -> int:
        for steps in range(budget + 1, 0, -1):  # one step more where the first call is analytic
            cost = build_table(how.name, self._on(where, steps), **how.options).evaluations
            if cost <= budget:
                return steps
        raise ValueError(f"one step costs more than {budget} evaluations")

    def _on(self, where: Spec, steps: int) -> Nodes:
        place = (str(where), steps)
        if place not in self._nodes:
            self._nodes[place] = make_nodes(self.path, where.name, steps, **where.options)
        return self._nodes[place]


def _judge(table: Table, spectrum: Spectrum, origin: tuple[float, float], cell: tuple[Spec, Spec, int]) -> Ranked:
    found = transfer(table, spectrum, start="prior", origin=origin)  # what a sweep does, its reference included
    known = found.bias[found.spectrum.values > _VISIBLE * found.spectrum.values.max()]
    worst = max(known, key=lambda b: max(b, 1 / b) if b > 0 else float("inf"))
    return Ranked(
        str(cell[0]), str(cell[1]), cell[2], table.evaluations, table.stochastic, found.rmse, found.w2, float(worst)
    )


def ranking_text(ranking: Ranking, top: int) -> str:
    """Tables of every budget, what was ranked, and how far to trust it."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=max(100, Console().width))
    for nfe in dict.fromkeys(row.nfe for row in ranking.rows):
        console.print(ranking_table(ranking, nfe, top))
    lines = [f"{len(ranking.rows)} pairs ranked in {ranking.seconds:.1f} s. {CAUTION}"]
    if ranking.refused:
        lines.append(f"{len(ranking.refused)} pairs left out; the first: {ranking.refused[0]}")
    return stream.getvalue() + "\n".join(lines)


def ranking_table(ranking: Ranking, nfe: int, top: int) -> RichTable:
    """The best rows of one budget for a terminal."""
    from rich.table import Table as Rich

    rows = ranking.of(nfe)
    distinct: dict[tuple[str, int, str, str], Ranked] = {}
    for row in rows:  # of one method under several names the first stands for all
        distinct.setdefault((row.grid, row.evaluations, f"{row.rmse:.10e}", f"{row.w2:.10e}"), row)
    table = Rich(
        title=f"NFE {nfe}: the best {min(top, len(rows))} of {len(rows)}",
        caption="RMSE per value to the probability flow (W2/√d for stochastic methods, marked *); equal ones once",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    table.add_column("grid", no_wrap=True)
    for heading in ("calls", "RMSE", "W2", "worst std ratio"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading) + 1)
    for row in list(distinct.values())[:top]:
        mark = "*" if row.stochastic else ""
        table.add_row(
            row.method,
            row.grid,
            str(row.evaluations),
            f"{row.rmse:.4g}{mark}",
            f"{row.w2:.4g}",
            f"{row.worst_bias:.4f}",
        )
    return table


def save_ranking(ranking: Ranking, out: Path) -> None:
    """Write all rows to .csv or .json.

    Raises
    ------
    ValueError
        Another suffix.
    """
    rows = [asdict(row) for row in ranking.rows]
    if out.suffix == ".json":
        write_text(out, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    elif out.suffix == ".csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(out, stream.getvalue())
    else:
        raise ValueError(f"a ranking is saved as .csv or .json, got {out.name!r}")
