"""The kinetic-optimal path of a data set: `python -m pathline.evals.kinetic_paths`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from pathline.interpolants import CosinePath, KineticOptimalPath, LinearPath
from pathline.training import estimate_separation, load_data

from .files import write_text


def fitted_path(
    data: torch.Tensor, *, pieces: int = 64, draws: int = 1024, floor: float = 0.01, seed: int = 0
) -> tuple[KineticOptimalPath, dict[str, float]]:
    """The path for samples (N, ...), and the kinetic energies per coordinate of it and of two others."""
    generator = torch.Generator().manual_seed(seed)
    path = estimate_separation(data, pieces=pieces, draws=draws, generator=generator).path(floor)
    rivals = {"kinetic-optimal": path, "linear": LinearPath(), "cosine": CosinePath()}
    return path, {name: path.energy_of(rival) for name, rival in rivals.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Estimate the data separation of images and write the options that train on the path of least energy."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.kinetic_paths", description=main.__doc__)
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--train_data_dir", help="a folder of images in place of a data set")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--images", type=int, default=10_000, help="images the posterior means run over, at most")
    parser.add_argument("--draws", type=int, default=1024)
    parser.add_argument("--pieces", type=int, default=64)
    parser.add_argument("--floor", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for pathline train --config")
    given = parser.parse_args(arguments)
    name = None if given.train_data_dir else given.dataset_name
    images = load_data(name, data_dir=given.train_data_dir, resolution=given.resolution)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(given.seed))[: given.images]
    settings = {key: getattr(given, key) for key in ("pieces", "draws", "floor", "seed")}
    path, energies = fitted_path(images.__getitems__(order.tolist()).images, **settings)
    for rival, energy in energies.items():
        print(f"{rival:16} kinetic energy per pixel {energy:.4f}")
    config = path.config()
    options = {"path": config.pop("name"), "path_config": config}
    write_text(given.out, json.dumps(options, indent=1) + "\n")
    print(f"wrote {given.out}: pathline train --config {given.out}")


if __name__ == "__main__":
    main()
