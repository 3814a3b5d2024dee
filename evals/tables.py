"""Sections as text: rich tables for a terminal, the same as plain text or Markdown for files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from .summary import Metric, Section, cell_text, number, protocol_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def caption(section: Section, metric: Metric) -> str:
    """What a reader needs to judge the numbers: how good a perfect or a converged sampler would score."""
    parts = [f"n = {section.protocol.get('samples')}"]
    if metric.floor is not None and (floor := section.level(metric.floor)) is not None:
        parts.append(f"a perfect generator scores about {number(floor)} at this n")
    if metric.key == "fd" and (converged := section.level("fd_converged")) is not None:
        parts.append(f"the converged sampler {number(converged)}")
    if metric.key == "rmse" and (gap := section.level("truth_gap")) is not None:
        parts.append(f"the reference itself moves by {number(gap)} when its steps are halved")
    if any(v.counted != b for row in section.values[metric.key].values() for b, v in row.items()):
        parts.append("in brackets: evaluations spent, where fewer than allowed")
    return "; ".join(parts)


def rich_table(section: Section, metric: Metric) -> RenderableType:
    """A metric of a section: one row per sampler, one column per counted budget, the best in bold."""
    from rich.table import Table

    table = Table(
        title=f"{metric.title} by evaluations per sample — {section.source}",
        caption=caption(section, metric),
        title_justify="left",
        caption_justify="left",
        min_width=76,
    )
    table.add_column("sampler", no_wrap=True)
    for budget in section.budgets:
        table.add_column(str(budget), justify="right", no_wrap=True)
    for line in section.lines:
        row = section.values[metric.key].get(line)
        if row is None:
            continue
        cells = [cell_text(row.get(budget), budget) for budget in section.budgets]
        marked = [
            f"[bold green]{text}[/]" if line in section.leaders(metric.key, budget) else text
            for budget, text in zip(section.budgets, cells, strict=True)
        ]
        table.add_row(section.label(line), *marked)
    return table


def print_sections(found: list[Section], console: Console | None = None, keys: tuple[str, ...] = ()) -> None:
    """Print the tables of all sections (all metrics, or those in ``keys``)."""
    console = console or _console(found)
    for section in found:
        for metric in section.metrics:
            if not keys or metric.key in keys:
                console.print(rich_table(section, metric))
    if len(found) > 1:
        console.print(
            f"{len(found)} protocols were found; their numbers are not comparable and stand in separate tables."
        )


def _console(found: list[Section]) -> Console:
    """A console for stdout, wide enough for every column: a table cut to the screen would hide numbers."""
    from rich.console import Console

    return Console(width=max(Console().width, _width(found)))


def _width(found: list[Section]) -> int:
    widths = [
        len(section.label(line)) + 4 + sum(3 + max(len(cell_text(row.get(b), b)), len(str(b))) for b in section.budgets)
        for section in found
        for metric in section.metrics
        for line, row in section.values[metric.key].items()
    ]
    labels = [len(section.label(line)) for section in found for line in section.lines]
    return max(widths, default=0) + max(labels, default=0) + 12


def plain_text(found: list[Section]) -> str:
    """Tables and protocols as text without colour."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=max(120, _width(found)), color_system=None)
    print_sections(found, console)
    for section in found:
        for text in section.failures:
            console.print(f"diverged: {text}", markup=False, highlight=False)
        console.print(f"\nProtocol {section.key} — {section.source}")
        for key, value in protocol_lines(section):
            console.print(f"  {key}: {value}", markup=False, highlight=False)
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()
