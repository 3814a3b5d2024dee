"""The registry as text: a table of methods for terminals and documents, and compiled tables for inspection."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pathline.interpolants import (
    BrownianBridge,
    DiffusionBridge,
    EDMPath,
    StochasticInterpolant,
    VPPath,
    unknown_name,
)
from pathline.samplers import (
    MethodInfo,
    Reference,
    Table,
    adaptive_info,
    list_adaptive,
    list_methods,
    method_info,
    plan,
)
from pathline.samplers.adaptive import AdaptiveInfo
from pathline.training.setup import make_path

from .settings import parse_spec

if TYPE_CHECKING:
    from pathline.samplers.analysis import Analysis

BRIDGES: dict[str, Callable[[], StochasticInterpolant]] = {
    "brownian": BrownianBridge,
    "ddbm-vp": lambda: DiffusionBridge(VPPath(beta_min=0.1, beta_max=2.1)),
    "ddbm-ve": lambda: DiffusionBridge(EDMPath(sigma_max=80.0, rho=1.0)),
}
"""Bridges that `pathline inspect --path` takes beside the paths of `list_paths()`."""
FORMATS = ("text", "markdown", "json", "bibtex")
Info = MethodInfo | AdaptiveInfo


def method_table(form: str = "text") -> str:
    """Every registered method with its declared facts, generated from the registry.

    Methods that choose their own steps stand in a section of their own; in JSON the two are the lists "methods" and
    "adaptive".

    Parameters
    ----------
    form : {"text", "markdown", "json", "bibtex"}

    Raises
    ------
    ValueError
        For an unknown format.
    """
    infos = [method_info(name) for name in list_methods()]
    adaptive = [adaptive_info(name) for name in list_adaptive()]
    if form == "text":
        return _text(infos, adaptive)
    if form == "markdown":
        return _markdown(infos, adaptive)
    if form == "json":
        listed = {"methods": [_facts(info) for info in infos], "adaptive": [_adaptive_facts(info) for info in adaptive]}
        return json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
    if form == "bibtex":
        every: list[Info] = [*infos, *adaptive]
        entries = {info.reference.key: info.bibtex for info in every}
        return "\n\n".join(entries[key] for key in sorted(entries)) + "\n"
    raise unknown_name("format", form, FORMATS)


def _facts(info: MethodInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "order": info.order,
        "cold_order": info.cold_order,
        "options": _plain_options(info),
        "cases": [
            {"options": case.options, "order": case.order, "cold_order": case.cold_order, "variable": case.variable}
            for case in info.cases
        ],
        "requires": info.requires,
        **_source(info.reference),
    }


def _adaptive_facts(info: AdaptiveInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "stochastic": info.stochastic,
        "options": _plain_options(info),
        "requires": info.requires,
        **_source(info.reference),
    }


def _source(reference: Reference) -> dict[str, Any]:
    return {
        "reference": f"{reference.authors}, {reference.title}, {reference.venue} ({reference.year})",
        "arxiv": reference.arxiv,
    }


def _plain_options(info: Info) -> dict[str, Any]:
    return {key: _plain(value) for key, value in info.options.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def orders_reached(info: MethodInfo) -> str:
    """Orders the declared cases reach, and in brackets those from a cold start where they differ."""
    orders = sorted({case.order for case in info.cases})
    cold = sorted({case.cold_order for case in info.cases})
    span = [f"{min(v)}–{max(v)}" if len(v) > 1 else str(v[0]) for v in (orders, cold)]
    return span[0] if span[0] == span[1] else f"{span[0]} ({span[1]})"


def written_options(info: Info) -> str:
    """Options with their defaults, as in a call."""
    return ", ".join(f"{key}={_plain(value)}" for key, value in info.options.items()) or "–"


def short_citation(info: Info) -> str:
    """First author and year of the reference."""
    first = info.reference.authors.split(" and ")[0].split(",")[0].strip()
    several = " et al." if " and " in info.reference.authors else ""
    return f"{first}{several} {info.reference.year}"


def _text(infos: list[MethodInfo], adaptive: list[AdaptiveInfo]) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=io.StringIO(), width=max(100, Console().width))
    for title, headings, rows in (
        (f"{len(infos)} methods", ("name", "what it is", "order (cold)", "options", "reference"), map(_row, infos)),
        (
            f"{len(adaptive)} methods that choose their own steps",
            ("name", "what it is", "options", "reference"),
            map(_adaptive_row, adaptive),
        ),
    ):
        table = RichTable(title=title, title_justify="left", show_lines=False)
        for heading in headings:
            table.add_column(heading, overflow="fold", no_wrap=heading == "name")
        for name, *row in rows:
            table.add_row(name, *row)
        console.print(table, markup=False)
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def _row(info: MethodInfo) -> tuple[str, ...]:
    return info.name, info.summary, orders_reached(info), written_options(info), short_citation(info)


def _adaptive_row(info: AdaptiveInfo) -> tuple[str, ...]:
    needs = f" Needs {info.requires}." if info.requires else ""
    return info.name, info.summary + needs, written_options(info), short_citation(info)


def _markdown(infos: list[MethodInfo], adaptive: list[AdaptiveInfo]) -> str:
    lines = ["| method | what it is | order (cold start) | options | reference |", "|---|---|---|---|---|"]
    lines += [_markdown_line(info, _row(info)) for info in infos]
    lines += ["", "Methods that choose their own steps:", ""]
    lines += ["| method | what it is | options | reference |", "|---|---|---|---|"]
    lines += [_markdown_line(info, _adaptive_row(info)) for info in adaptive]
    return "\n".join(lines) + "\n"


def _markdown_line(info: Info, row: tuple[str, ...]) -> str:
    name, *facts, options, reference = (text.replace("|", "\\|").replace("\n", " ") for text in row)
    if info.options:
        options = f"`{options}`"
    if info.reference.arxiv:
        reference += f", arXiv:{info.reference.arxiv}"
    return f"| {' | '.join([f'`{name}`', *facts, options, reference])} |"


def compile_table(method: str, path: str, grid: str, nfe: int) -> Table:
    """Compile a method on a named path and grid, all three written as specs.

    Raises
    ------
    ValueError
        For unknown names or options, or a budget the method cannot use.
    """
    how, where, which = parse_spec(method), parse_spec(path), parse_spec(grid)
    on = BRIDGES[where.name]() if where.name in BRIDGES else make_path(where.name, where.options)
    return plan(on, how.name, nfe=nfe, grid=which.name, grid_options=which.options, **how.options)


def inspect_table(table: Table, stats: str | None = None) -> Analysis:
    """Analyse a table, on the data set `stats` if one is named (see `ranking.spectrum_of`)."""
    from .ranking import spectrum_of

    return table.analyse(spectrum_of(stats) if stats is not None else None)
