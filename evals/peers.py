"""The best untuned setting on a test bed: methods × grids × analytic first steps against converged end points.

python -m pathline.evals.peers mixture.npz --guidance 7.5 --samples 64
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath
from pathline.samplers import ClassifierFree, Table, plan
from pathline.samplers.calibrate.row_fits import mean_error
from pathline.samplers.calibrate.trajectories import Problem

from .settings import parse_integers, parse_spec
from .truth import dense_times

METHODS = (
    "ddim",
    *(f"ipndm:order={k}" for k in (2, 3, 4)),
    *(f"{name}:order={k}" for name in ("deis", "dpm++", "unipc", "exp-adams", "ipndm_v") for k in (2, 3)),
    *(f"ghvb:order={m}" for m in (1.8, 2.5, 3.5)),
)
"""Methods whose outputs equal the public implementations'."""
GRIDS = ("karras", "logsnr", "time")
STARTS: tuple[str | None, ...] = (None, "unit")
PUBLISHED: dict[float, dict[int, float]] = {
    1.0: {3: 0.111, 4: 0.066, 5: 0.043, 6: 0.036, 8: 0.0197, 10: 0.0125},
    7.5: {3: 0.244, 4: 0.178, 5: 0.130, 6: 0.102, 8: 0.057, 10: 0.034},
}
"""Best of about 430 public settings, searched ones included, on another fit of the same mixture."""
_TRUTH_STEPS = {True: 240, False: 120}
_CHUNK = 64


@dataclass(frozen=True)
class Setting:
    """One untuned sampler and its error."""

    error: float
    method: str
    grid: str
    start: str | None


class Bench:
    """A conditional closed-form network, its start noises and their converged end points.

    Parameters
    ----------
    model : callable (x, t, labels)
        Data prediction; label −1 stands for all classes.
    path : GaussianPath
    shape : tuple of int
    classes : int
        Sample i gets class i mod `classes`.
    guidance : float
        1 is the conditional network.
    samples, seed : int
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        path: GaussianPath,
        shape: Sequence[int],
        classes: int,
        *,
        guidance: float = 1.0,
        samples: int = 256,
        seed: int = 0,
    ) -> None:
        labels = torch.arange(samples) % classes
        guided = None if guidance == 1.0 else ClassifierFree(guidance, {"labels": torch.full_like(labels, -1)})
        self.path, self.problem = path, Problem(model, path, "data", guided, {"labels": labels})
        self.start = path.prior((samples, *shape), torch.Generator().manual_seed(seed)).float()
        steps = _TRUTH_STEPS[guidance != 1.0]
        self.end = self.run(plan(path, "exp-adams", order=3, grid=dense_times(path, steps)))

    def error(self, method: str, grid: str, start: str | None, nfe: int) -> float:
        """Mean over samples of the RMSE per value, for a setting with at most `nfe` calls."""
        spec = parse_spec(method)
        options: Mapping[str, Any] = {**spec.options, **({"afs": start} if start else {})}
        out = self.run(plan(self.path, spec.name, nfe=nfe, grid=grid, **options))
        return mean_error(out - self.end)

    def best(self, nfe: int) -> list[Setting]:
        """All settings, best first; those that the budget is too small for are left out."""
        found = []
        for method, grid, start in itertools.product(METHODS, GRIDS, STARTS):
            try:
                found.append(Setting(self.error(method, grid, start, nfe), method, grid, start))
            except ValueError:  # fewer calls than one step of the method costs
                continue
        return sorted(found, key=lambda setting: setting.error)

    def run(self, table: Table) -> Tensor:
        """Samples (B, ...) of a table from the start noises."""
        return self.problem.run(table, self.start, chunk=_CHUNK)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the best untuned settings on the CIFAR-10 bed beside the published ones."""
    from .mixture_bed import ddpm_path, load_mixture

    parser = argparse.ArgumentParser(prog="python -m pathline.evals.peers", description=main.__doc__)
    parser.add_argument("mixture", type=Path, help="file written by python -m pathline.evals.mixture_bed")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--nfe", default="3-6,8,10")
    given = parser.parse_args(arguments)
    mixture, path = load_mixture(given.mixture), ddpm_path()
    bench = Bench(
        mixture.as_model(path, "data"), path, mixture.shape, 10, guidance=given.guidance, samples=given.samples
    )
    for nfe in parse_integers(given.nfe):
        first, second = bench.best(nfe)[:2]
        listed = PUBLISHED.get(given.guidance, {}).get(nfe)
        told = "" if listed is None else f", published {listed:g}"
        names = " | ".join(f"{s.error:.4f} {s.method} {s.grid} afs={s.start}" for s in (first, second))
        print(f"guidance {given.guidance:g}, {nfe} calls: {names}{told}", flush=True)


if __name__ == "__main__":
    main()
