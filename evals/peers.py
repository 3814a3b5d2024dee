"""Untuned samplers on a source: errors of methods × grids × analytic first steps against converged end points.

python -m pathline.evals.peers mixture.npz --guidance 7.5 --samples 64
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.samplers import Nodes, Table, build_table, make_nodes, plan
from pathline.samplers.calibrate.row_fits import mean_error
from pathline.samplers.calibrate.trajectories import Problem
from pathline.samplers.run_state import NonFiniteError

from .runners import start_state
from .settings import parse_integers, parse_spec
from .sources import Source
from .truth import dense_times

METHODS = (
    "ddim",
    *(f"ipndm:order={k}" for k in (2, 3, 4)),
    *(f"{name}:order={k}" for name in ("deis", "dpm++", "unipc", "exp-adams", "ipndm_v") for k in (2, 3)),
    *(f"ghvb:order={m}" for m in (1.8, 2.5, 3.5)),
)
"""Methods whose outputs equal the public implementations'."""
GRIDS = ("karras", "logsnr", "time")
PUBLISHED: dict[float, dict[int, float]] = {
    1.0: {3: 0.111, 4: 0.066, 5: 0.043, 6: 0.036, 8: 0.0197, 10: 0.0125},
    7.5: {3: 0.244, 4: 0.178, 5: 0.130, 6: 0.102, 8: 0.057, 10: 0.034},
}
"""Best of about 430 public settings, searched ones included, on another fit of the same mixture."""
_TRUTH_STEPS = {True: 240, False: 120}
_CHUNK = 64


class Setting(NamedTuple):
    """An untuned sampler: texts of a method with its options (`afs` among them), and of a grid."""

    method: str
    grid: str

    def __str__(self) -> str:
        return f"{self.method} {self.grid}"


@dataclass(frozen=True)
class Found:
    """A setting and its error."""

    error: float
    setting: Setting


def settings_of(methods: Iterable[str], grids: Iterable[str], *, analytic: bool = True) -> Iterator[Setting]:
    """Methods × grids, each also with an analytic first step where `analytic`."""
    for method, grid, afs in itertools.product(methods, grids, (False, True) if analytic else (False,)):
        joint = "," if ":" in method else ":"
        yield Setting(f"{method}{joint}afs=unit" if afs else method, grid)


class Bench:
    """Start noises of a source and their converged end points.

    Parameters
    ----------
    source : Source
    guidance : float
        1 is the network itself.
    samples, seed : int
    """

    def __init__(self, source: Source, *, guidance: float = 1.0, samples: int = 256, seed: int = 0) -> None:
        indices = range(samples)
        guided = None if guidance == 1.0 else source.guidance(guidance)
        self.path = source.path
        self.problem = Problem(source.model, source.path, source.prediction, guided, source.kwargs(indices))
        self.start = start_state(source, seed, indices, torch.float32)
        steps = _TRUTH_STEPS[guidance != 1.0]
        self.end = self.run(plan(self.path, "exp-adams", order=3, grid=dense_times(self.path, steps)))
        self._nodes = lru_cache(maxsize=None)(self._make_nodes)

    def _make_nodes(self, grid: str, steps: int) -> Nodes:
        spec = parse_spec(grid)
        return make_nodes(self.path, spec.name, steps, **spec.options)

    def table(self, setting: Setting, nfe: int) -> Table:
        """The setting's table of most steps with at most `nfe` calls.

        Raises
        ------
        ValueError
            One step costs more, or the setting is not possible on the path.
        """
        method = parse_spec(setting.method)
        for steps in range(nfe + 1, 0, -1):
            table = build_table(method.name, self._nodes(setting.grid, steps), **method.options)
            if table.evaluations <= nfe:
                return table
        raise ValueError(f"nfe={nfe!r} is below what one step of {setting.method!r} costs")

    def error(self, setting: Setting, nfe: int, samples: int | None = None) -> float:
        """Mean over the first `samples` (all by default) of the RMSE per value, with at most `nfe` calls.

        Infinite where the run leaves the range of numbers.
        """
        try:
            return self.distance(self.run(self.table(setting, nfe), samples), samples)
        except NonFiniteError:
            return float("inf")

    def distance(self, out: Tensor, samples: int | None = None) -> float:
        """Mean over the first samples of the RMSE per value between `out` and the converged end points."""
        return mean_error(out - self.end[:samples])

    def best(self, nfe: int, settings: Iterable[Setting] | None = None, samples: int | None = None) -> list[Found]:
        """All settings, best first; those that are not possible at this budget are left out."""
        found = []
        for setting in settings_of(METHODS, GRIDS) if settings is None else settings:
            try:
                found.append(Found(self.error(setting, nfe, samples), setting))
            except ValueError:
                continue
        return sorted(found, key=lambda one: one.error)

    def run(self, table: Table, samples: int | None = None) -> Tensor:
        """Samples (B, ...) of a table from the first start noises."""
        batch = len(self.start)
        rows = slice(0, batch if samples is None else samples)
        return self.problem.part(rows, batch).run(table, self.start[rows], chunk=_CHUNK)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the best untuned settings on the CIFAR-10 bed beside the published ones."""
    from .mixture_bed import mixture_source

    parser = argparse.ArgumentParser(prog="python -m pathline.evals.peers", description=main.__doc__)
    parser.add_argument("mixture", type=Path, help="file written by python -m pathline.evals.mixture_bed")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--nfe", default="3-6,8,10")
    given = parser.parse_args(arguments)
    bench = Bench(mixture_source(given.mixture), guidance=given.guidance, samples=given.samples)
    for nfe in parse_integers(given.nfe):
        listed = PUBLISHED.get(given.guidance, {}).get(nfe)
        told = "" if listed is None else f", published {listed:g}"
        names = " | ".join(f"{one.error:.4f} {one.setting}" for one in bench.best(nfe)[:2])
        print(f"guidance {given.guidance:g}, {nfe} calls: {names}{told}", flush=True)


if __name__ == "__main__":
    main()
