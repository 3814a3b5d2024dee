"""One HTML page that holds a whole report: style and pictures inside, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from importlib import resources

from .summary import Metric, Section, cell_text, protocol_lines
from .tables import caption


@dataclass(frozen=True)
class Picture:
    """A PNG with its description."""

    png: bytes
    text: str

    def html(self) -> str:
        """Figure element with the picture inlined."""
        data = base64.b64encode(self.png).decode("ascii")
        text = escape(self.text)
        return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


@dataclass(frozen=True)
class Chapter:
    """A section with its plots and sample sheet."""

    section: Section
    plots: tuple[Picture, ...]
    samples: tuple[Picture, ...] = ()


def html_table(section: Section, metric: Metric) -> str:
    """A metric of a section as an HTML table, the best of each column marked."""
    head = "".join(f'<th scope="col">{budget}</th>' for budget in section.budgets)
    rows = []
    for line in section.lines:
        values = section.values[metric.key].get(line)
        if values is None:
            continue
        cells = []
        for budget in section.budgets:
            value = values.get(budget)
            mark = ' class="best"' if line in section.leaders(metric.key, budget) else ""
            cells.append(f"<td{mark}>{cell_text(value, budget)}</td>")
        rows.append(f"<tr><td>{escape(section.label(line))}</td>{''.join(cells)}</tr>")
    return (
        f"<h3>{escape(metric.title)}</h3><div class='scroll'><table><caption>{escape(caption(section, metric))}"
        f"</caption><thead><tr><th>sampler \\ evaluations</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _winners(section: Section) -> str:
    """One sentence per headline metric: which sampler leads at the smallest and the largest budget."""
    sentences = []
    for metric in section.metrics[:2]:
        parts = []
        for budget in dict.fromkeys((section.budgets[0], section.budgets[-1])):
            leaders = [line for line in section.leaders(metric.key, budget) if not section.has_twin(line)]
            if leaders:
                others = f" and {len(leaders) - 1} equal" if len(leaders) > 1 else ""
                parts.append(f"<b>{escape(section.label(leaders[0]))}</b>{others} at {budget} evaluations")
        sentences.append(f"{escape(metric.title)}: lowest is {', '.join(parts)}.")
    return "".join(f"<p>{sentence}</p>" for sentence in sentences)


def _chapter(chapter: Chapter) -> str:
    section = chapter.section
    seeds = f"{len(section.seeds)} seed{'s' if len(section.seeds) > 1 else ''}"
    count = f"{section.protocol.get('samples')} samples per cell, {seeds}, {len(section.records)} results"
    tables = [html_table(section, metric) for metric in section.metrics]
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in protocol_lines(section))
    samples = "".join(picture.html() for picture in chapter.samples)
    return "\n".join(
        [
            f"<section><h2>{escape(section.source)}</h2><p class='soft'>{escape(count)}</p>",
            _winners(section),
            f"<div class='pair'>{''.join(picture.html() for picture in chapter.plots)}</div>",
            *tables[:2],
            "".join(f"<p class='warning'>{escape(text)}</p>" for text in section.failures),
            "<h3>Samples</h3>" + samples if samples else "",
            f"<details><summary>Further distances</summary>{''.join(tables[2:])}</details>" if tables[2:] else "",
            f"<h3>Protocol</h3><dl>{facts}</dl></section>",
        ]
    )


def build_page(title: str, chapters: Iterable[Chapter], warnings: Iterable[str], versions: str) -> str:
    """The whole page as text."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    notes = "".join(f"<p class='warning'>{escape(text)}</p>" for text in warnings)
    body = "\n".join(_chapter(chapter) for chapter in chapters)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="soft">Evaluations are counted at the network, per sample. Lower is better throughout. Each section holds one
protocol; numbers of different sections are not comparable.</p>
{notes}
{body}
<p class="soft">{escape(versions)}</p>
</body>
</html>
"""
