"""Statistics of a network for DPM-Solver-v3, measured on data by directional derivatives.

With y = x/signal and D the data prediction, f = (1 − l)·y − D (see `samplers.ems`), and along the flow dy/dλ = D − y:

    l = 1 − E[diag(signal·∂D/∂x)],   df/dλ = (1 − l)·(D − y) − (dl/dλ)·y − dD/dλ,
    s = Cov(f, df/dλ)/Var(f),   b = E[df/dλ] − s·E[f],

element-wise, over the path's own marginals of the data (Zheng et al. 2023, arXiv:2310.13268, section 3.2). The diagonal
is estimated with Rademacher probes, dD/dλ is a derivative along (dx/dλ, dt/dλ). Everything is a polynomial of l, dl/dλ
and first and second moments of y, D and dD/dλ, so that one pass over the data is enough.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import check_name

from ..ems import ModelStatistics, load_arrays, path_facts, save_arrays
from ..guidance import ClassifierFree
from ..keyed_noise import keyed_normal
from ..numerics import Array
from .directional import RULES, Directional, LevelPoint, choose_rule, level_point
from .extractor import digest_of
from .network_identity import network_told
from .trajectories import Problem

Batch = Tensor | tuple[Tensor, Mapping[str, Any]]

_SUMS = ("y", "D", "dD", "yy", "yD", "DD", "y dD", "D dD", "diagonal")
_FLAT = 1e-12
"""A variance of f below this share of the squares that it is a difference of is rounding."""


def measure_statistics(
    problem: Problem,
    data: Tensor | Iterable[Batch],
    *,
    levels: int = 121,
    lam_range: tuple[float, float] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    derivative: str = "auto",
    step: float = 0.03,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    model: str | None = None,
    progress: bool = False,
) -> ModelStatistics:
    """Measure l, s, b of a problem's network, guidance included.

    Parameters
    ----------
    problem : Problem
        Tensors in its model_kwargs whose first dimension is that of a `data` tensor are cut with it.
    data : Tensor (n, ...), or iterable of batches
        Samples of the data; a batch is a tensor, or a tensor and the keyword arguments of the model for it. Under
        guidance the paper takes samples generated with that guidance. The network is evaluated in their dtype.
    levels : int ≥ 3
        Levels uniform in λ.
    lam_range : (low, high), optional
        Default: the path's range for grids, to its very start where λ is finite there.
    batch_size : int
        Of a `data` tensor.
    seed : int
        Keys noise and probes of every sample; they are the same at all levels, so that dl/dλ is smooth.
    derivative : {"auto", "forward", "backward", "difference"}
        Forward-mode AD (4 network calls for a sample at a level), double backward (10), or central differences (5, for
        networks that round their time label or that AD does not pass, as most of diffusers'). "auto" takes the first
        that works and agrees with differences.
    step : float
        Half-width of central differences, in λ and in units of the noise.
    resume : file name (.npz or .safetensors), optional
        Partial sums, read if there and written as the run goes on, also when it is interrupted; a stopped run continues
        with identical results.
    save_every : float
        Seconds between two writes of `resume` in an undisturbed run.
    model : str, optional
        Hash or name of the network, for the metadata.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ModelStatistics, whose metadata tell path, prediction, guidance, samples, calls and more.

    Raises
    ------
    ValueError
        Before any call: an argument out of range, or a `resume` file of other settings or other data. Or data that run
        out after fewer than 2 samples, outputs that are not finite, and a derivative asked for by name that does not
        pass through the network.
    BudgetError
        Before the batch that the problem's budget does not pay for (all of it, when `data` is a tensor).
    """
    lam = _levels(problem, levels, lam_range)
    check_name("derivative", derivative, ["auto", *RULES])
    if not step > 0:
        raise ValueError(f"step={step!r} is not possible; it must be positive")
    config = {"lam": [lam[0], lam[-1]], "levels": levels, "seed": seed, "derivative": derivative, "step": step}
    config |= {"model": model, **described(problem)}
    points = [level_point(problem, float(v)) for v in lam]
    run = _Run(problem, points, config, None if resume is None else Path(resume), save_every)
    batches: Iterable[Batch] = data
    total: int | None = None
    if isinstance(data, Tensor):
        _check_data(data)
        run.planned, total = len(data), -(-len(data) // batch_size) * levels
        batches = ((data[rows], part.model_kwargs) for rows, part in problem.chunks(len(data), batch_size))
    with _bar(progress, total) as tick, run.kept():
        for batch in batches:
            run.take(batch, tick)
    return run.result(lam)


def described(problem: Problem) -> dict[str, Any]:
    """Path, prediction and guidance of a problem as JSON values, as statistics record them."""
    guidance = problem.guidance
    shown: Any = None if guidance is None else type(guidance).__qualname__
    if isinstance(guidance, ClassifierFree):
        shown = None if guidance.scale == 1.0 else {"name": shown, "scale": float(guidance.scale)}
    return {"path": path_facts(problem.path), "prediction": problem.prediction, "guidance": shown}


def _levels(problem: Problem, levels: int, lam_range: tuple[float, float] | None) -> Array:
    if levels < 3:
        raise ValueError(f"levels={levels!r} is not possible; dl/dλ needs at least 3")
    path = problem.path
    ends = float(path.lam(0.0)), float(path.lam(1.0))
    low, high = lam_range or (
        min(path.lambda_min, ends[0]) if np.isfinite(ends[0]) else path.lambda_min,
        max(path.lambda_max, ends[1]) if np.isfinite(ends[1]) else path.lambda_max,
    )
    if not (np.isfinite([low, high]).all() and low < high and ends[0] <= low and high <= ends[1]):
        raise ValueError(
            f"lam_range={lam_range!r} is not possible on path {path.name!r}, "
            f"whose λ runs from {ends[0]:g} to {ends[1]:g}"
        )
    return np.linspace(low, high, levels)


def _check_data(data: Any) -> None:
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 2 or len(data) == 0:
        shape = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be floating-point tensors of shape (n, ...) with n ≥ 1, got {shape}")


@dataclass
class _Run:
    """Sums over the samples seen so far, float64 arrays (levels, 9, ...), and how far the run has come."""

    problem: Problem
    points: list[LevelPoint]
    config: dict[str, Any]
    file: Path | None
    save_every: float
    planned: int = 0
    rule: Directional | None = None
    sums: Array | None = None
    progress: dict[str, Any] = field(default_factory=lambda: {"batches": 0, "samples": 0, "calls": 0, "digest": ""})
    _seen: int = 0
    _digest: str = ""
    _saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.suffix not in (".npz", ".safetensors"):
            raise ValueError(f"resume={self.file.name!r} is not possible; partial sums end in .npz or .safetensors")
        if self.file is None or not self.file.is_file():
            return
        arrays, stored = load_arrays(self.file)
        differing = sorted(k for k, v in self.config.items() if stored.get("config", {}).get(k) != v)
        if differing or "sums" not in arrays:
            raise ValueError(
                f"{self.file} holds partial sums of other settings ({', '.join(differing) or 'no sums'}); "
                "give another file, or the same settings"
            )
        self.sums, self.progress = arrays["sums"], stored["progress"]

    @property
    def done(self) -> int:
        """Samples that need no calls any more."""
        return int(self.progress["samples"])

    def take(self, batch: Batch, tick: Callable[[int], None]) -> None:
        """Add one batch, or pass over it where the partial sums hold it already."""
        data, kwargs = batch if isinstance(batch, tuple) else (batch, {})
        _check_data(data)
        given = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
        self._digest = hashlib.sha256((self._digest + digest_of({"": data, **given})).encode()).hexdigest()
        self._seen += 1
        if self._seen == 1 and self.file is not None:
            self._check_network(data, kwargs)
        if self._seen <= self.progress["batches"]:
            if self._seen == self.progress["batches"] and self._digest != self.progress["digest"]:
                raise ValueError(f"{self.file} holds partial sums of other data, or of other batches")
            tick(len(self.points))
            return
        self._add(data, {**self.problem.model_kwargs, **kwargs}, tick)
        if self.file is not None and time.monotonic() - self._saved >= self.save_every:
            self._save()

    def _check_network(self, data: Tensor, kwargs: Mapping[str, Any]) -> None:
        problem = replace(self.problem, model_kwargs={**self.problem.model_kwargs, **kwargs})
        told = network_told(problem, data[:1], len(data))
        if self.progress.setdefault("network", told) != told:
            raise ValueError(f"{self.file} holds partial sums of other data or of another network; give another file")

    def _add(self, data: Tensor, kwargs: Mapping[str, Any], tick: Callable[[int], None]) -> None:
        if self.sums is None:
            self.sums = np.zeros((len(self.points), len(_SUMS), *data.shape[1:]))
        if self.sums.shape[2:] != data.shape[1:]:
            raise ValueError(f"samples of shape {tuple(data.shape[1:])} follow ones of shape {self.sums.shape[2:]}")
        clean, before = data.double(), self.problem.calls
        index = range(self.done, self.done + len(data))
        noise, probe = (
            keyed_normal(data.shape[1:], self.config["seed"], index, slot=k, dtype=clean.dtype, device=data.device)
            for k in (0, 1)
        )
        probe = torch.where(probe < 0, -1.0, 1.0).to(clean.dtype)
        if self.rule is None:
            self.rule = self._chosen(clean, noise, data.dtype, kwargs)
        cost = self.rule.calls * len(self.points)
        self.problem.require(cost * max(len(data), self.planned - self.done), "measuring model statistics")
        found = np.zeros_like(self.sums)
        for k, point in enumerate(self.points):
            x = (point.signal * clean + point.noise * noise).to(data.dtype)
            found[k] = _sums_at(self.rule, point, x, probe, kwargs)
            tick(1)
        if not np.isfinite(found).all():
            level = self.points[int(np.argmin(np.isfinite(found).reshape(len(found), -1).all(axis=1)))]
            raise ValueError(
                f"the network or its derivatives are not finite at λ = {level.lam:g} (time {level.time:g})"
            )
        self.sums = self.sums + found
        self.progress |= {
            "batches": self._seen,
            "samples": self.done + len(data),
            "calls": self.progress["calls"] + self.problem.calls - before,
            "digest": self._digest,
            "derivative": self.rule.name,
        }

    def _chosen(self, clean: Tensor, noise: Tensor, dtype: torch.dtype, kwargs: Mapping[str, Any]) -> Directional:
        """The rule of an earlier part of the run, else the one asked for, tried at the middle level."""
        point = self.points[len(self.points) // 2]
        x = point.signal * clean + point.noise * noise
        rate = point.signal_rate * point.signal * clean + (point.signal_rate - 1.0) * point.noise * noise
        name = self.progress.get("derivative", self.config["derivative"])
        return choose_rule(name, self.problem, self.config["step"], point, x.to(dtype), rate, kwargs)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the sums of all whole batches, however the block ends."""
        before = self.done
        try:
            yield
        finally:
            if self.done > before:
                self._save()

    def _save(self) -> None:
        if self.file is not None and self.sums is not None:
            save_arrays(self.file, {"sums": self.sums}, {"config": self.config, "progress": self.progress})
            self._saved = time.monotonic()

    def result(self, lam: Array) -> ModelStatistics:
        """The statistics of everything taken."""
        if self.sums is None or self.done < 2:
            raise ValueError(f"model statistics need at least 2 samples, got {self.done}")
        if self._seen < self.progress["batches"]:
            raise ValueError(f"{self.file} holds partial sums of more data than were given")
        l, s, b = _statistics(lam, self.sums / self.done)  # noqa: E741
        known = {k: v for k, v in self.config.items() if k not in ("lam", "levels", "derivative") and v is not None}
        counts = {k: self.progress[k] for k in ("samples", "calls", "derivative")}
        return ModelStatistics(lam, l, s, b, {**known, "guidance": self.config["guidance"], **counts})


def _sums_at(rule: Directional, point: LevelPoint, x: Tensor, probe: Tensor, kwargs: Mapping[str, Any]) -> Array:
    """Sums over a batch of everything in `_SUMS` at one level."""
    state = x.double()
    D, along = rule.probe(point, x, probe, kwargs)
    rate = (point.signal_rate - 1.0) * state + point.signal * D  # dx/dλ along the flow
    dD = rule.flow(point, x, rate, kwargs)
    y = state / point.signal
    terms = (y, D, dD, y * y, y * D, D * D, y * dD, D * dD, point.signal * probe * along)
    return torch.stack([term.sum(dim=0) for term in terms]).cpu().numpy()


def _statistics(lam: Array, means: Array) -> tuple[Array, Array, Array]:
    """l, s, b from the means over the samples, arrays (levels, 9, ...)."""
    y, D, dD, yy, yD, DD, y_dD, D_dD, diagonal = np.moveaxis(means, 1, 0)
    l = 1.0 - diagonal  # noqa: E741
    rest, slope = 1.0 - l, np.gradient(l, lam, axis=0, edge_order=2)
    mean = rest * y - D
    mean_rate = rest * (D - y) - slope * y - dD
    variance = rest**2 * (yy - y * y) - 2 * rest * (yD - y * D) + DD - D * D
    c_yy, c_yD, c_DD, c_y, c_D = yy - y * y, yD - y * D, DD - D * D, y_dD - y * dD, D_dD - D * dD
    on_y, on_D = -rest - slope, rest  # df/dλ = on_y·y + on_D·D − dD/dλ
    joint = rest * (on_y * c_yy + on_D * c_yD - c_y) - (on_y * c_yD + on_D * c_DD - c_D)
    moves = variance > _FLAT * (rest**2 * yy + DD)
    s = np.divide(joint, variance, out=np.zeros_like(joint), where=moves)
    return l, s, mean_rate - s * mean


@contextmanager
def _bar(shown: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="model statistics", unit="level") as bar:

        def tick(count: int) -> None:
            bar.update(count)

        yield tick
