"""Fewer passes over the memory: the updates between two network calls rewritten with as few terms as possible.

A pass reads or writes a whole state. What is computed stays the same up to rounding; a table itself is never changed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ..table import Coefficient, Terms, Update

RAW = -2
"""The network's output itself, for updates that need not wait for its conversion; numbers of values are >= 0."""


def inlined(updates: Sequence[Update], dying: Collection[int]) -> tuple[Update, ...]:
    """Updates whose target dies in them and is read once are written into their reader.

    Parameters
    ----------
    updates : sequence of Update
        Those of one call, in order.
    dying : collection of int
        Values that nothing reads after these updates.
    """
    kept = {update.target: update.terms for update in updates}
    for target in [update.target for update in updates]:
        readers = [t for t, terms in kept.items() if any(v == target for v, _ in terms)]
        if target in dying and len(readers) == 1 and _scalar(kept[target]) and _scalar(kept[readers[0]]):
            kept[readers[0]] = substituted(kept[readers[0]], target, kept.pop(target))
    return tuple(Update(target, terms) for target, terms in kept.items())


def without(updates: Sequence[Update], output: int, query: int, convert: tuple[float, float]) -> tuple[Update, ...]:
    """The updates with value `output` written as convert[0]·query + convert[1]·RAW."""
    definition = tuple((v, c) for v, c in ((query, convert[0]), (RAW, convert[1])) if c != 0.0)
    return tuple(Update(u.target, substituted(u.terms, output, definition)) for u in updates)


def substituted(terms: Terms, value: int, definition: Terms) -> Terms:
    """`terms` with `definition` in the place of `value`."""
    total = dict[int, Coefficient]()
    for v, c in terms:
        for inner, factor in definition if v == value else ((v, 1.0),):
            total[inner] = total.get(inner, 0.0) + c * factor
    return tuple(total.items())


def unit_first(terms: Terms) -> Terms:
    """A term with coefficient 1 in front spares the combiner one pass."""
    return tuple(sorted(terms, key=lambda term: isinstance(term[1], np.ndarray) or term[1] != 1.0))


def passes(updates: Sequence[Update]) -> int:
    """Number of element-wise operations of some updates."""
    return sum(len(u.terms) - any(not isinstance(c, np.ndarray) and c == 1.0 for _, c in u.terms) for u in updates)


def _scalar(terms: Terms) -> bool:
    return not any(isinstance(c, np.ndarray) for _, c in terms)
