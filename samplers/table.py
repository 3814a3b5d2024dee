"""A sampler as data: one row per network evaluation, every number known before the first call."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .files import replacing
from .nodes import Level
from .numerics import Array

if TYPE_CHECKING:
    from .analysis import Analysis

Coefficient = float | Array
Terms = tuple[tuple[int, Coefficient], ...]

FORMAT_VERSION = 1
FORMS = ("data", "noise", "velocity")


class Update(NamedTuple):
    """value[target] = Σ coefficient·value over `terms`."""

    target: int
    terms: Terms


@dataclass(frozen=True)
class Row:
    """One network evaluation (or pause) and what is computed after it.

    Attributes
    ----------
    level : Level
        Time label and path coefficients of the query.
    form : {"data", "noise", "velocity"}
        What the network's output is converted to before it is stored as value `output`.
    query : int or None
        The value the network is evaluated at; None for a row without a call.
    output : int or None
    estimate : terms or None
        When given, the output is this combination instead of a network call (analytic first step).
    noises : tuple of int
        Values filled with standard normals, one slot each; −1 marks a slot that nothing uses.
    updates : tuple of Update
        Evaluated in order.
    """

    level: Level
    form: str
    query: int | None
    output: int | None
    estimate: Terms | None
    noises: tuple[int, ...]
    updates: tuple[Update, ...]

    @property
    def calls_network(self) -> bool:
        """True where the row costs one evaluation."""
        return self.query is not None and self.estimate is None

    def reads(self) -> Iterator[int]:
        """Every value the row uses."""
        if self.query is not None:
            yield self.query
        for terms in (self.estimate or (), *(u.terms for u in self.updates)):
            yield from (v for v, _ in terms)


@dataclass(frozen=True)
class Table:
    """A compiled sampler: a general linear method in static single assignment.

    Values are numbered: 0 is the initial state, 1..A the anchors, the others network outputs, noises and
    updates. A table is checked in its frame when it is built (see `frames`).

    Attributes
    ----------
    rows : tuple of Row
    start, end : Level
        Where value 0 and the result live.
    result : int
    anchors : names of the constant tensors `run` must be given.
    frame : {"point_mass", "velocity", "none: reason"}
        In which sense the table is exact by construction.
    law : {"exact", "weak", "none: reason"}
        For stochastic tables: whether the variance of point-mass data is reproduced.
    nodes : dict
        The grid it was compiled on.
    method, options : how it was built, filled in by `build_table`.
    provenance : dict
        For a fitted table what it was fitted to, see `fitted.described_fit`; empty for others.
    """

    rows: tuple[Row, ...]
    start: Level
    end: Level
    result: int
    anchors: tuple[str, ...] = ()
    frame: str = "point_mass"
    law: str = "exact"
    nodes: dict[str, Any] = field(default_factory=dict)
    method: str = "custom"
    options: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def evaluations(self) -> int:
        """Exact number of network evaluations of one run."""
        return sum(row.calls_network for row in self.rows)

    @cached_property
    def stochastic(self) -> bool:
        """True where any row draws noise that is used."""
        return any(z >= 0 for row in self.rows for z in row.noises)

    @cached_property
    def has_arrays(self) -> bool:
        """True where some coefficient is an array (per-coordinate methods)."""
        return any(isinstance(c, np.ndarray) for _, c in self.coefficients())

    @cached_property
    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """For each row the values that no later row reads, so that the loop can free them."""
        seen = {self.result}
        frees: list[tuple[int, ...]] = []
        for row in reversed(self.rows):
            touched = set(row.reads()) | {u.target for u in row.updates} | set(row.noises) | {row.output}
            frees.append(tuple(sorted(v for v in touched if v is not None and v >= 0 and v not in seen)))
            seen |= {v for v in touched if v is not None}
        return tuple(reversed(frees))

    @cached_property
    def registers(self) -> int:
        """Largest number of state-sized tensors alive between two rows."""
        alive, most = 1 + len(self.anchors), 0
        for row, freed in zip(self.rows, self.last_uses, strict=True):
            alive += (row.output is not None) + sum(z >= 0 for z in row.noises) + len(row.updates) - len(freed)
            most = max(most, alive)
        return most

    def coefficients(self) -> Iterator[tuple[tuple[int, int, int], Coefficient]]:
        """All update coefficients as ((row, update, term), value)."""
        for k, row in enumerate(self.rows):
            for j, update in enumerate(row.updates):
                for i, (_, c) in enumerate(update.terms):
                    yield (k, j, i), c

    def with_coefficient(self, where: tuple[int, int, int], value: Coefficient) -> Table:
        """A copy with one update coefficient replaced (for tuning and for tests); it is not re-checked."""
        k, j, i = where
        row = self.rows[k]
        terms = list(row.updates[j].terms)
        terms[i] = (terms[i][0], value)
        updates = list(row.updates)
        updates[j] = Update(updates[j].target, tuple(terms))
        rows = list(self.rows)
        rows[k] = replace(row, updates=tuple(updates))
        return replace(self, rows=tuple(rows))

    def released(self) -> Table:
        """A copy that no longer says what it was fitted to, so that it runs on other networks too."""
        return replace(self, provenance={})

    def content(self) -> dict[str, Any]:
        """The table as JSON values, as `save` writes them.

        Raises
        ------
        ValueError
            Array coefficients, which JSON cannot hold.
        """
        arrays: dict[str, Array] = {}
        content = _encode(self, arrays)
        if arrays:
            raise ValueError(f"table {self.method!r} has array coefficients, which only a .safetensors file holds")
        return content

    @staticmethod
    def from_content(content: Any) -> Table:
        """The table that `content` gave, checked again in its frame.

        Raises
        ------
        ValueError
            It is not a table, or of a newer format.
        """
        return _checked(lambda: _decode(content, {}), "this")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path`: .json (scalar coefficients) or .safetensors (any), atomically.

        Raises
        ------
        ValueError
            Unknown suffix, array coefficients in .json, or a non-finite number.
        """
        path = Path(path)
        arrays: dict[str, Array] = {}
        try:
            text = json.dumps(_encode(self, arrays), allow_nan=False, indent=None)
        except ValueError as error:
            raise ValueError(f"table {self.method!r} holds a non-finite number and is not saved to {path}") from error
        if path.suffix == ".json":
            if arrays:
                raise ValueError(f"{path.name}: this table has array coefficients; save it as .safetensors")
            content = text.encode()
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save

            content = save(arrays or {"empty": np.zeros(0)}, metadata={"pathline_table": text})
        else:
            raise ValueError(f"table files end in .json or .safetensors, got {path.name!r}")
        with replacing(path, "wb") as stream:
            stream.write(content)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Table:
        """Read a table written by `save` and check it again in its frame.

        Raises
        ------
        ValueError
            The file is damaged, of a newer format, or not a table.
        """
        path = Path(path)

        def read() -> Table:
            if path.suffix != ".safetensors":
                return _decode(json.loads(path.read_text()), {})
            from safetensors import safe_open

            with safe_open(path, framework="np") as f:
                text = (f.metadata() or {})["pathline_table"]
                arrays = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
            return _decode(json.loads(text), arrays)

        return _checked(read, str(path))

    def describe(self) -> str:
        """The table as text: one line for each evaluation and each update."""
        from .describe import describe

        return describe(self)

    def analyse(self, spectrum: Any = None, mean: Any = None, **options: Any) -> Analysis:
        """Orders, stability, weights and the law it samples for Gaussian data, without a network.

        Parameters
        ----------
        spectrum, mean : optional
            Data: variances along the principal directions, a covariance or a statistics .npz; see
            `analysis.as_spectrum`. Options are those of `analysis.analyse`.
        """
        from .analysis import analyse

        return analyse(self, spectrum, mean, **options)

    def __repr__(self) -> str:
        return f"Table({self.method}, {self.evaluations} evaluations, {len(self.rows)} rows)"


