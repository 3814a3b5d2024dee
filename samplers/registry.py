"""The registry of methods: a name, a function nodes → table, and the facts that tests and docs read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pathline.interpolants import unknown_name

from .frames import check
from .momentum import heavy_ball as with_heavy_ball
from .nodes import Nodes
from .table import Table
from .transforms import AnalyticStart, analytic_first_step

Builder = Callable[..., Table]
LateOptions = Callable[[Nodes, Mapping[str, Any], int], dict[str, Any]]


def unchanged(nodes: Nodes, options: Mapping[str, Any], left_out: int) -> dict[str, Any]:
    """Options without an entry for each step."""
    return dict(options)


ENTRY_POINT_GROUP = "pathline.methods"


@dataclass(frozen=True)
class Reference:
    """A publication; `bibtex` renders it."""

    key: str
    authors: str
    title: str
    year: int
    venue: str
    arxiv: str | None = None

    @property
    def bibtex(self) -> str:
        """BibTeX entry."""
        lines = [
            f"  author = {{{self.authors}}}",
            f"  title = {{{{{self.title}}}}}",
            f"  year = {{{self.year}}}",
            f"  howpublished = {{{self.venue}}}",
        ]
        if self.arxiv:
            lines += [f"  eprint = {{{self.arxiv}}}", "  archiveprefix = {arXiv}"]
        return f"@misc{{{self.key},\n" + ",\n".join(lines) + "\n}"


@dataclass(frozen=True)
class Case:
    """One configuration of a method with its declared facts, each of them measured in the tests.

    Attributes
    ----------
    options : dict
    order : int
        Global order with exact history, without final lowering, on a grid uniform in `variable`.
    cold_order : int
        The same from a cold start, where warm-up steps of low order may cap it.
    variable : {"lam", "noise_ratio", "time"}
        The method's own variable: λ, noise/signal or time.
    """

    options: dict[str, Any]
    order: int
    cold_order: int
    variable: str = "lam"


@dataclass(frozen=True)
class MethodInfo:
    """A registered method.

    Attributes
    ----------
    name : str
    build : function (nodes, **options) -> Table
    summary : first line of the builder's docstring
    options : keyword options with their defaults
    cases : declared configurations, the first one the default
    reference : Reference
    requires : what the method needs beyond a Gaussian path, in words ("" when nothing)
    late_options : function (nodes, options, left_out) -> options
        For a run without the first `left_out` steps over `nodes`, where some options count steps.
    """

    name: str
    build: Builder
    cases: tuple[Case, ...]
    reference: Reference
    requires: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    late_options: LateOptions = unchanged

    @property
    def summary(self) -> str:
        """First line of the builder's docstring."""
        return (inspect.getdoc(self.build) or "").split("\n", 1)[0]

    @property
    def order(self) -> int:
        """Order of the default configuration."""
        return self.cases[0].order

    @property
    def cold_order(self) -> int:
        """Cold-start order of the default configuration."""
        return self.cases[0].cold_order

    @property
    def bibtex(self) -> str:
        """BibTeX entry of the reference."""
        return self.reference.bibtex


_METHODS: dict[str, MethodInfo] = {}
COMMON_OPTIONS = ("afs", "heavy_ball")


def register(
    name: str,
    *,
    cases: tuple[Case, ...] | list[Case],
    reference: Reference,
    requires: str = "",
    late_options: LateOptions = unchanged,
) -> Callable[[Builder], Builder]:
    """Decorator that adds a method: a function of `nodes` and keyword-only options that returns a Table.

    The arguments are described in `MethodInfo`.

    Third parties either call it on import, or expose the decorated function under the entry-point group
    ``pathline.methods``.

    Raises
    ------
    ValueError
        The name is taken, there is no declared case, or an option is not keyword-only with a default.
    """

    def add(build: Builder) -> Builder:
        if name in _METHODS and _METHODS[name].build is not build:
            raise ValueError(f"method {name!r} is already registered by {_METHODS[name].build.__module__}")
        if not cases:
            raise ValueError(f"method {name!r} declares no case; give at least one Case(options, order, cold_order)")
        parameters = list(inspect.signature(build).parameters.values())[1:]
        wrong = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY or p.default is p.empty]
        if wrong:
            raise ValueError(f"options of method {name!r} must be keyword-only with defaults; mend {wrong}")
        options = {p.name: p.default for p in parameters}
        _METHODS[name] = MethodInfo(name, build, tuple(cases), reference, requires, options, late_options)
        return build

    return add


