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

FORMS = ("data", "noise", "velocity")
_ARRAYS = "array coefficients or constants"


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


@dataclass(frozen=True, eq=False)
class Table:
    """A compiled sampler: a general linear method in static single assignment.

    Values are numbered: 0 is the initial state, 1..A the anchors, the others network outputs, noises and
    updates. A table is checked in its frame when it is built (see `frames`). Tables are equal when all they hold is.

    Attributes
    ----------
    rows : tuple of Row
    start, end : Level
        Where value 0 and the result live.
    result : int
    anchors : names of the constant tensors `run` must be given, but for those in `constants`.
    frame : {"point_mass", "velocity", "none: reason"}
        In which sense the table is exact by construction.
    law : {"exact", "weak", "none: reason"}
        For stochastic tables: whether the variance of point-mass data is reproduced.
    nodes : dict
        The grid it was compiled on.
    method, options : how it was built, filled in by `build_table`.
    provenance : dict
        For a fitted table what it was fitted to, see `fitted.described_fit`; empty for others.
    basis : str, optional
        Name of the basis in which array coefficients act as filters, see `combine.Combiner`; None is the state's own.
    constants : dict of name -> float or array
        Anchors that the table brings along; an array has the shape of one sample, or one that broadcasts to it.
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
    basis: str | None = None
    constants: dict[str, Coefficient] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        from .encoding import equal

        return self is other or equal(self, other)

    __hash__ = None  # type: ignore[assignment]  # holds dicts

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

    @cached_property
    def fits_json(self) -> bool:
        """True where `content` and .json files can hold the table: there are no arrays in it."""
        estimates = (c for row in self.rows for _, c in row.estimate or ())
        return not any(
            isinstance(c, np.ndarray)
            for c in (*(c for _, c in self.coefficients()), *estimates, *self.constants.values())
        )

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
        from .encoding import encode

        arrays: dict[str, Array] = {}
        content = encode(self, arrays)
        if arrays:
            raise ValueError(f"table {self.method!r} has {_ARRAYS}, which only a .safetensors file holds")
        return content

    @staticmethod
    def from_content(content: Any) -> Table:
        """The table that `content` gave, checked again in its frame.

        Raises
        ------
        ValueError
            It is not a table, or of a newer format.
        """
        from .encoding import decode

        return _checked(lambda: decode(content, {}), "this")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path`: .json (numbers only) or .safetensors (any table), atomically.

        Raises
        ------
        ValueError
            Unknown suffix, array coefficients or constants in .json, or a non-finite number.
        """
        from .encoding import encode

        path = Path(path)
        arrays: dict[str, Array] = {}
        try:
            text = json.dumps(encode(self, arrays), allow_nan=False, indent=None)
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError("non-finite array")
        except ValueError as error:
            raise ValueError(f"table {self.method!r} holds a non-finite number and is not saved to {path}") from error
        if path.suffix == ".json":
            if arrays:
                raise ValueError(f"{path.name}: this table has {_ARRAYS}; save it as .safetensors")
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
        from .encoding import decode

        path = Path(path)

        def read() -> Table:
            if path.suffix != ".safetensors":
                return decode(json.loads(path.read_text()), {})
            from safetensors import safe_open

            with safe_open(path, framework="np") as f:
                text = (f.metadata() or {})["pathline_table"]
                arrays = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
            return decode(json.loads(text), arrays)

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
