"""Trained folders and stock diffusers pipelines as sources."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathline.interpolants import DiscretePath, LinearPath

from .files import digest
from .sources import DataSet, Source, network_identity

KNOWN_DATA = ("digits", "fashion-mnist", "cifar10")

if TYPE_CHECKING:
    from pathline.training import LoadedPipeline


def open_pipeline(text: str, device: str) -> Source:
    """Open a folder or hub name as a source; path, prediction and shape come from what is stored there.

    Raises
    ------
    ValueError
        If it is no folder, cannot be loaded, or needs more than noise and a class to be sampled.
    """
    from pathline.training import load_pipeline

    folder = Path(text)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"a source is a folder, a hub name or bed:<name>, got the file {folder}")
    loaded = load_pipeline(text, device)
    card = loaded.metadata
    classes = len(card.get("classes") or ())
    name = folder.resolve().name if folder.is_dir() else text
    if card.get("image_condition") is not None:
        raise ValueError(
            f"{name} restores degraded images and makes nothing from noise alone; python -m pathline.evals.restoration "
            "measures it"
        )

    if card.get("vector_condition") is not None:
        raise ValueError(f"{name} is told a vector of each image; sample it in Python, see docs/training.md")

    @functools.cache
    def pipeline() -> Any:
        return _stock_pipeline(text, device)

    has_loop = _scheduler_can_run(loaded) and (not card or card.get("pipeline") is not None)
    return Source(
        f"{name} ({loaded.path.name} path, {loaded.prediction} prediction)",
        "pipeline",
        network_identity(folder) if folder.is_dir() else digest([text]),
        loaded.model,
        loaded.path,
        loaded.prediction,
        tuple(loaded.shape),
        functools.partial(_data_of, card, name),
        classes=classes,
        label_key="class_labels",
        null_label=loaded.null_label,
        network=loaded.model.network if has_loop else None,
        scheduler=(lambda: pipeline().scheduler.config) if has_loop else None,
        pipeline=pipeline if has_loop else None,
        flow_only=not card.get("takes_noise", True),
        coupled=card.get("coupled", False),
    )


def _scheduler_can_run(loaded: LoadedPipeline) -> bool:
    """True where a diffusers loop sees the very path the library samples: flow, or a discrete schedule."""
    path = loaded.path
    if isinstance(path, LinearPath):
        return loaded.prediction == "velocity"
    return isinstance(path, DiscretePath) and loaded.prediction in ("noise", "v", "data")


def _stock_pipeline(text: str, device: str) -> Any:
    """The folder as stock diffusers opens it, without its progress bar."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(text).to(device)
    except Exception as error:  # diffusers, the hub and safetensors each raise their own
        raise ValueError(f"diffusers cannot open {text} as a pipeline: {error}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _data_of(card: dict[str, Any], name: str) -> DataSet:
    """The images a folder was trained on, as its card describes them."""
    if not card:
        raise ValueError(f"{name} does not say what it was trained on; name the reference with --data")
    options, data = card["training"]["options"], card["data"]
    return training_images(
        options["dataset_name"],
        data["split"],
        data_dir=options["train_data_dir"],
        resolution=data["resolution"],
        center_crop=data["center_crop"],
    )


def training_images(name: str | None, split: str = "all", **options: Any) -> DataSet:
    """Images of a data set that training knows by name, in [-1, 1]; the split is part of the set's name."""
    from pathline.training import load_data

    images = load_data(name, split=split, **options)
    return DataSet(f"{images.name}, split {split}", images.tensor())
