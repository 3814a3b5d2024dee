"""Errors with words: what was asked, what is allowed, what is nearest."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> ValueError:
    """Make the error for a name that is not known; the caller raises it.

    Parameters
    ----------
    kind : str
        What the name stands for, for instance ``"path"`` or ``"prediction"``.
    name : object
        The name as it was given.
    valid : iterable of str
        All names that would have been accepted.

    Returns
    -------
    ValueError
        Its message gives the nearest valid names, if any, and then all of them.
    """
    choices = list(valid)
    near = get_close_matches(str(name).lower(), choices, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(item) for item in near)}?" if near else ";"
    return ValueError(f"unknown {kind} {name!r}{hint} valid names: {', '.join(choices)}")


def check_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """Return `name` as a string if it is one of `valid`, else raise `unknown_name`."""
    choices = list(valid)
    if isinstance(name, str) and name in choices:
        return name
    raise unknown_name(kind, name, choices)


def check_positive(argument: str, value: float) -> float:
    """Return `value` as a float if it is finite and above zero, else raise ValueError naming `argument`."""
    number = float(value)
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{argument} must be a finite number above 0, got {value!r}")
    return number


def check_ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raise ValueError unless ``low < high`` (both finite)."""
    if not float("-inf") < low < high < float("inf"):
        raise ValueError(f"{low_name} must be below {high_name}, got {low!r} and {high!r}")
