"""Bias and spread of particle methods on laws known in closed form. `python -m pathline.evals.smc_study --out out/smc`.

Every run gives one estimate; over `runs` seeds their mean less the truth is the bias and their standard deviation the
spread. Plain guidance follows the composed score without weights.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, GaussianMixture, GaussianPath, VPPath
from pathline.samplers.smc import Branch, Composition, HeavyTailWarning, ParticleResult, Policy, smc_sample

from .files import write_text

_VP = VPPath(beta_min=0.1, beta_max=20.0)
WAYS: dict[str, dict[str, Any]] = {
    "plain guidance": {"weights": "none"},
    "weights only": {"policy": Policy(ess=0.0)},
    "weights, resampling": {"policy": Policy(ess=0.5)},
    "exact weights, resampling": {"weights": "exact", "policy": Policy(ess=0.5)},
}


@dataclass(frozen=True)
class Problem:
    """A composition whose answer is known.

    Attributes
    ----------
    name : str
    target : Composition
    path : GaussianPath
    statistic : function of states (B, 1), whose mean is `truth`
    truth : float
    zeta : noise scale of the weighted runs with continuous weights
    """

    name: str
    target: Composition
    path: GaussianPath
    statistic: Callable[[Tensor], Tensor]
    truth: float
    zeta: float = 1.0


def _branch(weight: float, data: GaussianMixture, path: GaussianPath) -> Branch:
    def density(x: Tensor, level: Any) -> Tensor:
        return data.log_density(x, level.signal, level.noise)

    return Branch(weight, model=data.as_model(path), log_density=density)


def _first(x: Tensor) -> Tensor:
    return x[:, 0]


def _below_zero(x: Tensor) -> Tensor:
    return (x[:, 0] < 0).double()


def problems() -> list[Problem]:
    """Guidance, annealing, a product and a reward, in one dimension."""

    def normal(mean: float, variance: float) -> GaussianMixture:
        return GaussianMixture([1.0], [[mean]], std=math.sqrt(variance))

    mixture = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], std=[0.5, 1.0])
    modes = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], std=0.5)
    exploding = EDMPath(sigma_min=0.02, sigma_max=10.0)
    guidance = Composition((_branch(2.0, normal(1, 1), _VP), _branch(-1.0, normal(0, 4), _VP)))
    product = Composition((_branch(1.0, normal(-1, 1), _VP), _branch(1.0, normal(1, 0.25), _VP)))
    tilted = Composition((_branch(1.0, modes, _VP),)).tilted(lambda x: x[:, 0] / 2)
    cold = Composition((_branch(2.0, mixture, exploding),))
    return [
        Problem("guidance, w = 2", guidance, _VP, _first, 8 / 7),
        Problem("annealing, β = 2", cold, exploding, _below_zero, 0.667906, math.sqrt(3.0)),
        Problem("product of two", product, _VP, _first, 0.6, math.sqrt(3.0)),
        Problem("reward", tilted, _VP, _first, 1.648188),
    ]


def estimate(problem: Problem, way: str, particles: int, steps: int, seed: int) -> ParticleResult:
    """One run."""
    options = dict(WAYS[way])
    if options.get("weights") == "exact":
        steps += 1  # the last, to noise 0, is left out
    elif way != "plain guidance":
        options["noise_scale"] = problem.zeta
    model = problem.target.branches[0].model
    assert model is not None
    grid = "karras" if isinstance(problem.path, EDMPath) else "logsnr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeavyTailWarning)
        return smc_sample(model, problem.target, (1,), particles, path=problem.path, steps=steps, grid=grid,
                          seed=seed, prediction="data", dtype=torch.float64, **options)  # fmt: skip


def measure(problem: Problem, way: str, particles: int, steps: int, runs: int) -> dict[str, Any]:
    """Bias and spread over `runs` seeds, as a row."""
    found = [estimate(problem, way, particles, steps, seed) for seed in range(runs)]
    values = np.array([float(result.mean(problem.statistic)) for result in found])
    return {
        "problem": problem.name,
        "way": way,
        "particles": particles,
        "steps": steps,
        "bias": float(values.mean() - problem.truth),
        "spread": float(values.std(ddof=1)),
        "error": float(values.std(ddof=1) / math.sqrt(runs)),
        "ess": float(np.mean([result.ess for result in found]) / particles),
        "ancestors": float(np.mean([result.genealogy.unique for result in found]) / particles),
    }


def study(counts: Sequence[int], lengths: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """Every problem and way: over `counts` of particles at 100 steps, and over `lengths` with 256 particles."""
    sizes = [*((count, 100) for count in counts), *((256, length) for length in lengths)]
    rows = []
    for problem in problems():
        for way in WAYS:
            for particles, steps in dict.fromkeys(sizes):
                rows.append(measure(problem, way, particles, steps, runs))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def draw_study(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Bias (full) and spread (dashed) against particles and against steps, one row of panels for each problem."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(10.0, 2.6 * len(names) + 0.8), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for name, line in zip(names, panels, strict=True):
        for axis, key, other, fixed in zip(
            line, ("particles", "steps"), ("steps", "particles"), (100, 256), strict=True
        ):
            for k, way in enumerate(WAYS):
                own = [row for row in rows if (row["problem"], row["way"], row[other]) == (name, way, fixed)]
                own.sort(key=lambda row: row[key])
                at = [row[key] for row in own]
                axis.errorbar(at, [abs(row["bias"]) for row in own], [row["error"] for row in own], marker="o",
                              color=f"C{k}", label=way, linewidth=1.4, elinewidth=0.6)  # fmt: skip
                axis.plot(at, [row["spread"] for row in own], "--", marker="o", markerfacecolor="none", color=f"C{k}",
                          linewidth=0.9, markersize=4)  # fmt: skip
            axis.set(xscale="log", yscale="log", xlabel=f"{key} ({fixed} {other})", title=name)
            axis.set_ylim(1e-3, None)
            ticks = sorted({row[key] for row in rows if row[other] == fixed})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
    panels[0, 0].set_ylabel("|bias| (full), spread (dashed)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(out, dpi=80)


def study_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows at 256 particles and 100 steps as a table in Markdown."""
    lines = ["| law | way | bias | spread | ESS / N | ancestors / N |", "|---|---|---|---|---|---|"]
    for row in rows:
        if (row["particles"], row["steps"]) == (256, 100):
            bias = f"{row['bias']:+.3f} ± {row['error']:.3f}"
            weighed = row["way"] != "plain guidance"
            shares = (f"{row['ess']:.2f}", f"{row['ancestors']:.2f}") if weighed else ("", "")
            lines.append(f"| {row['problem']} | {row['way']} | {bias} | {row['spread']:.3f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the particle methods; writes smc.json, smc.md and smc.png."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.smc_study", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/smc"), help="folder to write to")
    parser.add_argument("--runs", type=int, default=16, help="seeds of each estimate (at least 2)")
    parser.add_argument("--particles", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 100, 400])
    given = parser.parse_args(arguments)
    if given.runs < 2:
        parser.error(f"--runs {given.runs} gives no spread; at least 2 are needed")
    torch.set_num_threads(1)
    rows = study(given.particles, given.steps, given.runs)
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "smc.json", json.dumps(rows, indent=1))
    write_text(given.out / "smc.md", study_table(rows) + "\n")
    draw_study(rows, given.out / "smc.png")


if __name__ == "__main__":
    main()
