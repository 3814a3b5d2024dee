"""The registry as text: a table of methods for terminals and documents, and compiled tables for inspection."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from pathline.interpolants import unknown_name
from pathline.samplers import MethodInfo, Table, list_methods, method_info, plan
from pathline.training.setup import make_path

from .settings import parse_spec

if TYPE_CHECKING:
    from pathline.samplers.analysis import Analysis

FORMATS = ("text", "markdown", "json", "bibtex")


def method_table(form: str = "text") -> str:
    """Every registered method with its declared facts, generated from the registry.

    Parameters
    ----------
    form : {"text", "markdown", "json", "bibtex"}

    Raises
    ------
    ValueError
        For an unknown format.
    """
    infos = [method_info(name) for name in list_methods()]
    if form == "text":
        return _text(infos)
    if form == "markdown":
        return _markdown(infos)
    if form == "json":
        return json.dumps([_facts(info) for info in infos], indent=2, ensure_ascii=False) + "\n"
    if form == "bibtex":
        entries = {info.reference.key: info.bibtex for info in infos}
        return "\n\n".join(entries[key] for key in sorted(entries)) + "\n"
    raise unknown_name("format", form, FORMATS)


def _facts(info: MethodInfo) -> dict[str, Any]:
    reference = info.reference
    return {
        "name": info.name,
        "summary": info.summary,
        "order": info.order,
        "cold_order": info.cold_order,
        "options": {key: _plain(value) for key, value in info.options.items()},
        "cases": [
            {"options": case.options, "order": case.order, "cold_order": case.cold_order, "variable": case.variable}
            for case in info.cases
        ],
        "requires": info.requires,
        "reference": f"{reference.authors}, {reference.title}, {reference.venue} ({reference.year})",
        "arxiv": reference.arxiv,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def orders_reached(info: MethodInfo) -> str:
    """Orders the declared cases reach, and in brackets those from a cold start where they differ."""
    orders = sorted({case.order for case in info.cases})
    cold = sorted({case.cold_order for case in info.cases})
    span = [f"{min(v)}–{max(v)}" if len(v) > 1 else str(v[0]) for v in (orders, cold)]
    return span[0] if span[0] == span[1] else f"{span[0]} ({span[1]})"


def written_options(info: MethodInfo) -> str:
    """Options with their defaults, as in a call."""
    return ", ".join(f"{key}={_plain(value)}" for key, value in info.options.items()) or "–"


def short_citation(info: MethodInfo) -> str:
    """First author and year of the reference."""
    first = info.reference.authors.split(" and ")[0].split(",")[0].strip()
    several = " et al." if " and " in info.reference.authors or "," in info.reference.authors else ""
    return f"{first}{several} {info.reference.year}"


def _text(infos: list[MethodInfo]) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable

    table = RichTable(title=f"{len(infos)} methods", title_justify="left", show_lines=False)
    for heading in ("name", "what it is", "order (cold)", "options", "reference"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for info in infos:
        table.add_row(info.name, info.summary, orders_reached(info), written_options(info), short_citation(info))
    console = Console(file=io.StringIO(), width=max(100, Console().width))
    console.print(table, markup=False)
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def _markdown(infos: list[MethodInfo]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    lines = ["| method | what it is | order (cold start) | options | reference |", "|---|---|---|---|---|"]
    for info in infos:
        options = f"`{written_options(info)}`" if info.options else "–"
        reference = cell(short_citation(info))
        if info.reference.arxiv:
            reference += f", arXiv:{info.reference.arxiv}"
        orders = orders_reached(info)
        lines.append(f"| `{info.name}` | {cell(info.summary)} | {orders} | {cell(options)} | {reference} |")
    return "\n".join(lines) + "\n"


def compile_table(method: str, path: str, grid: str, nfe: int) -> Table:
    """Compile a method on a named path and grid, all three written as specs.

    Raises
    ------
    ValueError
        For unknown names or options, or a budget the method cannot use.
    """
    how, where, which = parse_spec(method), parse_spec(path), parse_spec(grid)
    on = make_path(where.name, where.options)
    return plan(on, how.name, nfe=nfe, grid=which.name, grid_options=which.options, **how.options)


def inspect_table(table: Table, stats: str | None = None) -> Analysis:
    """Analyse a table, on the data set `stats` if one is named (see `ranking.spectrum_of`)."""
    from .ranking import spectrum_of

    return table.analyse(spectrum_of(stats) if stats is not None else None)
