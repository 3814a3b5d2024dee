"""Empirical model statistics: what DPM-Solver-v3 linearises a network around, and its integrals over a step.

With x = signal·data + noise·ε and the network's noise prediction N, the flow reads d(x/signal)/dλ = −e^{−λ}·N. The
statistics l, s, b, functions of λ and of the coordinate, split it (Zheng et al. 2023, arXiv:2310.13268, section 3):
f = e^{−λ}·N − l·x/signal takes out the linear part, and df/dλ ≈ s·f + b along a trajectory, so that
g = e^{−∫s}·f − ∫e^{−∫s}·b hardly moves and is what a solver interpolates:

    x'/signal' = e^{−∫l}·(x/signal − ∫ e^{∫(l + s)}·(g + ∫e^{−∫s}·b) dλ).

All integrals start at the step's own beginning, so that nothing overflows over a long range of λ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import factorial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pathline.interpolants import GaussianPath

from .files import replacing
from .numerics import Array, phi
from .table import Coefficient

FORMAT_VERSION = 1
_LONG = 16
_SHOWN = 160
_ROUNDED = 1e-4
_EDGE = 1e-6
"""How far beyond its grid, in λ, statistics are still read: levels rounded to float32."""


class StepIntegrals(NamedTuple):
    """What one step from λ_s to λ_t needs, relative to s.

    Attributes
    ----------
    decay : e^{−∫l} over the step
    moments : ∫ e^{∫(l + s)}·(λ − λ_s)^k/k! dλ over the step for k = 0, 1, …; every inner integral from λ_s
    shift : ∫ e^{∫(l + s)}·(∫e^{−∫s}·b) dλ over the step
    scales, offsets : for each level asked for, e^{−∫s} and ∫e^{−∫s}·b from λ_s to there, so that g = scale·f − offset
    """

    decay: Coefficient
    moments: tuple[Coefficient, ...]
    shift: Coefficient
    scales: tuple[Coefficient, ...]
    offsets: tuple[Coefficient, ...]


@dataclass(frozen=True)
class ConstantStatistics:
    """Statistics that do not depend on λ or the coordinate, with b = 0: all integrals in closed form.

    l = 1, s = 0 make f = −D and the exact data-form (DPM-Solver++) integrators, l = 0, s = −1 make g ∝ N and those of
    the noise form.

    Attributes
    ----------
    name : str
    l, s : float
    form : {"data", "noise"}
        What the outputs are stored as.
    """

    name: str
    l: float  # noqa: E741 (the name it has in the paper)
    s: float
    form: str

    def at(self, lam: float) -> float:
        """The value of l, at any level."""
        return self.l

    def step(self, start: float, end: float, levels: Sequence[float], count: int) -> StepIntegrals:
        """Integrals from λ `start` to `end`, `count` moments, and g's factors at `levels`."""
        h, rate = end - start, self.l + self.s
        moments = tuple(float(h ** (k + 1) * np.exp(rate * h) * phi(k + 1, -rate * h)) for k in range(count))
        scales = tuple(float(np.exp(-self.s * (lam - start))) for lam in levels)
        return StepIntegrals(float(np.exp(-self.l * h)), moments, 0.0, scales, (0.0,) * len(scales))


DEGENERATE: dict[str, ConstantStatistics] = {
    "data": ConstantStatistics("data", 1.0, 0.0, "data"),
    "noise": ConstantStatistics("noise", 0.0, -1.0, "noise"),
}
"""The statistics under which DPM-Solver-v3 is DPM-Solver++ and DPM-Solver, both with exact weights."""