def _checked(read: Callable[[], Table], name: str) -> Table:
    from .frames import check

    try:
        table = read()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{name} is not a readable pathline table: {error}") from error
    try:
        check(table)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name} is not a sound pathline table: {error}") from error
    return table


def _encode(table: Table, arrays: dict[str, Array]) -> dict[str, Any]:
    def coefficient(c: Coefficient) -> Any:
        if not isinstance(c, np.ndarray):
            return float(c)
        if not np.isfinite(c).all():
            raise ValueError("non-finite array")
        name = f"c{len(arrays)}"
        arrays[name] = np.ascontiguousarray(c)
        return name

    def terms(items: Terms | None) -> Any:
        return None if items is None else [[v, coefficient(c)] for v, c in items]

    return {
        "format": FORMAT_VERSION,
        "method": table.method,
        "options": table.options,
        "provenance": table.provenance,
        "frame": table.frame,
        "law": table.law,
        "anchors": list(table.anchors),
        "start": list(table.start),
        "end": list(table.end),
        "result": table.result,
        "nodes": table.nodes,
        "rows": [
            {
                "level": list(row.level),
                "form": row.form,
                "query": row.query,
                "output": row.output,
                "estimate": terms(row.estimate),
                "noises": list(row.noises),
                "updates": [[u.target, terms(u.terms)] for u in row.updates],
            }
            for row in table.rows
        ],
    }


def _decode(content: dict[str, Any], arrays: dict[str, Array]) -> Table:
    if not isinstance(content, dict) or not isinstance(content.get("method"), str):
        raise ValueError("it holds no table")
    if content.get("format") != FORMAT_VERSION:
        raise ValueError(f"format {content.get('format')!r}; this version reads format {FORMAT_VERSION}")

    def terms(items: Any) -> Terms:
        return tuple((int(v), arrays[c] if isinstance(c, str) else float(c)) for v, c in items)

    rows = tuple(
        Row(
            Level(*row["level"]),
            row["form"],
            row["query"],
            row["output"],
            None if row["estimate"] is None else terms(row["estimate"]),
            tuple(row["noises"]),
            tuple(Update(target, terms(items)) for target, items in row["updates"]),
        )
        for row in content["rows"]
    )
    return Table(
        rows=rows,
        start=Level(*content["start"]),
        end=Level(*content["end"]),
        result=content["result"],
        anchors=tuple(content["anchors"]),
        frame=content["frame"],
        law=content["law"],
        nodes=content["nodes"],
        method=content["method"],
        options=content["options"],
        provenance=content.get("provenance", {}),
    )
