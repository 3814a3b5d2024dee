"""The recipes of `pathline.training`, trained and measured: one table and one picture.

`python -m pathline.evals.recipes flow-matching edm --out out/recipes` trains what is not there yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pathline.samplers import plan
from pathline.samplers.calibrate.trajectories import Problem
from pathline.training import list_recipes, read_recipe, save_preview, train_recipe

from .calibration_distance import Judge, run_table
from .files import write_text
from .runners import start_state
from .settings import parse_integers
from .sources import Source, open_source

_SHOWN = 32
_SEED = 5
RESULTS = "results.json"


def measure(folder: Path, budgets: Sequence[int], space: str, count: int) -> dict[str, Any]:
    """Fréchet distances {"5": ..., "converged": ...} of `count` samples of a trained folder to its data, by budget.

    Samples are those of `sample` without a method.
    """
    source = open_source(str(folder))
    judge = Judge(source, 1.0, space, count)
    found: dict[str, Any] = {}
    for nfe in budgets:
        found[str(nfe)] = judge.distance(plan(source.path, nfe=nfe, prediction=source.prediction))
    found["converged"] = judge.floor
    save_preview(folder / "samples.png", some_samples(source, max(budgets)), columns=_SHOWN // 2)
    return found


def some_samples(source: Source, nfe: int) -> Tensor:
    """The first samples of a source, (B, C, H, W)."""
    indices = range(_SHOWN)
    problem = Problem(source.model, source.path, source.prediction, None, source.kwargs(indices))
    with torch.no_grad():
        start = start_state(source, _SEED, indices, torch.float32)
        return run_table(problem, plan(source.path, nfe=nfe, prediction=source.prediction), start)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Results as a Markdown table."""
    budgets = list(next(iter(results.values()))["distance"])
    lines = [
        f"| recipe | what it is | steps | minutes | {' | '.join(budgets)} |",
        "|" + "---|" * (4 + len(budgets)),
    ]
    for name, found in results.items():
        cells = [f"{found['distance'][key]:.3g}" for key in budgets]
        row = [f"`{name}`", read_recipe(name).about, str(found["steps"]), f"{found['seconds'] / 60:.1f}", *cells]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train recipes and measure their samples."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.recipes", description=main.__doc__)
    parser.add_argument("recipes", nargs="*", help=f"by default all: {', '.join(list_recipes())}")
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--max_train_steps", type=int, help="by default the preset's")
    parser.add_argument("--nfe", default="5,10,20", help="network evaluations of the samples measured")
    parser.add_argument("--features", default="pca", help="feature space, as for pathline sweep")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("out/recipes"))
    given = parser.parse_args(arguments)
    file = given.out / RESULTS
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in tqdm(given.recipes or list_recipes(), desc="recipes"):
        if name not in results:
            folder = given.out / name
            options: dict[str, Any] = {"output_dir": str(folder), "dataset_name": given.dataset_name}
            options["max_train_steps"] = given.max_train_steps
            trained = train_recipe(name, options)
            distance = measure(folder, parse_integers(given.nfe), given.features, given.samples)
            results[name] = {"steps": trained.steps, "seconds": trained.seconds, "distance": distance}
            write_text(file, json.dumps(results, indent=1))
    write_text(given.out / "results.md", table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
