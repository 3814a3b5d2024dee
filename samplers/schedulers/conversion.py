"""Configs of stock schedulers as configs of ours."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from ..wrappers import is_flow
from .settings import DEFAULT_METHOD
from .spacing import SOLVER_KEYS, ends_of_switches, levels_of_source, off_switches
from .stock_solver import solver_of

CLASS = "_pathline_class"
"""Config key with the name of the class of ours that a config comes from."""
_FLOW_KEYS = ("shift", "base_shift", "time_shift_type")
_STOCK_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_STOCK = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)

_NO_EQUAL = (
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeliosDMDScheduler",
    "HeliosScheduler",
    "LCMScheduler",
    "PiflowScheduler",
    "RePaintScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
)


def stock_classes() -> list[type]:
    """Stock schedulers whose configs can be taken over; those this version of diffusers lacks are left out."""
    return _classes((*_STOCK, *_STOCK_FLOW))


def _classes(names: Sequence[str]) -> list[type]:
    found = [getattr(diffusers, name, None) for name in names]
    return [cls for cls in found if inspect.isclass(cls)]


def complete_config(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The config with everything explicit that its own class takes for granted.

    Diffusers drops keys that the source left at their defaults, and configs stored by old versions lack keys; the
    defaults of the source's class are meant, which need not be ours. Where its levels come from is kept, see `spacing`.
    A flow shift becomes the shift. Clipping and thresholding that the source's class accepts but never applies are
    turned off. `given` are stock keys that the caller sets anew.

    Raises
    ------
    ValueError
        The config belongs to a scheduler of neither family.
    """
    full = {key: value for key, value in config.items() if key != "_use_default_values"}
    if "pathline" not in full:
        if other := _without_equal(full):
            warnings.warn(f"{other} has no equal here: its levels are taken over, its own rule is not", stacklevel=3)
        source = _source_of(full)
        if source is not None:
            defaults = _defaults(source)
            full = {**defaults, **full, **off_switches(full, defaults)}
        full |= _never_applied(full)
        _check_family(full)
        full |= levels_of_source({**full, **given}, "" if source is None else source.__name__)
        if "beta_schedule" in full:  # schedulers older than the key predict the noise
            full.setdefault("prediction_type", "epsilon")
    elif idle := {key: given[key] for key in SOLVER_KEYS if key in given}:
        shown = ", ".join(f"{key}={value!r}" for key, value in idle.items())
        warnings.warn(
            f"{shown} does not act on a config that has 'pathline' already; pass pathline={{'options': ...}}",
            stacklevel=3,
        )
    full |= given
    if full.get("use_flow_sigmas"):
        full.setdefault("shift", full.get("flow_shift", 1.0))
    return full


def switched(config: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The config of one class of ours for another, each with its `default_pathline`.

    A class with a method of its own takes over everything but method and options; these follow from the stock config
    that the first class was made from. The general class, without one, keeps both.
    """
    given = dict(config.get("pathline") or {})
    if not after:
        merged = {**before, **given, "options": {**before.get("options", {}), **(given.get("options") or {})}}
        return {**config, "pathline": merged}
    method, options = solver_of(config, after["method"])
    own = {"method": method} if method != after["method"] else {}
    rest = {key: value for key, value in given.items() if key not in ("method", "options", "table")}
    return {**config, "pathline": {**rest, **own, **({"options": options} if options else {})}}


def with_stock_solver(
    config: Mapping[str, Any], kwargs: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """`kwargs` of `from_config` with what a stock config says about its solver, see `stock_solver`.

    It counts only where the class, and not the user, chooses the method, and no table runs instead of one.

    Raises
    ------
    ValueError
        The stock solver has no counterpart.
    """
    found = {**ends_of_switches(config, kwargs), **kwargs}
    given = dict(kwargs.get("pathline") or {})
    if "pathline" in config or "method" in given or given.get("table") is not None:
        return found
    own = defaults.get("method", DEFAULT_METHOD)
    method, options = solver_of(config, own, every_key=bool(defaults))
    if method != own:
        given["method"] = method
    if options:
        given["options"] = {**options, **(given.get("options") or {})}
    return {**found, "pathline": given} if given else found


def _source_of(config: Mapping[str, Any]) -> type | None:
    """The stock class of a config: named in a file; in memory the one whose arguments are the first keys.

    What a class was handed from another config and does not know stands behind its own keys.
    """
    named = getattr(diffusers, str(config.get("_class_name")), None)
    if inspect.isclass(named) and issubclass(named, diffusers.SchedulerMixin):
        return named
    keys = [key for key in config if not key.startswith("_")]
    fits = [cls for cls in stock_classes() if set(keys[: len(_defaults(cls))]) == set(_defaults(cls))]
    return max(fits, key=lambda cls: len(_defaults(cls)), default=None)


def _without_equal(config: Mapping[str, Any]) -> str:
    """The name of a class whose rule is not taken over, or ""; in memory those that have just these arguments."""
    if "_class_name" in config:
        return str(config["_class_name"]) if config["_class_name"] in _NO_EQUAL else ""
    keys = {key for key in config if not key.startswith("_")}
    if any(keys == set(_defaults(cls)) for cls in stock_classes()):
        return ""
    return " or ".join(cls.__name__ for cls in _classes(_NO_EQUAL) if keys == set(_defaults(cls)))


def _defaults(cls: type) -> dict[str, Any]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _never_applied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Off switches for rules about the range of data that the config's class, told by its keys, does not apply."""
    if config.get("predict_x0") is False:  # UniPC in noise form
        return {"thresholding": False}
    if "snr_shift_scale" in config:  # CogVideoX
        return {"clip_sample": False}
    return {}


def _check_family(config: Mapping[str, Any]) -> None:
    known = is_flow(config) or any(key in config for key in ("beta_schedule", *_FLOW_KEYS))
    known = known or ("prediction_type" in config and "sigma_data" not in config)
    foreign = [key for key in config if not key.startswith("_") and key != "num_train_timesteps"]
    name = config.get("_class_name", "this scheduler")
    if not known and foreign:
        raise ValueError(
            f"the config of {name} describes neither a flow model nor a schedule with betas (its keys: "
            f"{', '.join(sorted(foreign))}); build the nodes yourself and use pathline.samplers.sample(...)"
        )
    if config.get("snr_shift_scale", 1.0) != 1.0:
        raise ValueError(
            f"the config of {name} rescales its schedule (snr_shift_scale), which only the "
            "pipelines of that model use; build the path yourself and use pathline.samplers.sample(...)"
        )
