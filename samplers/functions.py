"""Function-style samplers, as k-diffusion and ComfyUI call them, made from the registry.

`sample_<method>(model, x, sigmas, extra_args=None, callback=None, disable=None, **options)` exists for every method
that runs on Gaussian paths: ``from pathline.samplers.functions import sample_unipc``. In names "-" becomes "_" and "+"
becomes "p" (dpm++ → sample_dpmpp).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, MutableSequence, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, LinearPath, unknown_name

from .anchors import missing_anchors
from .host_run import HostCallback, HostRun, start_seed
from .nodes import Nodes
from .numerics import Array
from .registry import MethodInfo, build_table, list_methods, method_info
from .table import Table

Sampler = Callable[..., Tensor]
Compile = Callable[[Array, bool, Mapping[str, Any]], tuple[Table, Array]]
"""(levels, flow, options) → (table whose times are σ, its states over the host's at rows, start and end)."""

CONVENTIONS = """Parameters
----------
model : callable (x, sigma of shape (B,), **extra_args) -> data prediction
x : Tensor (B, ...)
    data + sigmas[0]·noise; for flow models (1 − sigmas[0])·data + sigmas[0]·noise.
sigmas : Tensor (n + 1,)
    Falling; usually ends with 0. The model is given exactly these values, in float32 (float64 if x is).
extra_args : mapping, optional
    Goes to the model as it is; its "seed" also keys the noise of the steps, which never is that of the start.
callback : callable, optional
    Called once a step with {"x", "i", "sigma", "sigma_hat", "denoised"}.
disable : bool, optional
    True switches the progress bar off, None shows it on terminals only.
"""
_SAME_LEVEL = 1e-4  # hosts compute their levels in float32
_HOST_WORDS = {"churn": "s_churn", "s_min": "s_tmin", "s_max": "s_tmax"}
_NOISY = {"s_noise": 1.0, "noise_sampler": None, "sample_offset": 0}
_COMMON_OPTIONS = {
    "heavy_ball": "float in (0, 1]\n    Momentum on the direction of every step; 1 is none.",
    "flow": "bool, optional\n    Whether x lies on a flow's path; by default told by the model's `model_sampling` "
    "(ComfyUI's CONST).",
    "s_noise": "float\n    Factor of the noise of all steps; variances are right at 1 only.",
    "noise_sampler": "callable (sigma, next sigma) -> standard normal, optional\n    Instead of noise keyed by seed, "
    "sample and step. A step of several draws shares its interval out among them.",
    "sample_offset": "int\n    Global index of the first sample, so that a split batch gets the same noise.",
}
_PARENTS = 8


def function_name(method: str) -> str:
    """Name of a method's function: "dpm++-sde" → "sample_dpmpp_sde"."""
    return "sample_" + method.replace("+", "p").replace("-", "_")


def sampler_functions() -> dict[str, Sampler]:
    """Every function by its name, third-party methods included."""
    return {function_name(name): _of_method(name) for name in _servable()}


def function_sampler(method: str | Table, **options: Any) -> Sampler:
    """A sampler function with other defaults, or of a table of one's own.

    Parameters
    ----------
    method : str or Table
        A name of `list_methods()`; or a table, which runs only on the levels it was compiled on: the given sigmas must
        be its noise/signal (noise/(signal + noise) for flow models), whatever path its coordinates belong to.
    **options
        New defaults of the function's options.

    Returns
    -------
    function (model, x, sigmas, extra_args=None, callback=None, disable=None, **options) -> Tensor

    Raises
    ------
    ValueError
        Unknown method or option, a method for bridges, or a table that needs an anchor.
    """
    if isinstance(method, Table):
        return _of_table(method, options)
    info = method_info(method)
    if info.requires:
        raise ValueError(f"method {method!r} needs {info.requires}, which sampler functions are not given; use sample")
    return _made(info, options) if options else _of_method(method)


def register_into(
    host: Any,
    *names: MutableSequence[str],
    functions: Mapping[str, Sampler] | Sequence[str] | None = None,
    prefix: str = "pathline_",
) -> list[str]:
    """Hand functions to a host that finds a sampler as `host.sample_<name>` with the name in a list, as ComfyUI does.

    Parameters
    ----------
    host : module
        Such as `comfy.k_diffusion.sampling`.
    *names : lists of str
        Such as `comfy.samplers.KSampler.SAMPLERS`; each gets the names it does not hold yet.
    functions : mapping of name -> function, or sequence of method names, optional
        Default every method. Names are without "sample_".
    prefix : str
        Stands before every name, so that the host's own `sample_euler` stays what it is.

    Returns
    -------
    list of the names, prefix included

    Raises
    ------
    ValueError
        The host has another function of that name; nothing is registered then.
    """
    if functions is None:
        functions = list(_servable())
    if not isinstance(functions, Mapping):
        functions = {function_name(name).removeprefix("sample_"): function_sampler(name) for name in functions}
    found = {prefix + name: function for name, function in functions.items()}
    for name, function in found.items():
        if getattr(host, f"sample_{name}", function) is not function:
            raise ValueError(f"the host has its own sample_{name}; choose another prefix than {prefix!r}")
    for name, function in found.items():
        setattr(host, f"sample_{name}", function)
    for known in names:
        known.extend(name for name in found if name not in known)
    return list(found)


def __getattr__(name: str) -> Sampler:
    for method in _servable() if name.startswith("sample_") else ():
        if function_name(method) == name:
            return _of_method(method)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *map(function_name, _servable())])


