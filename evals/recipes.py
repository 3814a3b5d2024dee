"""The recipes of `pathline.training`, trained and measured: tables, and a sheet of samples of each.

`python -m pathline.evals.recipes flow-matching edm --out out/recipes` trains what is not there yet, and goes on where
it was stopped.
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

from pathline.samplers import Table, plan
from pathline.samplers.calibrate.trajectories import Problem
from pathline.samplers.files import replacing
from pathline.training import list_recipes, read_recipe, save_preview, train_recipe
from pathline.training.checkpoints import list_checkpoints
from pathline.training.export import CARD_FILE

from . import restoration
from .calibration_distance import Judge, run_table
from .choice import untuned_choice
from .files import write_text
from .runners import start_state
from .settings import parse_integers
from .sources import Source, open_source

_SHOWN = 32
_SEED = 5
_RESTORED = 256
_TITLE = 36  # pixels above a sheet
_OPTIONS = ("max_train_steps", "train_batch_size", "resolution")
_SETTINGS = ("dataset_name", *_OPTIONS, "nfe", "features", "samples")
RESULTS, SHEET = "results.json", "samples.png"


def measure(folder: Path, budgets: Sequence[int], space: str, count: int) -> dict[str, Any]:
    """How good the samples of a trained folder are at several budgets; a sheet of them goes into the folder.

    Of a generator: Fréchet distances of `count` samples to its data, for the samples that `sample` draws without a
    method and for converged ones. Of a network that restores images: mean RMSE to the test images, and that of what it
    is given ("seen").
    """
    card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    if card.get("image_condition") is not None:
        return {"error": restoration.measure(folder, budgets, _RESTORED, folder / SHEET)}
    source = open_source(str(folder))
    judge = Judge(source, 1.0, space, count)
    found: dict[str, Any] = {}
    for nfe in budgets:
        found[str(nfe)] = judge.distance(_table(source, nfe))
    found["converged"] = judge.floor
    save_preview(folder / SHEET, _some_samples(source, max(budgets)), columns=_SHOWN // 2)
    return {"distance": found}


def kept_results(file: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Results of an earlier run by recipe, none if there is no file.

    Raises
    ------
    ValueError
        If they were taken with other settings, or do not say with which.
    """
    if not file.exists():
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    before = kept.get("settings", {})
    different = [
        f"{key} was {before.get(key)!r}, is {new!r}" for key, new in settings.items() if before.get(key) != new
    ]
    if "settings" not in kept or different:
        what = "; ".join(different) if "settings" in kept else "they are not said in the file"
        raise ValueError(f"{file} holds results of other settings: {what}; use the same, or another --out")
    results: dict[str, dict[str, Any]] = kept["results"]
    return results


def _some_samples(source: Source, nfe: int) -> Tensor:
    """The first samples of a source, (B, C, H, W)."""
    indices = range(_SHOWN)
    problem = Problem(source.model, source.path, source.prediction, None, source.kwargs(indices))
    with torch.no_grad():
        start = start_state(source, _SEED, indices, torch.float32)
        return run_table(problem, _table(source, nfe), start)


def _table(source: Source, nfe: int) -> Table:
    """The sampler that `pathline sample` takes without a method."""
    method, grid = untuned_choice(source, nfe)
    return plan(source.path, method.name, nfe=nfe, grid=grid.name, grid_options=grid.options, **method.options)


def table(results: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """Results of one kind, "distance" or "error", as a Markdown table."""
    rows = {name: found for name, found in results.items() if kind in found}
    if not rows:
        return ""
    columns = list(next(iter(rows.values()))[kind])
    lines = [f"| recipe | what it is | steps | minutes | {' | '.join(columns)} |", "|" + "---|" * (4 + len(columns))]
    for name, found in rows.items():
        cells = [f"{found[kind][key]:.3g}" for key in columns]
        row = [f"`{name}`", read_recipe(name).about, str(found["steps"]), f"{found['seconds'] / 60:.1f}", *cells]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def picture(folders: Mapping[str, Path], target: Path) -> None:
    """The sheets of all recipes in one PNG, each under its name."""
    from PIL import Image, ImageDraw

    parts = {name: Image.open(folder / SHEET) for name, folder in folders.items() if (folder / SHEET).exists()}
    if not parts:
        return
    width = max(image.width for image in parts.values())
    sheet = Image.new("RGB", (width, sum(image.height + _TITLE for image in parts.values())), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for name, image in parts.items():
        pen.text((4, top + 3), name, fill="black", font_size=_TITLE - 10)
        sheet.paste(image, (0, top + _TITLE))
        top += image.height + _TITLE
    with replacing(target, "wb") as stream:
        small = sheet.resize((sheet.width // 2, sheet.height // 2)).quantize(64)  # a third of the bytes
        small.save(stream, format="PNG", optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train recipes and measure their samples."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.recipes", description=main.__doc__)
    parser.add_argument("recipes", nargs="*", help=f"by default all: {', '.join(list_recipes())}")
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--max_train_steps", type=int, help="by default the preset's")
    parser.add_argument("--train_batch_size", type=int, help="by default the preset's")
    parser.add_argument("--resolution", type=int, help="by default that of the images")
    parser.add_argument("--nfe", default="5,10,20", help="network evaluations of the samples measured")
    parser.add_argument("--features", default="pca", help="feature space, as for pathline sweep")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("out/recipes"))
    given = parser.parse_args(arguments)
    file = given.out / RESULTS
    settings = {key: getattr(given, key) for key in _SETTINGS}
    results = kept_results(file, settings)
    for name in tqdm(given.recipes or list_recipes(), desc="recipes"):
        if name not in results:
            folder = given.out / name
            options: dict[str, Any] = {"output_dir": str(folder), "dataset_name": given.dataset_name}
            if list_checkpoints(folder):
                options["resume_from_checkpoint"] = "latest"
            options |= {key: getattr(given, key) for key in _OPTIONS if getattr(given, key) is not None}
            trained = train_recipe(name, options)
            found = measure(folder, parse_integers(given.nfe), given.features, given.samples)
            results[name] = {"steps": trained.steps, "seconds": trained.seconds, **found}
            write_text(file, json.dumps({"settings": settings, "results": results}, indent=1))
    text = "\n".join(filter(None, (table(results, kind) for kind in ("distance", "error"))))
    write_text(given.out / "results.md", text)
    picture({name: given.out / name for name in results}, given.out / "recipes.png")
    print(text)


if __name__ == "__main__":
    main()
