"""The main job on real images: train a small generator on digits, compare samplers on it, and show the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from .images import load_images
from .previews import preview_path
from .report import Report, write_report
from .settings import SweepSettings
from .summary import sections
from .sweep import run_sweep
from .tables import print_sections
from .threads import quickest_threads

METHODS = (
    "ddim:eta=1.0",
    "euler",
    "heun",
    "dpm++:order=2",
    "unipc:order=3",
    "ipndm:order=3",
)
BUDGETS = (3, 5, 8, 12, 20)
TRAIN_STEPS = 1000
SAMPLES = 192
TRUTH_STEPS = 80
SHOWN = 64

Say = Callable[[str], None]


def demo_settings(model: Path) -> SweepSettings:
    """Six samplers at 3 to 20 evaluations, once through the library and once through a diffusers pipeline."""
    return SweepSettings(
        str(model),
        methods=METHODS,
        grids=("time",),
        nfe=BUDGETS,
        runners=("sample", "scheduler"),
        samples=SAMPLES,
        features="pca:16",
        truth_steps=TRUTH_STEPS,
        keep=SHOWN,
    )


def run_demo(out: str | Path, *, progress: bool = True, say: Say = print) -> Report:
    """Train, sweep and report under ``out``; whatever is already there is kept and reused.

    Parameters
    ----------
    out : path
        Folder of the model, the records and the report.
    progress : bool
        Show progress bars.
    say : callable
        Receives the sentences in between.

    Returns
    -------
    Report
    """
    folder = Path(out)
    began = time.perf_counter()
    records = folder / "records.jsonl"
    with quickest_threads(_training_step()):
        model = _trained(folder / "generator", progress, say)
        say(f"Comparing {len(METHODS)} samplers at {BUDGETS[0]} to {BUDGETS[-1]} evaluations …")
        result = run_sweep(demo_settings(model), records, progress=progress, say=say)
    report = write_report([records], folder, f"{len(METHODS)} samplers on a digit generator")
    grid = _show_samples(records, result.records[0]["facts"]["truth"], folder / "digits.png")
    print_sections(sections(result.records), keys=("fd", "rmse"))
    say(f"Finished in {time.perf_counter() - began:.0f} s ({result.new} of {len(result.records)} results were new).")
    say(f"Open {report.page} for tables, plots and samples in one page.")
    say(f"Generated digits: {grid}   Plots: {folder}/fd-vs-nfe.png, {folder}/rmse-vs-nfe.png   Records: {records}")
    say(f"Diffusers pipeline: {model}   Next: pathline sweep {model} --methods 'unipc:order=2 dpm++' --nfe 5,10")
    return report


def _training_step() -> Callable[[], None]:
    """A step of the training to come, to find out how many threads it is worth."""
    from pathline.training import build_network, default_config

    network = build_network(default_config("unet", (1, 8, 8)))
    x, labels = torch.zeros(64, 1, 8, 8), torch.zeros(64)

    def step() -> None:
        network(x, labels).sample.square().mean().backward()

    return step


def _trained(folder: Path, progress: bool, say: Say) -> Path:
    """The trained pipeline, from disk, from its last checkpoint, or from scratch."""
    from pathline.training import TrainingInterruptedError, train_model

    if (folder / "pathline.json").is_file():
        say(f"Using the generator in {folder}.")
        return folder
    resumed = any(folder.glob("checkpoint-*"))
    say("Training a small generator on 1,797 real digit images, about two minutes on two cores …")
    try:
        train_model(
            output_dir=str(folder),
            split="all",
            max_train_steps=TRAIN_STEPS,
            progress=progress,
            resume_from_checkpoint="latest" if resumed else None,
            cpu=True,
        )
    except TrainingInterruptedError as error:
        raise KeyboardInterrupt from error
    return folder


def _show_samples(records: Path, key: str, out: Path) -> Path:
    """A grid of the converged samples, enlarged so that an eye can read them."""
    from pathline.training import save_preview

    images = load_images(preview_path(records, key))
    save_preview(out, images[:SHOWN])
    return out
