"""The one dict-valued config key of the schedulers: which method, on which grid, with which seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pathline.interpolants import unknown_name

from ..adaptive import list_adaptive
from ..grids import list_grids
from ..registry import COMMON_OPTIONS, method_info
from ..table import Table
from ..transforms import AnalyticStart

_KEYS = ("method", "options", "grid", "grid_options", "seed", "exact_sigmas", "mu", "fused", "table")
DEFAULT_METHOD = "unipc"
DEFAULT_OPTIONS: dict[str, Any] = {"order": 2}
"""What runs on the levels of a config when nobody names a method, see docs/defaults.md."""


@dataclass(frozen=True)
class Settings:
    """What `pathline={...}` in a scheduler's config says.

    Attributes
    ----------
    method : str
        A name of `list_methods()`.
    options : dict
        Options of the method, heavy_ball and afs; {"mean": ..., "variance": ...} for afs is an `AnalyticStart`, which
        the config of a scheduler cannot hold.
    grid : str, tuple of path times, or None
        None: the spacing, shift and Karras/exponential/beta switches of the diffusers config. Else a name of
        `list_grids()`, or increasing path times from 0 to 1; the shift is then not applied.
    grid_options : dict
    seed : int or None
        Keys the noise of stochastic methods; None draws a new one from torch's generator for every run.
    exact_sigmas : bool
        Sigmas given to `set_timesteps` are used untouched, as distilled models need.
    mu : float or None
        Shift used where `use_dynamic_shifting` is on and the pipeline sends no mu.
    fused : bool
        Execute each row as one function compiled by `torch.compile`: one kernel, after seconds of compilation.
    table : Table or None
        Runs instead of a method, on its own levels; in the config the name of its file, or its content.
    """

    method: str = DEFAULT_METHOD
    options: dict[str, Any] = field(default_factory=DEFAULT_OPTIONS.copy)
    grid: str | tuple[float, ...] | None = None
    grid_options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    exact_sigmas: bool = False
    mu: float | None = None
    fused: bool = False
    table: Table | None = None


def read_settings(given: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> Settings:
    """Check `given` over a class's `defaults`.

    Parameters
    ----------
    given : mapping or None
        The config's `pathline` value.
    defaults : mapping
        The same keys, as a named subclass presets them. Its options hold only while its method is kept.

    Raises
    ------
    ValueError
        Unknown keys, method, options or grid, each with the nearest valid names; a method without a table; values
        that a config file cannot hold.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"pathline={given!r} is not possible; give a dict, such as pathline={{'method': 'unipc'}}")
    given = dict(given or {})
    for key, value in given.items():
        if key not in _KEYS:
            raise unknown_name("key of the scheduler setting 'pathline'", key, _KEYS)
        _check_json(key, value)
        _check_kind(key, value)
    merged = {**defaults, **given}
    method = str(merged.get("method", DEFAULT_METHOD))
    if method in list_adaptive():
        raise ValueError(
            f"method {method!r} chooses its own steps, but a pipeline asks its scheduler for all timesteps before the "
            "run; use pathline.samplers.sample(...) with from_diffusers(network, scheduler)"
        )
    info = method_info(method)
    if "bridge" in info.requires:
        raise ValueError(
            f"method {method!r} runs on bridges, of which a diffusers scheduler knows nothing; use "
            "pathline.samplers.sample(...) on bridge nodes"
        )
    options = dict(given.get("options") or {})
    if "method" not in merged:
        options = {**DEFAULT_OPTIONS, **options}
    elif info.name == defaults.get("method"):
        options = {**defaults.get("options", {}), **options}
    for key in options:
        if key not in info.options and key not in COMMON_OPTIONS:
            raise unknown_name(f"option of method {info.name!r}", key, [*info.options, *COMMON_OPTIONS])
    if isinstance(options.get("afs"), Mapping):
        options["afs"] = _analytic_start(options["afs"])
    mu = merged.get("mu")
    table = _table(given)
    return Settings(
        method=info.name,
        options=options,
        grid=_grid(merged.get("grid")) if table is None else tuple(table.nodes["time"]),
        grid_options=dict(merged.get("grid_options") or {}),
        seed=_seed(merged.get("seed")),
        exact_sigmas=bool(merged.get("exact_sigmas", False)),
        mu=None if mu is None else float(mu),
        fused=bool(merged.get("fused", False)),
        table=table,
    )


def with_content(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The config's `pathline` value with the content of a table's file in the place of its name, if JSON holds it."""
    if not isinstance(given, Mapping) or not isinstance(given.get("table"), str):
        return given if not isinstance(given, Mapping) else dict(given)
    table = Table.load(given["table"])
    return {**given, "table": table.content()} if table.fits_json else dict(given)


def _table(given: Mapping[str, Any]) -> Table | None:
    value = given.get("table")
    if value is None:
        return None
    if extra := [key for key in ("method", "options", "grid", "grid_options") if given.get(key)]:
        raise ValueError(f"a table has its own levels and coefficients; leave out {', '.join(extra)}")
    return Table.load(value) if isinstance(value, str) else Table.from_content(value)


def _check_json(key: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{key}={value!r} of the scheduler setting 'pathline' cannot be saved in a config file ({error}); give "
            "numbers, text, lists and dicts, or use pathline.samplers.sample(...)"
        ) from None


def _check_kind(key: str, value: Any) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "options": (Mapping,),
        "grid_options": (Mapping,),
        "exact_sigmas": (bool,),
        "fused": (bool,),
        "mu": (int, float),
    }
    allowed = kinds.get(key, (object,))
    if value is not None and not (isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))):
        words = " or ".join("dict" if kind is Mapping else kind.__name__ for kind in allowed)
        raise ValueError(f"{key}={value!r} of the scheduler setting 'pathline' is not possible; it is a {words}")


def _analytic_start(given: Mapping[str, Any]) -> AnalyticStart:
    known = ("mean", "variance")
    for key in given:
        if key not in known:
            raise unknown_name("key of option 'afs'", key, known)
    # without a mean the data are centred: no pipeline supplies one at run time
    values = {key: np.array(value, dtype=np.float64) for key, value in ({"mean": 0.0} | dict(given)).items()}
    return AnalyticStart(**{key: value if value.ndim else float(value) for key, value in values.items()})


def _grid(grid: Any) -> str | tuple[float, ...] | None:
    if isinstance(grid, str) and grid not in list_grids():
        raise unknown_name("grid", grid, list_grids())
    return grid if grid is None or isinstance(grid, str) else tuple(float(t) for t in grid)


def _seed(seed: Any) -> int | None:
    if seed is None:
        return None
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed={seed!r} is not possible; give an integer, or None for a new one in every run")
    return seed
