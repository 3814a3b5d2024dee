"""The result of training as a diffusers pipeline folder, and such folders as pathline models.

Pipelines written, each opened and run by stock diffusers:

    UNet, no classes, flow            DDPMPipeline with FlowMatchEulerDiscreteScheduler
    UNet, no classes, noise/v/data    DDPMPipeline with DDPMScheduler, its betas those of the path
    UNet, edm                         ConsistencyModelPipeline with EDMEulerScheduler
    UNet with classes                 ConsistencyModelPipeline (the stock one that hands on class labels)
    DiT                               DiTPipeline.from_pretrained(folder, vae=...): that pipeline decodes latents
                                      with a VAE, which pixels do not have; pathline samples them

Where no stock scheduler fits path and prediction, or the network sees an image or has scaled skips, the folder
holds the network alone. `pathline.json` beside it always says what was trained, and `load_pipeline` needs nothing
else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pathline.interpolants import path_from_config
from pathline.samplers import from_diffusers

from .bridge_task import BridgeModel, BridgeSettings
from .conventions import StockScheduler, stock_scheduler, wrap_network
from .convex_flow import PowerCost
from .convex_task import PotentialModel
from .files import read_json, replacing, write_json
from .networks import LabelledNetwork, label_count, prepare_network
from .schroedinger_task import SchroedingerModel
from .skip_scaling import install_skip_scaling
from .tensor_files import read_tensors, written_or_removed

CARD_FILE = "pathline.json"
FORMAT = 1
_FOLDERS = {"UNet2DModel": "unet", "DiTTransformer2DModel": "transformer"}


class LoadedPipeline(NamedTuple):
    """A trained network in pathline's convention.

    `model(x, t, class_labels=None)` returns `prediction` on `path`; `metadata` is the content of pathline.json
    (empty for a pipeline from elsewhere), and `shape` (C, H, W) that of one sample, and `network` the bare module.
    A bridge is a `BridgeModel`; its path is a StochasticInterpolant, or None where it has levels alone. Other models
    are a `SchroedingerModel` and a `PotentialModel`.
    """

    model: Any
    path: Any
    prediction: str
    metadata: dict[str, Any]
    shape: tuple[int, int, int]
    network: nn.Module

    @property
    def null_label(self) -> int | None:
        """The class label that stands for "no label", or None if there is no trained one."""
        return self.metadata.get("null_label")


def export_pipeline(network: nn.Module, folder: str | os.PathLike[str], card: Mapping[str, Any]) -> str | None:
    """Write a network as a diffusers pipeline folder with safetensors.

    Parameters
    ----------
    network : UNet2DModel or DiTTransformer2DModel
        With the weights to be saved.
    folder : path
        Existing files of other names are left alone.
    card : mapping
        At least path (a configuration), prediction, convention and sigma_data; saved as pathline.json.

    Returns
    -------
    str or None
        Class name of the pipeline, None if no stock scheduler fits.
    """
    import diffusers

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    kind = type(network).__name__
    labelled = label_count(network) is not None and kind == "UNet2DModel"
    convention = card["convention"]
    stock = _stock_of(card, labelled) if is_stock(card) else None
    _save_part(network, target / _FOLDERS[kind])
    name = None
    index: dict[str, Any] = {"_diffusers_version": diffusers.__version__, _FOLDERS[kind]: ["diffusers", kind]}
    if stock is not None:
        scheduler = getattr(diffusers, stock.class_name)(**stock.settings)
        _save_part(scheduler, target / "scheduler")
        index["scheduler"] = ["diffusers", stock.class_name]
        if kind == "DiTTransformer2DModel":
            name = "DiTPipeline"
            index["vae"] = [None, None]
        else:
            name = "ConsistencyModelPipeline" if labelled or convention == "edm" else "DDPMPipeline"
        with replacing(target / "model_index.json") as stream:
            json.dump({"_class_name": name, **index}, stream, indent=2, sort_keys=True)
    write_json(target / CARD_FILE, {"format": FORMAT, "pipeline": name, "network": kind, **card})
    return name


def _stock_of(card: Mapping[str, Any], labelled: bool) -> StockScheduler | None:
    path, sigma_data = path_from_config(card["path"]), card.get("sigma_data", 0.5)
    return stock_scheduler(path, card["prediction"], card["convention"], sigma_data, labelled=labelled)


def is_stock(card: Mapping[str, Any]) -> bool:
    """Whether the network is what diffusers makes of its configuration, and sees nothing but state and class."""
    return not sees_more(card) and skip_scaling_of(card) is None


def skip_scaling_of(card: Mapping[str, Any]) -> str | None:
    """Kind of factors on the skips; older folders have a constant one or none."""
    found: str | None = card.get("skip_scaling", "constant" if card.get("skip_scale") else None)
    return found


def sees_more(card: Mapping[str, Any]) -> bool:
    """Whether the network has channels for an image or a vector beside the state."""
    return card.get("image_condition") is not None or card.get("vector_condition") is not None


def _save_part(part: Any, folder: Path) -> None:
    """Save a network or scheduler beside its place, then move it there."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with written_or_removed(temporary, folder):
        part.save_pretrained(temporary)
    for item in sorted(temporary.iterdir(), reverse=True):  # weights last: config alone names no weights
        folder.mkdir(exist_ok=True)
        item.chmod(0o644)  # safetensors makes private files; results are meant to be shared
        os.replace(item, folder / item.name)
    temporary.rmdir()


