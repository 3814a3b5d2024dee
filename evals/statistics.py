"""Reference statistics: written and read by one command, with what a reader must know inside the file."""

from __future__ import annotations

import warnings
from pathlib import Path

from .distances import frechet_bias, frechet_distance, kernel_distance, sliced_wasserstein
from .features import make_features
from .judge import named_data
from .moments import Moments
from .neighbours import precision_recall
from .sources import DataSet
from .summary import number


def describe_statistics(
    data: str, against: str | None = None, features: str = "raw", out: Path | None = None, device: str = "cpu"
) -> str:
    """Statistics of a set as text; optionally write them, or compare them with a second set.

    Parameters
    ----------
    data, against : str
        Statistics .npz, sample .npz, image folder or data set name.
    features : str
        Feature space for samples; stored statistics keep their own.
    out : path, optional
        Where the statistics of ``data`` are written.
    device : str
        Where a feature network runs.

    Raises
    ------
    ValueError
        If something cannot be read, or two stored statistics come from different feature spaces.
    """
    first = named_data(data)
    second = named_data(against) if against is not None else None
    fit = next((part.samples for part in (second, first) if isinstance(part, DataSet)), None)
    space = make_features(features, fit, device) if fit is not None else None
    label = space.label if space is not None else "FD"

    def measure(part: DataSet | Moments, name: str) -> Moments:
        if isinstance(part, Moments):
            return part
        assert space is not None
        return Moments.of(space(part.samples), {"name": part.name or name, "features": space.config})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the text says it
        moments = measure(first, data)
        lines = _describe(moments, label)
        if out is not None:
            moments.save(out)
            lines.append(f"written to {out}")
        if second is not None and against is not None:
            other = measure(second, against)
            _require_same_space(moments, other, data, against)
            lines.append(f"{label} between {data} and {against}: {number(frechet_distance(moments, other))}")
        if isinstance(first, DataSet) and isinstance(second, DataSet) and space is not None:
            x, y = space(first.samples), space(second.samples)
            kernel = kernel_distance(x, y)
            lines.append(f"kernel distance: {number(kernel.value)} (spread over blocks {number(kernel.spread)})")
            scores = precision_recall(x, y)._asdict()
            lines.append(", ".join(f"{name} {number(value)}" for name, value in scores.items()))
            lines.append(f"sliced Wasserstein distance squared: {number(sliced_wasserstein(x, y))}")
    return "\n".join(lines)


def _require_same_space(first: Moments, second: Moments, name: str, other: str) -> None:
    spaces = first.metadata.get("features"), second.metadata.get("features")
    if spaces[0] != spaces[1]:
        raise ValueError(f"{name} and {other} are not comparable: their feature spaces are {spaces[0]} and {spaces[1]}")


def _describe(moments: Moments, label: str) -> list[str]:
    covariance = moments.covariance
    length = float((moments.mean**2).sum() ** 0.5)
    lines = [
        f"{moments.metadata.get('name', 'statistics')}: {moments.count} samples, {moments.dimension} features",
        f"feature space: {moments.metadata.get('features', 'not recorded')}",
        f"total variance {number(float(covariance.trace()))}, mean of length {number(length)}",
    ]
    for count in (1000, 10000, 50000):
        lines.append(
            f"a perfect generator scores {label} {number(frechet_bias(covariance, count))} with {count} samples"
        )
    if moments.count <= moments.dimension:
        lines.append("warning: not more samples than features, the covariance is singular")
    return lines
