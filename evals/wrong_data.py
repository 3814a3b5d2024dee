"""What wrong labels and biased data do to generators of digits, and what the losses that mend them make of it.

`python -m pathline.evals.wrong_data --out out/wrong-data` trains what is not there yet and prints two tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pathline.samplers import START_NOISE, keyed_normal, sample
from pathline.training import load_data, load_pipeline, train_model
from pathline.training.checkpoints import list_checkpoints

from .distances import frechet_from_moments
from .files import write_text

_CLASSES, _SEED, _NFE = 10, 7, 20
_NOISY: dict[str, Any] = {"class_conditional": True, "label_noise": "0.4", "corrupt_labels": True}
_BIASED: dict[str, Any] = {"simulated_bias": {"classes": [5, 6, 7, 8, 9], "kept": 0.1, "reference": 200}}
LABELS: dict[str, dict[str, Any]] = {
    "true labels": {"class_conditional": True},
    "labels as seen": {**_NOISY, "robust": False},
    "labels as seen, TDSM": _NOISY,
}
PROPORTIONS: dict[str, dict[str, Any]] = {
    "all digits": {},
    "both sets, plain loss": {**_BIASED, "robust": False},
    "both sets, TIW-DSM": _BIASED,
}
"""Options of each run by its name in the table."""


def digit_judge() -> Callable[[Tensor], NDArray[np.int64]]:
    """A support vector machine on all digits with right labels: images (N, 1, 8, 8) to classes (N,)."""
    from sklearn.svm import SVC

    digits = load_data("digits", split="all")
    labels = digits.targets
    assert labels is not None
    machine = SVC(gamma="scale", C=10.0).fit(digits.tensor().flatten(1).numpy(), labels.numpy())
    return lambda images: machine.predict(images.clamp(-1, 1).flatten(1).numpy())


@torch.no_grad()
def draw(folder: Path, count: int, labels: Tensor | None) -> Tensor:
    """Samples (count, 1, 8, 8) of a trained folder with 20 evaluations, the same noises for each."""
    loaded = load_pipeline(folder)
    noise = keyed_normal(loaded.shape, _SEED, torch.arange(count), row=START_NOISE)
    start = noise * float(loaded.path.noise(0.0))
    kwargs = {} if labels is None else {"class_labels": labels}
    made = sample(loaded.model, start, nfe=_NFE, model_kwargs=kwargs, chunk_size=256)
    assert isinstance(made, Tensor)
    return made


def label_figures(folder: Path, count: int) -> dict[str, float]:
    """Share of samples that are of the class asked for, and the mean distance to the class over all classes."""
    asked = torch.arange(count) % _CLASSES
    made = draw(folder, count, asked)
    digits = load_data("digits", split="all")
    assert digits.targets is not None
    right = float((torch.from_numpy(digit_judge()(made)) == asked).double().mean())
    whole = digits.tensor()
    apart = [distance(made[asked == kind], whole[digits.targets == kind]) for kind in range(_CLASSES)]
    return {"class asked for": right, "FD": float(np.mean(apart))}


def proportion_figures(folder: Path, count: int) -> dict[str, float]:
    """Share of the digits 5 to 9, total variation of the classes to equal shares, and the distance to all digits."""
    made = draw(folder, count, None)
    shares = np.bincount(digit_judge()(made), minlength=_CLASSES) / count
    variation = float(0.5 * np.abs(shares - 1 / _CLASSES).sum())
    return {
        "5 to 9": float(shares[5:].sum()),
        "TV": variation,
        "FD": distance(made, load_data("digits", split="all").tensor()),
    }


def distance(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance of pixels."""
    a, b = (part.double().flatten(1).numpy() for part in (first, second))
    return frechet_from_moments(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Runs with their figures as a Markdown table; shares in percent."""
    columns = [key for key in next(iter(found.values())) if key != "seconds"]
    lines = [f"| trained on | {' | '.join(columns)} |", "|" + "---|" * (1 + len(columns))]
    for name, figures in found.items():
        cells = [f"{figures[key]:.2f}" if key in ("FD", "TV") else f"{100 * figures[key]:.1f} %" for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on wrong labels and on biased data, and measure what is drawn."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.wrong_data", description=main.__doc__)
    parser.add_argument("--max_train_steps", type=int, default=600)
    parser.add_argument("--guide_steps", type=int, help="by default those of pathline train")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/wrong-data"))
    given = parser.parse_args(arguments)
    parts = ((LABELS, label_figures), (PROPORTIONS, proportion_figures))
    file, texts = given.out / "results.json", []
    results = json.loads(file.read_text()) if file.exists() else {}
    for runs, figures in parts:
        for name, special in tqdm(runs.items(), desc="runs"):
            if name in results:
                continue
            folder = given.out / name.replace(", ", "-").replace(" ", "-")
            options = {
                "output_dir": str(folder),
                "objective": "edm",
                "split": "all",
                "max_train_steps": given.max_train_steps,
                "seed": given.seed,
                "preview_images": 0,
                "resume_from_checkpoint": "latest" if list_checkpoints(folder) else None,
                **special,
            }
            if special.get("robust", True) and special not in ({}, LABELS["true labels"]):
                options["guide_steps"] = given.guide_steps
            trained = train_model(options)
            results[name] = {**figures(folder, given.samples), "seconds": trained.seconds}
            write_text(file, json.dumps(results, indent=1))
        texts.append(table({name: results[name] for name in runs}))
    write_text(given.out / "results.md", "\n".join(texts))
    print("\n".join(texts))


if __name__ == "__main__":
    main()