# --- making functions -----------------------------------------------------------------------------------------


def _servable() -> list[str]:
    return [name for name in list_methods() if not method_info(name).requires]


@cache
def _of_method(method: str) -> Sampler:
    return _made(method_info(method), {})


def _made(info: MethodInfo, defaults: Mapping[str, Any]) -> Sampler:
    """The function of a method, with `defaults` over those of the registry."""
    churns = "churn" in info.options
    words = {_HOST_WORDS.get(key, key) if churns else key: key for key in info.options}
    known = {word: info.options[key] for word, key in words.items()} | {"heavy_ball": 1.0, "flow": None}
    known |= {key: value for key, value in _NOISY.items() if key not in known} if _draws(info) else {}

    def compile_at(sigmas: Array, flow: bool, given: Mapping[str, Any]) -> tuple[Table, Array]:
        own = {words[word]: given[word] for word in words}
        table = build_table(info.name, _nodes(sigmas, flow, churns), heavy_ball=given["heavy_ball"], **own)
        return table, np.ones(len(table.rows) + 2)

    _, _, about = (inspect.getdoc(info.build) or "").partition("Parameters\n----------\n")
    for key, word in ((key, word) for word, key in words.items() if word != key):
        about = re.sub(rf"\b{key}\b(?= :|,| None)", word, about)
    doc = f"{info.summary}\n\n{CONVENTIONS}{about}".rstrip() + _described(set(known) - set(words))
    return _function(function_name(info.name), doc, known, defaults, compile_at, own_factor="s_noise" in words)


def _draws(info: MethodInfo) -> bool:
    """Whether a method can draw noise: some case does, or an option is there for it."""
    if {"eta", "s_noise"} & set(info.options):
        return True
    levels = np.array([2.0, 1.0, 0.5, 0.25])
    return build_table(info.name, _nodes(levels, False, False)).stochastic


def _of_table(table: Table, defaults: Mapping[str, Any]) -> Sampler:
    if missing := missing_anchors(table):
        raise ValueError(f"the table of {table.method!r} takes anchors {sorted(missing)}, which no host gives")

    def compile_at(sigmas: Array, flow: bool, given: Mapping[str, Any]) -> tuple[Table, Array]:
        return _relabelled(table, sigmas, flow)

    known = {"flow": None} | (_NOISY if table.stochastic else {})
    doc = f"A stored table of {table.method!r}, which runs on its own levels only.\n\n{CONVENTIONS}".rstrip()
    doc += _described(known)
    return _function(function_name(table.method), doc, known, defaults, compile_at)


def _described(options: Collection[str]) -> str:
    return "".join(f"\n{key} : {text}" for key, text in _COMMON_OPTIONS.items() if key in options) + "\n"