class Cumulative(NamedTuple):
    """Trapezoids from the first level on, (G, ...): L = ∫l, S = ∫s, B = ∫e^{−S}·b, I = ∫e^{L+S}, C = ∫e^{L+S}·B."""

    L: Array
    S: Array
    B: Array
    I: Array  # noqa: E741 (the paper's name)
    C: Array


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """l, s, b of one network on a grid of λ.

    Between its levels the statistics are linear, and integrals are trapezoids, as in the published code.

    Attributes
    ----------
    lam : array (G,)
        Increasing half log-SNRs, at least two.
    l, s, b : arrays (G, ...)
        Trailing axes are the shape of one sample; (G,) shares one value among all coordinates.
    metadata : dict
        How they were measured, in JSON values: path, prediction, guidance, samples, calls, model …; may be empty.

    Raises
    ------
    ValueError
        Unequal shapes, levels that do not increase, or values that are not finite.
    """

    lam: Array
    l: Array  # noqa: E741 (the name it has in the paper)
    s: Array
    b: Array
    metadata: dict[str, Any] = field(default_factory=dict)

    form = "data"

    def __post_init__(self) -> None:
        for name in ("lam", "l", "s", "b"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if not np.isfinite(values).all():
                raise ValueError(f"{name} of model statistics holds NaN or infinite values")
            object.__setattr__(self, name, values)
        if self.lam.ndim != 1 or len(self.lam) < 2 or not (np.diff(self.lam) > 0).all():
            raise ValueError("lam of model statistics must be at least two increasing half log-SNRs")
        shapes = {name: getattr(self, name).shape for name in ("l", "s", "b")}
        if len(set(shapes.values())) > 1 or self.l.shape[:1] != self.lam.shape:
            raise ValueError(f"l, s, b must have one shape ({len(self.lam)}, ...) with the levels first, got {shapes}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample; () where all coordinates share one value."""
        return self.l.shape[1:]

    def recorded(self) -> dict[str, Any]:
        """What tables record of them: range, number of levels, shape, and how they were measured."""
        size = {"lam": [float(self.lam[0]), float(self.lam[-1])], "levels": len(self.lam), "shape": list(self.shape)}
        return {**size, **self.metadata}

    def provenance(self) -> dict[str, Any]:
        """What a table of them says of its network (`fitted.check_fit`): prediction and guidance, where known."""
        found: dict[str, Any] = {k: v for k, v in self.metadata.items() if k in ("prediction", "guidance")}
        if isinstance(scaled := found.get("guidance"), Mapping):
            found["guidance"] = scaled.get("scale", scaled.get("name"))
        return found

    def check_path(self, path: GaussianPath) -> None:
        """Raise ValueError where they say that they were measured on another path."""
        own, wanted = self.metadata.get("path"), path_facts(path)
        if own is not None and not _same_path(own, wanted):
            raise ValueError(
                f"these model statistics belong to path {_short(own)}, not to {_short(wanted)}; measure new, or use "
                "force=True to take them all the same"
            )

    # --- integrals ------------------------------------------------------------------------------------------

    @cached_property
    def cumulative(self) -> Cumulative:
        """The published integrals over the whole grid; they overflow to infinity where the range is too long."""
        lam, zero = self.lam, np.zeros_like(self.l[:1])
        with np.errstate(over="ignore", invalid="ignore"):
            L, S = (np.concatenate([zero, _running(lam, v)]) for v in (self.l, self.s))
            B = np.concatenate([zero, _running(lam, np.exp(-S) * self.b)])
            grown = np.exp(L + S)
            I, C = (np.concatenate([zero, _running(lam, v)]) for v in (grown, grown * B))  # noqa: E741
        return Cumulative(L, S, B, I, C)

    def at(self, lam: float) -> Array:
        """The values of l at a level of the grid's range; errors as `step`."""
        return self._interpolated(np.array([lam]))[0][0]

    def step(self, start: float, end: float, levels: Sequence[float], count: int) -> StepIntegrals:
        """Integrals from λ `start` to `end`, `count` moments, and g's factors at `levels`.

        Raises
        ------
        ValueError
            A level outside the grid.
        """
        ends = [start, end, *levels]
        inner = self.lam[(self.lam > min(ends)) & (self.lam < max(ends))]
        lam = np.unique(np.concatenate([inner, ends]))
        l, s, b = self._interpolated(lam)  # noqa: E741
        first, last = np.searchsorted(lam, [start, end])
        total_s = _from(first, lam, s)
        offset = _from(first, lam, np.exp(-total_s) * b)
        window = slice(first, last + 1)
        lam_in, total_l = lam[window], _from(0, lam[window], l[window])
        grown = np.exp(total_l + total_s[window])
        powers = (lam_in - start).reshape(-1, *(1,) * (l.ndim - 1))
        moments = tuple(_whole(lam_in, grown * powers**k / factorial(k)) for k in range(count))
        places = np.searchsorted(lam, levels)
        return StepIntegrals(
            np.exp(-total_l[-1]),
            moments,
            _whole(lam_in, grown * offset[window]),
            tuple(np.exp(-total_s[p]) for p in places),
            tuple(offset[p] for p in places),
        )

    def _interpolated(self, lam: Array) -> tuple[Array, Array, Array]:
        low, high = self.lam[0], self.lam[-1]
        outside = (lam < low - _EDGE) | (lam > high + _EDGE)
        if outside.any():
            raise ValueError(
                f"λ = {lam[outside][0]:.6g} lies outside the model statistics, which reach from {low:.6g} to "
                f"{high:.6g}; use a grid within them, or measure statistics over a wider range"
            )
        after = np.clip(np.searchsorted(self.lam, lam), 1, len(self.lam) - 1)
        share = (lam - self.lam[after - 1]) / (self.lam[after] - self.lam[after - 1])
        share = np.clip(share, 0.0, 1.0).reshape(-1, *(1,) * (self.l.ndim - 1))
        l, s, b = ((1.0 - share) * v[after - 1] + share * v[after] for v in (self.l, self.s, self.b))  # noqa: E741
        return l, s, b

    # --- files ----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path`, .npz or .safetensors, atomically.

        Raises
        ------
        ValueError
            Another suffix.
        """
        path = Path(path)
        arrays = {"grid_lambda": self.lam, "l": self.l, "s": self.s, "b": self.b}
        save_arrays(path, arrays, {"format": FORMAT_VERSION, **self.metadata})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ModelStatistics:
        """Read what `save` wrote, or any .npz with grid_lambda, l, s and b.

        Raises
        ------
        ValueError
            Not such a file, or one of a newer format.
        """
        path = Path(path)
        arrays, metadata = load_arrays(path)
        missing = {"grid_lambda", "l", "s", "b"} - set(arrays)
        if missing:
            raise ValueError(f"{path} holds no model statistics: {', '.join(sorted(missing))} are missing")
        version = metadata.pop("format", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise ValueError(f"{path} has format {version!r}; this version reads format {FORMAT_VERSION}")
        try:
            return ModelStatistics(arrays["grid_lambda"], arrays["l"], arrays["s"], arrays["b"], metadata)
        except ValueError as error:
            raise ValueError(f"{path} holds no sound model statistics: {error}") from error


Statistics = ConstantStatistics | ModelStatistics


def path_facts(path: GaussianPath) -> dict[str, Any]:
    """Name and parameters of a path for metadata; of long lists, such as training schedules, some of the values."""
    facts: dict[str, Any] = {}
    for name, value in path.config().items():
        facts[name] = value
        if isinstance(value, (list, tuple)) and len(value) > _LONG:
            some = np.linspace(0, len(value) - 1, _LONG).round().astype(int)
            facts[name] = {"count": len(value), "some": [float(f"{value[k]:.6g}") for k in some]}
    return facts


def _same_path(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether facts agree; lists to the accuracy of training schedules, which diffusers keeps in float32."""
    if own.keys() != other.keys():
        return False
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(other[key], Mapping):
            same = _same_path(value, other[key])
        else:
            same = np.allclose(value, other[key], rtol=_ROUNDED, atol=0.0) if key == "some" else value == other[key]
        if not same:
            return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def as_statistics(given: str | os.PathLike[str] | ModelStatistics) -> Statistics:
    """Statistics from a degenerate name, a file, or themselves.

    Raises
    ------
    ValueError
        Neither a name of `DEGENERATE` nor a readable file.
    """
    if isinstance(given, ModelStatistics):
        return given
    if isinstance(given, str) and given in DEGENERATE:
        return DEGENERATE[given]
    allowed = f"{', '.join(map(repr, DEGENERATE))}, ModelStatistics or their .npz or .safetensors file"
    if not isinstance(given, (str, os.PathLike)):
        raise ValueError(f"statistics={given!r} is not possible; allowed: {allowed}")
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"statistics={str(given)!r} is neither a name nor a file; allowed: {allowed}")
    return _loaded(path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> ModelStatistics:
    return ModelStatistics.load(path)


def save_arrays(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Arrays and JSON values into one .npz or .safetensors file, atomically.

    Raises
    ------
    ValueError
        Another suffix.
    """
    text = json.dumps(metadata, allow_nan=False)
    if path.suffix == ".npz":
        with replacing(path, "wb") as stream:
            content: dict[str, Any] = {"metadata": np.array(text), **arrays}
            np.savez(stream, **content)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save

        packed = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata={"metadata": text})
        with replacing(path, "wb") as stream:
            stream.write(packed)
    else:
        raise ValueError(f"files of model statistics end in .npz or .safetensors, got {path.name!r}")


def load_arrays(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """What `save_arrays` wrote; no metadata where an .npz has none.

    Raises
    ------
    ValueError
        A file that cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="np") as f:
                arrays = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
                return arrays, json.loads((f.metadata() or {})["metadata"])
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content.items())
        return arrays, json.loads(str(arrays.pop("metadata", "{}")))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable file of model statistics: {error}") from error


# --- trapezoids along the first axis ------------------------------------------------------------------------


def _pieces(lam: Array, values: Array) -> Array:
    width = np.diff(lam).reshape(-1, *(1,) * (values.ndim - 1))
    return np.asarray(0.5 * width * (values[1:] + values[:-1]))


def _running(lam: Array, values: Array) -> Array:
    return np.cumsum(_pieces(lam, values), axis=0)


def _whole(lam: Array, values: Array) -> Array:
    return np.asarray(_pieces(lam, values).sum(axis=0))


def _from(first: int, lam: Array, values: Array) -> Array:
    """Running integral that is 0 at index `first`."""
    running = np.concatenate([np.zeros_like(values[:1]), _running(lam, values)])
    return np.asarray(running - running[first])