def register_preset(
    name: str, base: str, summary: str, *, cases: tuple[Case, ...] | list[Case], reference: Reference, **fixed: Any
) -> None:
    """Register a published name for a method that is another one under given options.

    Parameters
    ----------
    name, summary : str
    base : str
        The registered method; the preset takes its options, with `fixed` as their defaults.
    cases, reference : as in `register`
        Options of the cases are given on top of `fixed`.
    """
    info = method_info(base)

    def build(nodes: Nodes, **options: Any) -> Table:
        return info.build(nodes, **(fixed | options))

    given = " with " + ", ".join(f"{k}={v!r}" for k, v in fixed.items()) if fixed else ""
    build.__doc__ = f"{summary}\n\nThis is `{base}`{given}."
    options = {k: fixed.get(k, v) for k, v in info.options.items()}
    _METHODS[name] = MethodInfo(name, build, tuple(cases), reference, info.requires, options, info.late_options)


@cache
def _load_entry_points() -> None:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        point.load()


def list_methods() -> list[str]:
    """Names of all registered methods, third-party ones included."""
    _load_entry_points()
    return sorted(_METHODS)


def method_info(name: str) -> MethodInfo:
    """The registered facts of a method.

    Raises
    ------
    ValueError
        Unknown name; the message lists the nearest ones.
    """
    if name not in _METHODS:
        _load_entry_points()
    if name not in _METHODS:
        raise unknown_name("method", name, _METHODS)
    return _METHODS[name]


def build_table(
    method: str, nodes: Nodes, *, afs: bool | str | AnalyticStart = False, heavy_ball: float = 1.0, **options: Any
) -> Table:
    """Compile `method` on `nodes` into a table that is checked in its declared frame.

    Parameters
    ----------
    method : str
        A name of `list_methods()`.
    nodes : Nodes
    afs : {False, True, "unit", "zero", "gaussian"} or AnalyticStart
        Replace the first network call by an analytic estimate; see `transforms.analytic_first_step`.
    heavy_ball : float in (0, 1]
        Momentum β on the direction of every step; see `momentum.heavy_ball`. 1 is none.
    **options
        The method's own options (`method_info(method).options`).

    Raises
    ------
    ValueError
        Unknown method or option, an option out of range, or nodes the method cannot use.
    """
    info = method_info(method)
    for key in options:
        if key not in info.options:
            raise unknown_name(f"option of method {method!r}", key, [*info.options, *COMMON_OPTIONS])
    _check_kinds(method, info.options | {"heavy_ball": 1.0}, options | {"heavy_ball": heavy_ball})
    if nodes.is_bridge and "bridge" not in info.requires:
        able = [name for name in list_methods() if "bridge" in method_info(name).requires]
        raise ValueError(f"method {method!r} runs on Gaussian paths, not on bridges; use one of {', '.join(able)}")
    table = with_heavy_ball(replace(info.build(nodes, **options), method=method), heavy_ball)
    if afs:
        table = analytic_first_step(table, "unit" if afs is True else afs)
    shown = afs.recorded() if isinstance(afs, AnalyticStart) else afs
    given = info.options | options | table.options | ({"afs": shown} if afs else {})  # a builder's own record wins
    given |= {"heavy_ball": heavy_ball} if heavy_ball != 1.0 else {}
    table = replace(table, method=method, options={k: _json(v) for k, v in given.items()})
    check(table)
    return table


def _check_kinds(method: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise ValueError where an option that is a number or a sequence by default was given as something else."""
    for key, value in given.items():
        default = defaults[key]
        numeric = isinstance(default, (int, float)) and not isinstance(default, bool)
        if numeric and (value is None or isinstance(value, (str, bytes))):
            raise ValueError(f"{key}={value!r} of method {method!r} must be a number, like its default {default!r}")
        if isinstance(default, (tuple, list)) and value is not None and not isinstance(value, Iterable):
            raise ValueError(f"{key}={value!r} of method {method!r} must be a sequence, like its default {default!r}")


def _json(value: Any) -> Any:
    """Options as they are recorded in tables: JSON values, and functions by their names."""
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value