def load_pipeline(folder: str | os.PathLike[str], device: torch.device | str | None = None) -> LoadedPipeline:
    """Open a trained folder, or any diffusers pipeline with a UNet or transformer, as a pathline model.

    Parameters
    ----------
    folder : path or hub name
        Without pathline.json it is opened by diffusers, and path and prediction come from its scheduler.
    device : optional

    Returns
    -------
    LoadedPipeline
        In evaluation mode, with gradients off for the weights.

    Raises
    ------
    ValueError
        If a file is missing or damaged (it is named), or a foreign pipeline is of a kind that is not known.
    """
    place = Path(folder)
    if not (place / CARD_FILE).is_file():
        return _load_foreign(folder, device)
    card = read_json(place / CARD_FILE)
    if card.get("format") != FORMAT:
        raise ValueError(f"{place / CARD_FILE} has format {card.get('format')!r}; this version reads {FORMAT}")
    network = _load_network(place / _FOLDERS[card["network"]], card, device)
    labelled = LabelledNetwork(network, label_count(network), conditioned=sees_more(card))
    model: Any
    if card.get("bridge") is not None:
        model = BridgeModel(labelled, BridgeSettings(**card["bridge"]))
    elif card.get("schroedinger") is not None:
        model = SchroedingerModel(labelled, **card["schroedinger"])
    elif card.get("potential") is not None:
        model = PotentialModel(labelled, PowerCost(**card["potential"]))
    else:
        path = path_from_config(card["path"])
        model = wrap_network(labelled, path, card["prediction"], card["convention"], card.get("sigma_data", 0.5))
    return LoadedPipeline(model, model.path, model.prediction, card, _shape_from(card, network), network)


def _load_network(folder: Path, card: Mapping[str, Any], device: torch.device | str | None) -> nn.Module:
    import diffusers

    kind, scaling = getattr(diffusers, card["network"]), skip_scaling_of(card)
    try:
        if scaling == "learned":  # the file has more weights than the class
            network: nn.Module = kind.from_config(kind.load_config(folder))
            install_skip_scaling(network, scaling)
            network.load_state_dict(read_tensors(folder / "diffusion_pytorch_model.safetensors"))
            return _ready(network, device)
        network = kind.from_pretrained(folder, use_safetensors=True)
    except Exception as error:  # diffusers, hub and safetensors each raise their own
        raise ValueError(f"network {folder} cannot be loaded: {error}") from error
    if scaling is not None:
        install_skip_scaling(network, scaling, card.get("skip_scale"))
    return _ready(network, device)


def _ready(network: nn.Module, device: torch.device | str | None) -> nn.Module:
    prepare_network(network)
    return network.to(device).eval().requires_grad_(False)


def _shape_of(network: nn.Module) -> tuple[int, int, int]:
    config: Any = network.config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.in_channels), int(height), int(width)


def _shape_from(card: Mapping[str, Any], network: nn.Module) -> tuple[int, int, int]:
    """Shape of one sample; a network that sees an image has more channels at its input."""
    if not sees_more(card):
        return _shape_of(network)
    channels, height, width = card["data"]["shape"]
    return int(channels), int(height), int(width)


def _load_foreign(name: str | os.PathLike[str], device: torch.device | str | None) -> LoadedPipeline:
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(name)
    except Exception as error:  # a missing folder, no network, or a broken file
        raise ValueError(f"{name} has no {CARD_FILE}, and diffusers cannot open it as a pipeline: {error}") from error
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if network is None or type(network).__name__ not in _FOLDERS:
        raise ValueError(
            f"{name} is a {type(pipeline).__name__}; only pipelines of {' or '.join(_FOLDERS)} can be opened this way"
        )
    _ready(network, device)
    model = from_diffusers(network, pipeline.scheduler)
    model.network = LabelledNetwork(network, label_count(network))
    return LoadedPipeline(model, model.path, model.prediction, {}, _shape_of(network), network)
