"""Recipes: complete, consistent settings by name, and models that others build on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathline.evals.recipes import kept_results
from pathline.training import list_recipes, load_pipeline, read_recipe, resolve_options, train_recipe
from support.repository import ROOT
from support.training_runs import TINY, fresh_accelerate


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


@pytest.mark.parametrize("name", list_recipes())
@pytest.mark.parametrize("data", ["digits", "fashion-mnist", "cifar10"])
def test_every_recipe_is_a_complete_training(name: str, data: str) -> None:
    recipe = read_recipe(name)
    options = resolve_options({"dataset_name": data, **recipe.options})
    assert recipe.about.endswith(")")  # the source
    assert options.max_train_steps is not None
    assert recipe.first is None or read_recipe(recipe.first).first is None


def test_unknown_recipes_are_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'flow-matchin'.*flow-matching.*rectified-flow"):
        read_recipe("flow-matchin")


def test_the_page_has_the_results_of_all() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in list_recipes() if f"| `{name}` |" not in page] == []


def test_results_of_other_settings_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    file, settings = tmp_path / "results.json", {"nfe": "5", "samples": 10}
    assert kept_results(file, settings) == {}
    file.write_text(json.dumps({"settings": settings, "results": {"edm": {"steps": 1}}}))
    assert kept_results(file, settings) == {"edm": {"steps": 1}}
    with pytest.raises(ValueError, match=r"results of other settings: samples was 10, is 20; .*another --out"):
        kept_results(file, {**settings, "samples": 20})
    file.write_text(json.dumps({"edm": {"steps": 1}}))  # written before settings were kept
    with pytest.raises(ValueError, match="they are not said in the file"):
        kept_results(file, settings)


@pytest.mark.slow
def test_a_recipe_trains_what_it_builds_on_first_and_once(tmp_path: Path) -> None:
    folder = tmp_path / "reflow"
    given: dict[str, Any] = {
        **TINY,
        "max_train_steps": 2,
        "reflow_pairs": 8,
        "reflow_nfe": 2,
        "output_dir": str(folder),
    }
    result = train_recipe("rectified-flow", given)
    assert result.steps == 2
    first = folder / "first" / "pathline.json"
    written = first.stat().st_mtime_ns
    options = load_pipeline(str(folder)).metadata["training"]["options"]
    assert Path(options["reflow_from"]) == Path(options["init_from"]) == folder / "first"
    assert load_pipeline(str(folder / "first")).metadata["training"]["options"]["reflow_from"] is None
    again = train_recipe("rectified-flow", {**given, "max_train_steps": 2, "resume_from_checkpoint": "latest"})
    assert again.steps == 2
    assert first.stat().st_mtime_ns == written
