"""Records gathered into sections that may be compared, with mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .records import Record, protocol_of
from .settings import Spec


class Metric(NamedTuple):
    """A metric a report shows: its key in a record, its title and whether a floor of perfect sampling exists."""

    key: str
    title: str
    floor: str | None = None


class Value(NamedTuple):
    """Mean and standard deviation over ``seeds`` runs (deviation 0 for a single one), and evaluations counted."""

    mean: float
    deviation: float
    seeds: int
    counted: int


class Line(NamedTuple):
    """One sampler of a section: what is drawn as one line and printed as one row."""

    method: str
    grid: str
    runner: str


@dataclass
class Section:
    """Results of one protocol and one set of seeds; only these are put side by side."""

    protocol: dict[str, Any]
    key: str
    seeds: tuple[int, ...]
    values: dict[str, dict[Line, dict[int, Value]]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @property
    def lines(self) -> list[Line]:
        """Samplers in order of first appearance."""
        return list(dict.fromkeys(line_of(record) for record in self.records))

    @property
    def budgets(self) -> list[int]:
        """Budgets of evaluations per sample that were allowed, ascending."""
        return sorted({budget_of(record) for record in self.records})

    @property
    def source(self) -> str:
        """Name of what was sampled."""
        return str(self.protocol.get("source", {}).get("name", "unknown source"))

    @property
    def metrics(self) -> list[Metric]:
        """Metrics with at least one value, distances under the label their feature space allows."""
        label = str(self.protocol.get("features", {}).get("label", "FD"))
        candidates = (
            Metric("fd", label, "fd_floor"),
            Metric("rmse", "RMSE to the converged sample of the same noise"),
            Metric("kid", "kernel distance (KID kernel), same features"),
            Metric("sliced", "sliced Wasserstein distance squared, same features"),
        )
        return [metric for metric in candidates if self.values.get(metric.key)]

    def level(self, key: str) -> float | None:
        """Mean of a per-record fact such as the floor or the converged distance, or None."""
        found = [r["metrics"].get(key) for r in self.records]
        numbers = [v for v in found if v is not None]
        return float(np.mean(numbers)) if numbers else None

    @property
    def failures(self) -> list[str]:
        """One sentence for each result that is no number because the run diverged."""
        return [
            f"{self.label(line_of(r))} at {budget_of(r)} evaluations, seed {r['config']['seed']}: {r['facts']['error']}"
            for r in self.records
            if "error" in r["facts"]
        ]

    def label(self, line: Line) -> str:
        """Shortest text that tells this line from the others of the section."""
        parts = [line.method]
        if len({other.grid for other in self.lines}) > 1:
            parts.append(line.grid)
        if len({other.runner for other in self.lines}) > 1 and line.runner != "sample":
            parts.append(line.runner)
        return " · ".join(parts)

    def leaders(self, key: str, budget: int) -> list[Line]:
        """Samplers whose mean is lowest at a budget, together with those that print as the same number."""
        row = {line: v[budget].mean for line, v in self.values.get(key, {}).items() if budget in v}
        least = min(row.values(), default=None)
        return [] if least is None else [line for line in self.lines if line in row and _ties(row[line], least)]

    def has_twin(self, line: Line) -> bool:
        """True for a scheduler run whose sampler was run through the library too."""
        return line.runner != "sample" and line._replace(runner="sample") in self.lines


def _ties(value: float, least: float) -> bool:
    return value <= least or number(value) == number(least)


def line_of(record: Record) -> Line:
    """The sampler a record belongs to."""
    config = record["config"]
    return Line(
        str(Spec(config["method"], config["options"])),
        str(Spec(config["grid"], config["grid_options"])),
        config["runner"],
    )


def budget_of(record: Record) -> int:
    """Evaluations per sample the sampler was allowed; ``counted`` says what it spent."""
    return int(record["config"]["nfe"])


def counted(record: Record) -> int:
    """Counted network evaluations per sample."""
    return round(record["facts"]["nfe"])


def sections(records: Iterable[Record]) -> list[Section]:
    """Split records by protocol and by the set of seeds each cell was run with.

    Two cells run with different seeds saw different noise, so they go to different sections too.
    """
    cells: dict[tuple[str, Line, int], list[Record]] = {}
    for record in records:
        cells.setdefault((record["protocol"], line_of(record), budget_of(record)), []).append(record)
    found: dict[tuple[str, tuple[int, ...]], Section] = {}
    for (protocol, line, budget), members in cells.items():
        seeds = tuple(sorted(r["config"]["seed"] for r in members))
        section = found.setdefault((protocol, seeds), Section(protocol_of(members[0]["config"]), protocol, seeds))
        section.records += members
        for key in members[0]["metrics"]:
            numbers = [r["metrics"].get(key) for r in members]
            if all(v is not None for v in numbers):
                section.values.setdefault(key, {}).setdefault(line, {})[budget] = _value(numbers, counted(members[0]))
    return sorted(found.values(), key=lambda s: -len(s.records))


def _value(numbers: Sequence[float], spent: int) -> Value:
    array = np.asarray(numbers, dtype=np.float64)
    return Value(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0, len(array), spent)


def number(value: float) -> str:
    """Three significant digits, without an exponent where the size allows."""
    if value == 0 or not np.isfinite(value):
        return f"{value:.3g}"
    if not 1e-4 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"


def cell_text(value: Value | None, budget: int) -> str:
    """A table entry: mean, deviation where there are several seeds, evaluations where fewer were spent."""
    if value is None:
        return "–"
    text = number(value.mean) if value.seeds == 1 else f"{number(value.mean)} ± {number(value.deviation)}"
    return text if value.counted == budget else f"({value.counted}) {text}"


def protocol_lines(section: Section) -> list[tuple[str, str]]:
    """The protocol in words, for the foot of a table."""
    protocol = section.protocol
    data, truth = protocol.get("reference", {}), protocol.get("truth")
    features = protocol.get("features", {})
    out = [
        ("source", f"{section.source} ({protocol.get('source', {}).get('id', 'no id')})"),
        ("path, prediction", f"{protocol.get('path', {}).get('name', '?')}, {protocol.get('prediction', '?')}"),
        ("samples per cell", str(protocol.get("samples"))),
        ("seeds", ", ".join(map(str, section.seeds))),
        ("feature space", str(features.get("label", "?")) + f" ({features.get('space', '?')})"),
        ("reference data", f"{data.get('name', '?')}, {data.get('count', '?')} samples ({data.get('id', '?')})"),
        ("dtype", str(protocol.get("dtype"))),
        ("guidance", "none" if protocol.get("guidance") is None else str(protocol["guidance"])),
        ("labels", str(protocol.get("labels", "none"))),
    ]
    if truth:
        out.append(("converged reference", f"{truth['method']} on {truth['grid']}, {truth['steps']} steps"))
    out.append(("protocol hash", section.key))
    return out
