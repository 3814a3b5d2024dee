"""Pipelines with our schedulers for people who load them elsewhere: with the hub's remote code, or without any.

A saved pipeline names the module and class of every component, and diffusers looks them up in this order: a file
`<component>/<module>.py` in the folder, which needs `trust_remote_code=True`; else a module that the process has
already imported. From the hub the file must exist. So there are three ways to share a pipeline: import
`pathline.samplers.schedulers` before loading a local folder; put the file in (`write_hub_shim`); or save a stock
scheduler and keep our config beside it (`save_portable`, `load_portable`).
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from pathline.interpolants import unknown_name

from ..files import replacing
from ..wrappers import is_flow
from .base import PathlineScheduler
from .conversion import stock_classes
from .spacing import SOURCE

PORTABLE_CONFIG = "pathline_scheduler.json"
"""Our config beside the stock scheduler's, in the folder of the component."""
_MODULE = __name__.rpartition(".")[0]
_INDEX = "model_index.json"


def write_hub_shim(folder: str | os.PathLike[str]) -> list[Path]:
    """Let a saved pipeline be loaded without importing pathline first, with `trust_remote_code=True`.

    Writes `<component>/pathline.samplers.schedulers.py` for every component that is one of our schedulers. With these
    files the flag is needed for the local folder, too; pathline must still be installed where the pipeline is loaded.

    Parameters
    ----------
    folder : path
        Where `pipe.save_pretrained(folder)` wrote.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ValueError
        No saved pipeline lies there, none of its components is one of our schedulers, or one names an unknown class.
    """
    folder = Path(folder)
    recorded = {name: entry[1] for name, entry in _components(folder).items() if entry[0] == _MODULE}
    if not recorded:
        raise ValueError(f"no component of the pipeline in {folder} is a scheduler of {_MODULE}; nothing to do")
    for name in recorded.values():
        _class_named(name)
    written = []
    for component, name in recorded.items():
        written.append(folder / component / f"{_MODULE}.py")
        with replacing(written[-1]) as stream:
            stream.write(f"from {_MODULE} import {name}  # for trust_remote_code=True; needs pathline installed\n")
    return written


def save_portable(pipe: Any, folder: str | os.PathLike[str], *, stock: type | None = None, **save_options: Any) -> None:
    """Save a pipeline that anyone can load, with a stock scheduler in the place of ours and our config beside it.

    Without pathline the folder is an ordinary pipeline; `load_portable` puts our scheduler back. Nothing of it needs
    `trust_remote_code`.

    Parameters
    ----------
    pipe : DiffusionPipeline
        At least one of its components is a scheduler of ours. It is left as it was.
    folder : path
    stock : scheduler class of diffusers, optional
        Default: the class that our config was taken from, else FlowMatchEulerDiscreteScheduler for flow models,
        UniPCMultistepScheduler for them with `use_flow_sigmas`, and DDIMScheduler for models with betas.
    **save_options
        For `pipe.save_pretrained`, such as `variant` or `push_to_hub`.

    Raises
    ------
    ValueError
        The pipeline has no scheduler of ours, one of a class defined elsewhere, or `stock` is not a class of diffusers
        for the models of the two families.
    """
    found = getattr(pipe, "components", {})
    ours = {name: part for name, part in found.items() if isinstance(part, PathlineScheduler)}
    if not ours:
        kind = type(getattr(pipe, "scheduler", None)).__name__
        raise ValueError(f"{type(pipe).__name__} has no scheduler of {_MODULE} (its scheduler: {kind})")
    for scheduler in ours.values():
        if type(scheduler).__module__ != _MODULE:
            raise ValueError(f"{type(scheduler).__qualname__} is not a class of {_MODULE}; others could not be loaded")
    replacements = {name: _stock_of(scheduler, stock) for name, scheduler in ours.items()}
    for name, scheduler in ours.items():
        with replacing(Path(folder, name, PORTABLE_CONFIG)) as stream:
            stream.write(scheduler.to_json_string())
    try:
        pipe.register_modules(**replacements)
        pipe.save_pretrained(folder, **save_options)
    finally:
        pipe.register_modules(**ours)


def load_portable(name: str | os.PathLike[str], **load_options: Any) -> Any:
    """Load a pipeline saved by `save_portable`, with our scheduler in it.

    Parameters
    ----------
    name : path or name on the hub
    **load_options
        For `DiffusionPipeline.from_pretrained`.

    Returns
    -------
    DiffusionPipeline

    Raises
    ------
    ValueError
        Nothing that `save_portable` writes is there, or it names an unknown class.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(DiffusionPipeline.download(str(name), **load_options))
    beside = {component: folder / component / PORTABLE_CONFIG for component in _components(folder)}
    configs = {component: json.loads(path.read_text()) for component, path in beside.items() if path.is_file()}
    if not configs:
        raise ValueError(f"{name} holds no {PORTABLE_CONFIG}; it was not saved by save_portable")
    schedulers = {
        component: _class_named(config["_class_name"]).from_config(config)
        for component, config in configs.items()
        if component not in load_options
    }
    pipe = DiffusionPipeline.from_pretrained(folder, **load_options)
    pipe.register_modules(**schedulers)
    return pipe


def _components(folder: Path) -> dict[str, list[Any]]:
    """Entries of a saved pipeline's index: component -> [module, class]."""
    path = folder / _INDEX
    if not path.is_file():
        raise ValueError(f"{folder} holds no {_INDEX}; give the folder that pipe.save_pretrained wrote")
    index: Mapping[str, Any] = json.loads(path.read_text())
    return {name: entry for name, entry in index.items() if not name.startswith("_") and isinstance(entry, list)}


def _class_named(name: str) -> type[PathlineScheduler]:
    """A scheduler class of our module.

    Raises
    ------
    ValueError
        There is none.
    """
    queue, known = [PathlineScheduler], dict[str, type[PathlineScheduler]]()
    for cls in queue:
        queue += cls.__subclasses__()
        if cls.__module__ == _MODULE:
            known[cls.__name__] = cls
    if name not in known:
        raise unknown_name(f"scheduler class of {_MODULE}", str(name), known)
    return known[name]


def _stock_of(scheduler: PathlineScheduler, wanted: type | None) -> Any:
    """A stock scheduler with what our config shares with it."""
    config = dict(scheduler.config)
    classes = {cls.__name__: cls for cls in stock_classes()}
    if wanted is not None and wanted not in classes.values():
        raise ValueError(f"stock={wanted!r} is not possible; give one of diffusers' {', '.join(classes)}")
    cls = wanted or classes.get(str(config.get(SOURCE)))
    if cls is None and is_flow(config):
        cls = diffusers.UniPCMultistepScheduler if config.get("use_flow_sigmas") else None
        cls = cls or diffusers.FlowMatchEulerDiscreteScheduler
    cls = cls or diffusers.DDIMScheduler
    shared = inspect.signature(cls).parameters.keys() & config.keys()
    return cls(**{key: config[key] for key in shared})
