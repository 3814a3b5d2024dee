"""Scoring samples: reference data in a feature space, and the metrics of one cell."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .distances import frechet_bias, frechet_distance, kernel_distance, sliced_wasserstein
from .features import FeatureSpace, make_features
from .files import digest, read_npz, replacing
from .images import load_images
from .moments import Moments
from .settings import SweepSettings
from .sources import DataSet, Source

KID_BLOCKS, KID_SIZE, DIRECTIONS = 10, 1000, 128
NETWORK_SPACES = ("effnet-lite0", "inception")


@dataclass(frozen=True)
class Reference:
    """Data in a feature space: moments always, rows where samples are at hand (needed by all but Fréchet)."""

    name: str
    moments: Moments
    rows: np.ndarray | None

    def config(self) -> dict[str, Any]:
        """What enters the protocol: name, size and a hash of the moments."""
        numbers = [[f"{v:.6e}" for v in np.asarray(m).ravel()] for m in (self.moments.mean, self.moments.covariance)]
        return {"name": self.name, "count": self.moments.count, "id": digest(numbers)}


class Judge:
    """Scores sample sets of one source against its reference data.

    Parameters
    ----------
    source : Source
    settings : SweepSettings
        features, data, samples and device are read.
    cache : Path
        Folder for features of the reference that take a network to compute.

    Raises
    ------
    ValueError
        If the reference cannot be read, or the feature space does not fit the samples.
    """

    def __init__(self, source: Source, settings: SweepSettings, cache: Path) -> None:
        self.settings = settings
        data = _reference_data(source, settings)
        images = data if isinstance(data, DataSet) else source.data() if settings.features.startswith("pca") else None
        fit = images.samples if images is not None else None
        self.space = make_features(settings.features, fit, settings.device)
        if isinstance(data, Moments):
            self.reference = _given_statistics(data, self.space, settings)
        else:
            self.reference = _measured(data, self.space, cache)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once below, for the samples
            self.floor = frechet_bias(self.reference.moments.covariance, settings.samples)
            self.reference_config = self.reference.config()

    def advice(self) -> list[str]:
        """Sentences a user should see before a long run."""
        dimension = self.reference.moments.dimension
        out = []
        if self.settings.samples <= dimension:
            out.append(
                f"{self.settings.samples} samples in {dimension} features: covariances are singular and Fréchet "
                "distances strongly biased; use more samples or a smaller feature space"
            )
        if self.reference.rows is None:
            out.append("the reference holds moments only: kernel and sliced distances are left out")
        return out

    def config(self) -> dict[str, Any]:
        """Feature space, reference and settings of the distances, for the protocol."""
        return {
            "features": {"label": self.space.label, **self.space.config},
            "reference": self.reference_config,
            "distances": {"kid_blocks": KID_BLOCKS, "kid_size": KID_SIZE, "directions": DIRECTIONS},
        }

    def frechet(self, samples: torch.Tensor) -> float:
        """Fréchet distance to the reference."""
        return self._frechet(self.space(samples))

    def _frechet(self, rows: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once in `advice`
            return frechet_distance(Moments.of(rows), self.reference.moments)

    def score(self, samples: torch.Tensor) -> dict[str, float | None]:
        """All distances of a sample set; kernel and sliced ones are None where only moments are known."""
        rows = self.space(samples)
        metrics: dict[str, float | None] = {"fd": self._frechet(rows), "fd_floor": self.floor}
        if self.reference.rows is None:
            return metrics | {"kid": None, "kid_spread": None, "sliced": None}
        kernel = kernel_distance(rows, self.reference.rows, blocks=KID_BLOCKS, block_size=KID_SIZE)
        sliced = sliced_wasserstein(rows, self.reference.rows, directions=DIRECTIONS)
        return metrics | {"kid": kernel.value, "kid_spread": kernel.spread, "sliced": sliced}


def _reference_data(source: Source, settings: SweepSettings) -> DataSet | Moments:
    if settings.data is None:
        return source.data()
    return named_data(settings.data)


def named_data(name: str) -> DataSet | Moments:
    """Reference data by name: a statistics or sample .npz, an image folder, or a data set training knows."""
    path = Path(name)
    if path.suffix == ".npz":
        if "arr_0" in read_npz(path):
            return DataSet(path.name, load_images(path))
        return Moments.load(path)
    from .pipelines import KNOWN_DATA, training_images

    if path.is_dir() and name not in KNOWN_DATA:  # a folder of that name is written ./digits
        return DataSet(path.name, load_images(path))
    return training_images(name)


def _given_statistics(moments: Moments, space: FeatureSpace, settings: SweepSettings) -> Reference:
    stored = moments.metadata.get("features")
    if stored is None and settings.features not in ("raw", "inception"):
        raise ValueError(f"{settings.data} does not say its feature space, which must be {settings.features!r}")
    if stored is not None and stored != space.config:
        raise ValueError(f"{settings.data} was made with features {stored}, the sweep uses {space.config}")
    return Reference(str(moments.metadata.get("name", settings.data)), moments, None)


def _measured(data: DataSet, space: FeatureSpace, cache: Path) -> Reference:
    """Features of reference samples; those of networks are kept on disk, as they take minutes."""
    rows = _cached_rows(data, space, cache) if space.name in NETWORK_SPACES else space(data.samples)
    moments = Moments.of(rows)
    if data.exact is not None and space.name == "raw":
        moments = Moments.exact(*data.exact)
    return Reference(data.name, moments, rows)


def _cached_rows(data: DataSet, space: FeatureSpace, cache: Path) -> np.ndarray:
    total = data.samples.to(torch.float64)
    key = digest(
        [space.config, data.name, list(total.shape), f"{float(total.mean()):.9e}", f"{float(total.std()):.9e}"]
    )
    path = cache / f"features-{key}.npz"
    if path.exists():
        try:
            return read_npz(path)["rows"]
        except (ValueError, KeyError) as error:
            warnings.warn(f"feature file {path} is damaged and is computed again: {error}", stacklevel=2)
    rows = space(data.samples)
    with replacing(path, "wb") as stream:
        np.savez(stream, rows=rows)
    return rows
