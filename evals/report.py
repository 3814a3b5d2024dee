"""From records to a folder a person can read: table, plots, sample sheets and one HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .files import write_text
from .page import Chapter, Picture, build_page
from .plots import draw_contact_sheet, draw_metric, png_bytes, save_png
from .previews import load_preview
from .records import read_records
from .summary import Line, Section, budget_of, line_of, sections
from .tables import plain_text

SHEET_IMAGES = 8
SHEET_COLUMNS = 7
SHEET_ROWS = 18


@dataclass
class Report:
    """What was written and what could not be used."""

    folder: Path
    sections: list[Section]
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / "report.html"


def write_report(
    records: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], title: str = "Sampler comparison"
) -> Report:
    """Write ``report.html``, ``report.txt`` and PNG plots for one or several record files.

    Parameters
    ----------
    records : sequence of paths
        JSON-lines files of sweeps; records of unlike protocol go to separate sections.
    out : path
        Folder, created if absent.
    title : str
        Heading of the page.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If a file is missing or holds no usable record. Damaged lines are named in ``warnings`` only.
    """
    found, warnings = read_records(*records)
    report = Report(Path(out), sections(found), warnings=warnings)
    report.folder.mkdir(parents=True, exist_ok=True)
    folders = [Path(path) for path in records]
    chapters = [_chapter(report, section, index, folders) for index, section in enumerate(report.sections)]
    versions = sorted({", ".join(f"{k} {v}" for k, v in sorted(r["run"].get("versions", {}).items())) for r in found})
    text = plain_text(report.sections)
    for name, content in (
        ("report.txt", text),
        ("report.html", build_page(title, chapters, warnings, "Made with " + "; ".join(versions))),
    ):
        write_text(report.folder / name, content)
        report.files.append(report.folder / name)
    return report


def _chapter(report: Report, section: Section, index: int, records: Sequence[Path]) -> Chapter:
    suffix = f"-{index + 1}" if len(report.sections) > 1 else ""
    plots = []
    for metric in section.metrics:
        png = png_bytes(draw_metric(section, metric))
        path = report.folder / f"{metric.key}-vs-nfe{suffix}.png"
        save_png(png, path)
        report.files.append(path)
        if metric.key in ("fd", "rmse"):
            plots.append(Picture(png, f"{metric.title} against counted evaluations, logarithmic axes."))
    sheet = _sheet(section, records)
    if sheet is None:
        return Chapter(section, tuple(plots))
    path = report.folder / f"samples{suffix}.png"
    save_png(sheet.png, path)
    report.files.append(path)
    return Chapter(section, tuple(plots), (sheet,))


def _sheet(section: Section, records: Sequence[Path]) -> Picture | None:
    """Samples of every sampler over budgets from the same start noises, the converged ones last."""
    seed = section.seeds[0]
    budgets = _spread(section.budgets, SHEET_COLUMNS)
    tiles: dict[tuple[Line, int], np.ndarray] = {}
    converged: np.ndarray | None = None
    for record in section.records:
        if record["config"]["seed"] != seed or budget_of(record) not in budgets:
            continue
        preview = load_preview(records, record["id"], SHEET_IMAGES)
        if preview is not None:
            tiles[line_of(record), budget_of(record)] = preview
        if converged is None and "truth" in record["facts"]:
            converged = load_preview(records, record["facts"]["truth"], SHEET_IMAGES)
    if not tiles:
        return None
    lines = [line for line in section.lines if any((line, budget) in tiles for budget in budgets)]
    if len(lines) > SHEET_ROWS:
        lines = [line for line in lines if not section.has_twin(line)][:SHEET_ROWS]
    rows: list[tuple[str, list[np.ndarray | None]]] = [
        (section.label(line), [tiles.get((line, budget)) for budget in budgets] + [converged]) for line in lines
    ]
    columns = [str(budget) for budget in budgets] + ["converged"]
    if converged is None:
        rows, columns = [(label, images[:-1]) for label, images in rows], columns[:-1]
    title = f"{section.source}: samples by evaluations, the same start noises everywhere (seed {seed})"
    figure = draw_contact_sheet(rows, columns, title)
    return Picture(png_bytes(figure), title + ".")


def _spread(values: list[int], count: int) -> list[int]:
    if len(values) <= count:
        return values
    picks = np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))
    return [values[i] for i in picks]
