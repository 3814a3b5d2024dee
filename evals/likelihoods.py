"""How likely a source finds data: log-densities by its probability flow, and bits per dimension."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.samplers.likelihood import bits_per_dimension, dequantised, log_density

from .files import write_text
from .sources import Source, open_source

SMALL = 64
"""Elements of a sample up to which the trace is exact unless asked for otherwise."""

_UNEVEN = 0.05  # of a level's width: 16 greys stored in 8 bits are no worse


@dataclass(frozen=True)
class LikelihoodSettings:
    """What `pathline likelihood` measures.

    Attributes
    ----------
    source : str
    data : str or None
        A data set of training with its split, as in "digits:test"; default what the source was made for.
    count, batch_size : int
    method, steps, grid, rtol, divergence, probes : as in `log_density`; divergence None chooses by size
    seed : of the choice of data, the dequantisation and the probes
    device : str
    """

    source: str
    data: str | None = None
    count: int = 64
    method: str = "dopri5"
    steps: int | None = None
    grid: str = "logsnr"
    rtol: float = 1e-4
    divergence: str | None = None
    probes: int = 1
    seed: int = 0
    batch_size: int = 64
    device: str = "cpu"


@dataclass(frozen=True)
class LikelihoodReport:
    """Means over the data with their standard errors.

    Attributes
    ----------
    data, divergence : what was measured, how
    count, dimensions, levels : samples, elements of each, discrete values of each (1 for continuous data)
    nats, nats_error : log-density of a (dequantised) sample
    bits, bits_error : bits per dimension, an upper bound for discrete data
    exact : the law's own mean log-density, for test beds; None elsewhere
    evaluations : network calls of one sample, without backward passes
    """

    source: str
    data: str
    divergence: str
    count: int
    dimensions: int
    levels: int
    nats: float
    nats_error: float
    bits: float
    bits_error: float
    exact: float | None
    evaluations: float


def measure_likelihood(settings: LikelihoodSettings, report: Callable[[int], Any] | None = None) -> LikelihoodReport:
    """Log-density of data under a source; `report` is called with the number of samples just finished.

    Class-conditional sources are asked without a class.

    Raises
    ------
    ValueError
        A source that is always told a class, no data, or an impossible method.
    """
    source = open_source(settings.source, settings.device)
    if source.classes and source.null_label is None:
        raise ValueError(f"{source.name} is always told a class; its density without one is not known")
    name, images = _data(settings, source)
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = images[torch.randperm(len(images), generator=generator)[: settings.count]]
    levels, low, high = discrete_levels(images)
    dimensions = chosen[0].numel()
    kind = settings.divergence or ("exact" if dimensions <= SMALL else "rademacher")
    if levels > 1:
        width = (high - low) / (levels - 1)
        whole = ((chosen.double() - low) / width).round()
        low, high = low - 0.5 * width, high + 0.5 * width  # every value in the middle of its bin
        chosen = dequantised(whole, levels=levels, low=low, high=high, generator=generator, dtype=chosen.dtype)
    found, calls = [], 0
    for start in range(0, len(chosen), settings.batch_size):
        part = chosen[start : start + settings.batch_size].to(settings.device)
        result = _density(settings, source, part, range(start, start + len(part)), kind)
        found.append(result.log_density.double().cpu())
        calls += result.evaluations * len(part)
        if report is not None:
            report(len(part))
    nats = torch.cat(found)
    fill = {"levels": levels, "low": low, "high": high} if levels > 1 else {"levels": 1, "low": 0.0, "high": 1.0}
    bits = bits_per_dimension(nats, dimensions, **fill)  # type: ignore[arg-type]
    exact = _exact(settings.source, chosen)
    return LikelihoodReport(
        source.name, name, kind, len(nats), dimensions, levels, *_mean(nats), *_mean(bits), exact, calls / len(nats)
    )


def discrete_levels(images: Tensor) -> tuple[int, float, float]:
    """Number of equally spaced values that images take, and the smallest and largest; 1 for continuous data."""
    values = torch.unique(images[:2000].double())
    low, high = float(values[0]), float(values[-1])
    if not 2 <= len(values) <= 256:
        return 1, low, high
    for levels in (len(values), round((high - low) / float(values.diff().min())) + 1):
        place = (values - low) / (high - low) * (levels - 1)
        if levels <= 256 and bool(((place - place.round()).abs() < _UNEVEN).all()):
            return levels, low, high
    return 1, low, high


def summary_lines(found: LikelihoodReport) -> str:
    """The result in two or three lines."""
    kind = f"{found.levels} levels, uniformly dequantised" if found.levels > 1 else "continuous"
    lines = [
        f"{found.source}: {found.count} samples of {found.data} ({found.dimensions} dimensions, {kind})",
        f"log-density {found.nats:.3f} ± {found.nats_error:.3f} nats, {found.bits:.4f} ± {found.bits_error:.4f} bits "
        f"per dimension, {found.divergence} divergence, {found.evaluations:g} evaluations",
    ]
    if found.exact is not None:
        lines.append(f"the law itself: {found.exact:.3f} nats")
    return "\n".join(lines)


def save_report(found: LikelihoodReport, settings: LikelihoodSettings, path: Path) -> None:
    """Write numbers and settings as JSON."""
    write_text(path, json.dumps({"found": asdict(found), "settings": asdict(settings)}, indent=1))


def _density(settings: LikelihoodSettings, source: Source, part: Tensor, samples: range, kind: str) -> Any:
    kwargs: dict[str, Any] = {}
    if source.classes:
        kwargs[source.label_key] = torch.full((len(part),), int(source.null_label), device=part.device)
    given: dict[str, Any] = {"divergence": kind, "seed": settings.seed, "samples": list(samples)}
    given |= {"probes": settings.probes} if kind != "exact" else {}
    if settings.steps is not None:
        given |= {"steps": settings.steps, "grid": settings.grid}
    return log_density(
        source.model,
        part,
        path=source.path,
        prediction=source.prediction,
        method=settings.method,
        rtol=settings.rtol,
        atol=settings.rtol,
        model_kwargs=kwargs,
        **given,
    )


def _data(settings: LikelihoodSettings, source: Source) -> tuple[str, Tensor]:
    if settings.data is None:
        found = source.data()
    else:
        from .pipelines import training_images

        name, _, split = settings.data.partition(":")
        found = training_images(name, split or "test")
    if tuple(found.samples.shape[1:]) != tuple(source.shape):
        raise ValueError(f"{found.name} has samples of shape {tuple(found.samples.shape[1:])}, not {source.shape}")
    return found.name, found.samples


def _exact(text: str, x: Tensor) -> float | None:
    from .settings import parse_spec
    from .sources import BED_PREFIX
    from .testbeds import make_bed

    if not text.startswith(BED_PREFIX):
        return None
    target = make_bed(parse_spec(text[len(BED_PREFIX) :]).name).target
    return float(target.log_density(x.cpu()).mean())


def _mean(values: Tensor) -> tuple[float, float]:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()), error
