"""What calibration gains: fitted tables beside untuned and searched public samplers, on the same new noises.

python -m pathline.evals.calibration_study mixture:file=mixture.npz --guidance 7.5 --class_means --out guided.json
python -m pathline.evals.calibration_study out/digits --features pca:32 --out digits.json

Fits see the noises of one seed, errors are those of another. The result has an entry for each budget and is taken up
where it stopped; tables are kept in a folder beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pathline.samplers import Table, plan
from pathline.samplers.calibrate.auto import choose
from pathline.samplers.calibrate.model_statistics import measure_statistics
from pathline.samplers.calibrate.trajectories import Problem
from pathline.samplers.calibrate.trials import Trial
from pathline.samplers.defaults import GUIDED
from pathline.samplers.ems import ModelStatistics

from .calibration_distance import Judge, run_table
from .defaults import candidates, measure, open_bed
from .files import write_text
from .peers import Bench
from .runners import start_state
from .settings import parse_integers
from .sources import Source
from .stock_peers import best_stock

_NEW_SEED = 1
_FIT_SEED = 0
_SEARCHED = ("DC ", "IIA ", "ipndm-2 on GITS", "ipndm-3 on GITS")
"""How names of trials begin that are public samplers with a search of their own."""
_V3 = tuple((order, grid, afs) for order in (2, 3) for grid in ("logsnr", "karras", "time") for afs in (False, True))


@dataclass(frozen=True)
class Effort:
    """What a study spends.

    Attributes
    ----------
    trajectories, hold_out : int
        Starts that fits see, and those that choose among them.
    budget : int or None
        Network calls of one calibration.
    samples, screen, keep : int
        New noises; on how many of them every untuned setting runs; settings that run on all.
    statistics : int
        Data samples from which the statistics of DPM-Solver-v3 are measured; 0 leaves it out.
    class_means, stock : bool
        Whether tables may need the mean of each class; whether diffusers' schedulers run too.
    """

    trajectories: int
    hold_out: int
    budget: int | None
    samples: int
    screen: int
    keep: int
    statistics: int
    class_means: bool
    stock: bool


class Study:
    """One source at one guidance.

    Parameters
    ----------
    source : Source
    guidance : float
        1 is the network itself.
    effort : Effort
    folder : Path
        For tables and statistics.
    """

    def __init__(self, source: Source, guidance: float, effort: Effort, folder: Path) -> None:
        self.source, self.guidance, self.effort, self.folder = source, guidance, effort, folder
        self.bench = Bench(source, guidance=guidance, samples=effort.samples, seed=_NEW_SEED)
        self._statistics: ModelStatistics | None = None

    def cell(self, nfe: int) -> dict[str, Any]:
        """Errors and calls of everything at a budget; the tables named in it are in the folder."""
        effort = self.effort
        untuned = min(
            measure(self.bench, nfe, candidates(nfe), screen=effort.screen, keep=effort.keep),
            key=lambda found: (found[2] < effort.samples, found[1]),
        )
        default = plan(self.source.path, nfe=nfe, prediction=self.source.prediction, guided=self.guidance > GUIDED)
        choice = choose(
            *self._problem(effort.trajectories + effort.hold_out, effort.budget),
            nfe,
            hold_out=effort.hold_out,
            condition_means=effort.class_means,
        )
        searched = {name: self.error(table) for name, table in self._searched(nfe, choice.trials)}
        tables = {
            "untuned": self.bench.table(untuned[0], nfe),
            "default": default,
            "calibrated": choice.table,
        }
        for name, table in tables.items():
            table.save(self.table_file(nfe, name))
        found: dict[str, Any] = {
            "untuned": [untuned[1], str(untuned[0])],
            "default": [self.error(default), default.method],
            "searched": searched,
            "calibrated": [self.error(choice.table), choice.trials[0].name],
            "hold_out": [choice.error, choice.untuned_error],
            "calls": choice.calls,
        }
        if effort.stock:
            best = best_stock(self.bench, nfe, screen=effort.screen, keep=effort.keep)[0]
            found["stock"] = [best.error, str(best.setting)]
        return found

    def table_file(self, nfe: int, name: str) -> Path:
        """Where a table of a budget is kept."""
        return self.folder / f"{name}-{nfe}.safetensors"

    def error(self, table: Table) -> float:
        """Mean over the new noises of the RMSE per value to the converged end point."""
        return self.bench.distance(run_table(self.bench.problem, table, self.bench.start))

    def _problem(self, count: int, budget: int | None, seed: int = _FIT_SEED) -> tuple[Problem, Tensor]:
        source, indices = self.source, range(count)
        guidance = None if self.guidance == 1.0 else source.guidance(self.guidance)
        problem = Problem(source.model, source.path, source.prediction, guidance, source.kwargs(indices), budget)
        return problem, start_state(source, seed, indices, torch.float32)

    def _searched(self, nfe: int, trials: Sequence[Trial]) -> Iterator[tuple[str, Table]]:
        for trial in trials:
            if trial.table is not None and trial.name.startswith(_SEARCHED):
                yield trial.name, trial.table
        if not self.effort.statistics:
            return
        for order, grid, afs in _V3:
            options: dict[str, Any] = {"order": order, "afs": "unit" if afs else False}
            options["statistics"] = self.statistics()
            try:
                table = plan(self.source.path, "dpm-solver-v3", nfe=nfe, grid=grid, **options)
            except ValueError:
                continue  # too few steps for the order
            yield f"DPM-Solver-v3 order {order} on {grid}{', afs' if afs else ''}", table

    def statistics(self) -> ModelStatistics:
        """Those of DPM-Solver-v3, measured on the run's own end points where it is guided, else on the data."""
        if self._statistics is None:
            count = self.effort.statistics
            problem, x = self._problem(count, None, seed=2)
            data = run_table(problem, plan(self.source.path, "unipc", steps=30, grid="logsnr", order=3), x)
            self._statistics = measure_statistics(problem, data, resume=self.folder / "statistics.npz")
        return self._statistics


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure calibrated tables beside public samplers and write their errors."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.calibration_study", description=main.__doc__)
    parser.add_argument("source", help="as for pathline sweep, or mixture:file=FILE[,path=linear]")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--nfe", default="3-6,8,10")
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--hold_out", type=int, default=32)
    parser.add_argument("--budget", type=int, help="network calls of one calibration; by default no bound")
    parser.add_argument("--samples", type=int, default=256, help="new noises")
    parser.add_argument("--screen", type=int, default=16, help="new noises on which every untuned setting runs")
    parser.add_argument("--keep", type=int, default=12, help="untuned settings that run on all")
    parser.add_argument("--statistics", type=int, default=0, help="data samples for DPM-Solver-v3; 0 leaves it out")
    parser.add_argument("--class_means", action="store_true", help="tables may need the mean of each class")
    parser.add_argument("--stock", action="store_true", help="diffusers' schedulers too")
    parser.add_argument("--features", help="feature space of the distances, as for pathline sweep; none by default")
    parser.add_argument("--images", type=int, default=5000, help="samples for the distances")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    source = open_bed(given.source)
    effort = Effort(**{name: getattr(given, name) for name in Effort.__dataclass_fields__})
    folder = given.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {"source": source.name, "guidance": given.guidance, "effort": vars(effort)}
    found = json.loads(given.out.read_text()) if given.out.exists() else {**told, "cells": {}}
    if {key: found[key] for key in told} != told:
        raise SystemExit(f"{given.out} holds a study of other settings; give --out another name")
    study, cells = Study(source, given.guidance, effort, folder), found["cells"]
    judge = None if given.features is None else Judge(source, given.guidance, given.features, given.images)
    for nfe in map(str, tqdm(parse_integers(given.nfe), desc=given.out.stem)):
        if nfe not in cells:
            cells[nfe] = study.cell(int(nfe))
            write_text(given.out, json.dumps(found, indent=1))
        if judge is not None and "distance" not in cells[nfe]:
            names = ("untuned", "default", "calibrated")
            tables = {name: Table.load(study.table_file(int(nfe), name)).released() for name in names}
            cells[nfe]["distance"] = {name: judge.distance(table) for name, table in tables.items()}
            found["converged_distance"] = judge.floor
            write_text(given.out, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