def _checked(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in given:
        if key not in known:
            raise unknown_name(f"option of {name}", key, known)
    return given


def _function(
    name: str,
    doc: str,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    compile_at: Compile,
    own_factor: bool = False,
) -> Sampler:
    known = {**options, **_checked(name, defaults, options)}

    def sampler(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: HostCallback | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        given = {**known, **_checked(name, options, known)}
        sigmas = torch.as_tensor(sigmas)
        levels = _levels(sigmas)
        if len(levels) == 1:
            return x
        flow = is_flow_host(model) if given["flow"] is None else bool(given["flow"])
        table, scales = compile_at(levels, flow, given)
        running = HostRun(model, table, sigmas, scales, callback, disable)
        kwargs = dict(extra_args or {})
        noise: dict[str, Any] = {}
        if table.stochastic:
            samples = given["sample_offset"] + torch.arange(len(x), device=x.device)
            factor = 1.0 if own_factor else float(given["s_noise"])
            seed = 0 if given["noise_sampler"] is not None else start_seed(kwargs)
            noise["noise"] = running.noise(given["noise_sampler"], factor, seed, samples)
        start = x if scales[-2] == 1.0 else x * float(scales[-2])
        result = running.run(start, kwargs, **noise)
        return result if scales[-1] == 1.0 else result / float(scales[-1])

    kind = inspect.Parameter.KEYWORD_ONLY
    keywords = [inspect.Parameter(key, kind, default=value) for key, value in known.items()]
    fixed = list(inspect.signature(sampler).parameters.values())[:-1]
    sampler.__signature__ = inspect.Signature([*fixed, *keywords], return_annotation=Tensor)  # type: ignore[attr-defined]
    sampler.__name__ = sampler.__qualname__ = name
    sampler.__doc__ = doc
    return sampler


# --- levels ---------------------------------------------------------------------------------------------------


def is_flow_host(model: Any) -> bool:
    """Whether a host's denoiser stands for a flow model: ComfyUI's `model_sampling` of some class named CONST."""
    for _ in range(_PARENTS):
        kind = getattr(model, "model_sampling", None)
        if kind is not None:
            return any(base.__name__ == "CONST" for base in type(kind).__mro__)
        model = getattr(model, "inner_model", None)
    return False


def _levels(sigmas: Tensor) -> Array:
    values = sigmas.detach().cpu().double().numpy()  # the only read from the device
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values[-1] < 0:
        raise ValueError(f"sigmas must be a non-empty list of finite numbers, none negative, got {sigmas!r}")
    if not (np.diff(values) < 0).all():
        i = int(np.argmax(np.diff(values) >= 0))
        raise ValueError(f"sigmas must fall, but go from {values[i]:g} to {values[i + 1]:g} at entry {i + 1}")
    return values


def _nodes(sigmas: Array, flow: bool, beyond: bool) -> Nodes:
    """Nodes labelled σ; `beyond` makes levels above the first possible, which a path has not."""
    if flow:
        if sigmas[0] > 1.0:
            raise ValueError(f"sigmas of a flow model lie in [0, 1], but begin with {sigmas[0]:g}; pass flow=False?")
        return Nodes(1.0 - sigmas, sigmas, sigmas, LinearPath())
    path = None if beyond else EDMPath(sigma_min=0.5 * sigmas[0], sigma_max=sigmas[0], rho=1.0)
    return Nodes(np.ones_like(sigmas), sigmas, sigmas, path)


def _relabelled(table: Table, sigmas: Array, flow: bool) -> tuple[Table, Array]:
    """The table with σ for time, and the factors from the host's coordinates to its own."""

    def host_level(signal: float, noise: float) -> tuple[float, float]:
        total = signal + noise if flow else signal
        return (noise / total, total) if total else (np.inf, 1.0)

    places = list(zip(table.nodes["signal"], table.nodes["noise"], strict=True))
    own = np.array([host_level(*place)[0] for place in places])
    if own.shape != sigmas.shape or not np.allclose(own, sigmas, rtol=_SAME_LEVEL, atol=0.0):
        shown = ", ".join(f"{level:.4g}" for level in own)
        raise ValueError(
            f"the table of {table.method!r} runs on sigmas {shown} and on no others; got {sigmas.tolist()}"
        )
    given = dict(zip(places, sigmas.tolist(), strict=True))
    rows, scales = [], []
    for row in table.rows:
        sigma, scale = host_level(row.level.signal, row.level.noise)
        label = given.get((row.level.signal, row.level.noise), sigma)
        rows.append(replace(row, level=row.level._replace(time=label)))
        scales.append(scale)
    start, end = (host_level(level.signal, level.noise)[1] for level in (table.start, table.end))
    return replace(table, rows=tuple(rows)), np.array([*scales, start, end])
