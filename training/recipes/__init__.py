"""Recipes: complete settings of one training for each family of paths, kept as TOML files in this folder.

A file holds `about`, a table `options` under the names of `TrainOptions`, and perhaps `first`, the recipe whose model
the samples and the first weights come from (reflow).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pathline.interpolants import unknown_name

from ..checkpoints import list_checkpoints
from ..export import CARD_FILE
from ..files import read_json
from ..options import check_types, merge_options
from ..outcome import TrainResult
from ..resolve import other_data, resolve_options
from ..training_run import train_model

_OF_THE_DATA = (
    "dataset_name",
    "train_data_dir",
    "split",
    "resolution",
    "center_crop",
    "train_batch_size",
    "max_train_steps",
    "num_epochs",
    "network",
    "network_config",
    "mixed_precision",
    "cpu",
    "seed",
    "progress",
)
"""Options given for a run on another model's samples that hold for the training of that model too."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes
    ----------
    name, about : str
    options : dict
        Of `TrainOptions`; all others come from the presets of data set and objective.
    first : str or None
        Recipe of the model that this one is trained on the samples of, and whose weights it begins with.
    """

    name: str
    about: str
    options: dict[str, Any]
    first: str | None = None


def list_recipes() -> list[str]:
    """Names of all recipes."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")
    )


def read_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises
    ------
    ValueError
        There is none of this name.
    """
    if name not in list_recipes():
        raise unknown_name("recipe", name, list_recipes())
    content = tomllib.loads(files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    options = check_types(content.get("options", {}), f"recipe {name!r}")
    return Recipe(name, content["about"], options, content.get("first"))


def train_recipe(name: str, options: Mapping[str, Any] | None = None) -> TrainResult:
    """Train by a recipe; the result is in `output_dir`, by default out/NAME.

    The model that a recipe builds on is trained first, into the folder `first` of `output_dir`, unless it is there.

    Parameters
    ----------
    name : str
    options : mapping, optional
        Options by name, over those of the recipe.

    Raises
    ------
    ValueError
        As `train_model` does, or if the model in `first` was trained on other data than asked for.
    TrainingInterruptedError, NonFiniteLossError
        As `train_model` does.
    """
    recipe, given = read_recipe(name), dict(options or {})
    chosen = merge_options({"output_dir": f"out/{name}", **recipe.options}, given)
    if recipe.first is not None:
        place = Path(chosen["output_dir"]) / "first"
        shared: dict[str, Any] = {key: given[key] for key in _OF_THE_DATA if key in given}
        if (place / CARD_FILE).is_file():
            _check_data(place, recipe.first, shared)
        else:
            unfinished = "latest" if list_checkpoints(place) else None
            train_recipe(recipe.first, {**shared, "output_dir": str(place), "resume_from_checkpoint": unfinished})
        chosen = {"reflow_from": str(place), "init_from": str(place), **chosen}
    return train_model(chosen)


def _check_data(place: Path, first: str, shared: Mapping[str, Any]) -> None:
    """Refuse a model to build on that was trained on other data than this run's options say."""
    before = read_json(place / CARD_FILE)["training"]["options"]
    wanted = resolve_options(merge_options(read_recipe(first).options, shared))
    if different := other_data(before, wanted.to_dict()):
        raise ValueError(
            f"the model in {place} was trained on other data than asked for: {'; '.join(different)}; use the same "
            "data, or another output_dir"
        )
