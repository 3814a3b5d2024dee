"""Converged references: the same start noises carried to the end in many steps, once, and kept on disk."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import GaussianPath
from pathline.samplers import plan, sample
from pathline.samplers.calibrate.trajectories import converged_range

from .files import digest, read_npz, replacing
from .runners import batches, start_state
from .settings import SweepSettings, parse_spec
from .sources import Source
from .world import World

CHUNK = 256  # samples per file: fixed, so that a larger sample count extends a reference instead of replacing it
GAP_SAMPLES = 64


@dataclass(frozen=True)
class Truth:
    """Converged samples of one seed.

    Attributes
    ----------
    key : str
        Hash of everything that determines them.
    samples : Tensor, shape (n, *shape)
    gap : float
        RMSE by which the first samples move when the number of steps is halved: their own accuracy.
    """

    key: str
    samples: Tensor
    gap: float

    def error(self, samples: Tensor) -> float:
        """Root mean squared difference per value."""
        difference = samples.to(torch.float64) - self.samples.to(torch.float64)
        return math.sqrt(float(difference.square().mean()))


def dense_times(path: GaussianPath, steps: int) -> np.ndarray:
    """Times uniform in lam over a wider range than samplers use, with both exact ends: ``steps`` intervals.

    On paths whose lam is infinite at an end the range is extended there, so that the reference is converged at
    the ends too; the range of a trained noise schedule is not left.
    """
    low, high = converged_range(path)
    levels = torch.linspace(low, high, steps, dtype=torch.float64)
    times = np.asarray(path.time_at(levels), dtype=np.float64)
    times[0] = 0.0
    return np.append(times, 1.0) if times[-1] < 1.0 else times


def truth_config(source: Source, settings: SweepSettings) -> dict[str, Any]:
    """What the reference is, as recorded with every result."""
    method = parse_spec(settings.truth)
    return {"method": str(method), "grid": settings.truth_grid, "steps": settings.truth_steps}


def check_truth(source: Source, settings: SweepSettings) -> None:
    """Refuse a reference that cannot be computed or that is not a function of the start noise.

    Raises
    ------
    ValueError
        For an unknown method or grid, or a stochastic method.
    """
    table = plan(source.path, **_plan_arguments(source, settings, settings.truth_steps))
    if table.stochastic:
        raise ValueError(f"the reference method {settings.truth!r} draws noise; choose a deterministic one")


def _plan_arguments(source: Source, settings: SweepSettings, steps: int) -> dict[str, Any]:
    method, grid = parse_spec(settings.truth), parse_spec(settings.truth_grid)
    if grid.name == "dense":
        return {"method": method.name, "grid": dense_times(source.path, steps), **method.options}
    return {
        "method": method.name,
        "grid": grid.name,
        "grid_options": grid.options,
        "steps": steps,
        **method.options,
    }


def load_truth(
    source: Source, settings: SweepSettings, seed: int, cache: Path, world: World, report: Any = None
) -> Truth:
    """Read the reference of a seed, computing the chunks that are missing (shared among processes)."""
    key = digest(
        {
            "source": source.config(),
            "truth": truth_config(source, settings),
            "dtype": settings.dtype,
            "guidance": settings.guidance,
            "seed": seed,
        }
    )
    chunks = list(batches(settings.samples, CHUNK))
    for indices in world.share(chunks):
        if _read_chunk(_chunk_file(cache, key, indices), len(indices)) is None:
            _write_chunk(source, settings, seed, indices, _chunk_file(cache, key, indices))
        if report is not None:
            report(len(indices))
    world.wait()
    parts = []
    gap = 0.0
    for indices in chunks:
        found = _read_chunk(_chunk_file(cache, key, indices), len(indices))
        if found is None:
            raise ValueError(f"reference file {_chunk_file(cache, key, indices)} disappeared while it was used")
        parts.append(torch.from_numpy(found[0][: len(indices)]))
        gap = max(gap, found[1])
    return Truth(key, torch.cat(parts), gap)


def _chunk_file(cache: Path, key: str, indices: range) -> Path:
    return cache / f"truth-{key}-{indices.start // CHUNK:05d}.npz"


def _read_chunk(path: Path, count: int) -> tuple[np.ndarray, float] | None:
    """Samples and gap of a chunk of at least ``count`` samples, None if absent, too short or damaged."""
    if not path.exists():
        return None
    try:
        arrays = read_npz(path)
        samples, gap = arrays["samples"], float(arrays["gap"])
    except (ValueError, KeyError) as error:
        warnings.warn(f"reference file {path} is damaged and is computed again: {error}", stacklevel=2)
        os.unlink(path)
        return None
    return (samples, gap) if len(samples) >= count else None


def _write_chunk(source: Source, settings: SweepSettings, seed: int, indices: range, path: Path) -> None:
    samples = _converge(source, settings, seed, indices, settings.truth_steps)
    gap = 0.0
    if indices.start == 0:
        few = range(min(GAP_SAMPLES, len(indices)))
        coarse = _converge(source, settings, seed, few, max(2, settings.truth_steps // 2))
        gap = Truth("", samples[: len(few)], 0.0).error(coarse)
    with replacing(path, "wb") as stream:
        np.savez(stream, samples=samples.numpy(), gap=np.array(gap))


def _converge(source: Source, settings: SweepSettings, seed: int, indices: range, steps: int) -> Tensor:
    parts = []
    arguments = _plan_arguments(source, settings, steps)
    with torch.no_grad():
        for part in batches(len(indices), settings.batch_size, indices.start):
            x = start_state(source, seed, part, getattr(torch, settings.dtype), settings.device)
            out = sample(
                source.model,
                x,
                path=source.path,
                prediction=source.prediction,
                model_kwargs=source.kwargs(part, settings.device),
                guidance=source.guidance(settings.guidance),
                **arguments,
            )
            assert isinstance(out, Tensor)
            parts.append(out.cpu())
    return torch.cat(parts)
