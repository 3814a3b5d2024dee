"""Feature distances of tables on a source: what a calibration may make small, and what its studies report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pathline.samplers import Table, plan
from pathline.samplers.anchors import missing_anchors
from pathline.samplers.calibrate.extractor import check_judge
from pathline.samplers.calibrate.learned import condition_means
from pathline.samplers.calibrate.objectives import FeatureDistance
from pathline.samplers.calibrate.trajectories import Problem

from .distances import frechet_distance
from .features import FeatureSpace, make_features
from .judge import named_data
from .moments import Moments
from .runners import batches, start_state
from .sources import DataSet, Source

_SEED = 4  # neither the noises of fits nor those of errors
_CONVERGED = 30  # calls of third order on levels even in log-SNR
FEATURE_BATCH = 32
"""Of the feature network: larger ones leave the cache."""
_MOST = 5000  # data whose features a calibration aims at


def run_table(problem: Problem, table: Table, x: Tensor, chunk: int = 64) -> Tensor:
    """Samples (B, ...) of a table, which is given the mean of each condition where it needs one."""
    anchors = condition_means(problem, x, chunk) if missing_anchors(table) else {}
    return problem.run(table, x, chunk=chunk, anchors=anchors)


class SpaceFeatures:
    """A feature space as fits take it: through gradients where they are asked for, else in small batches.

    Parameters
    ----------
    space : FeatureSpace
    """

    def __init__(self, space: FeatureSpace) -> None:
        self.space, self.network = space, space.network

    def __call__(self, x: Tensor) -> Tensor:
        """Features (B, F) of samples (B, ...); ValueError where the space has no derivative and one is needed."""
        if not x.requires_grad:
            return torch.from_numpy(self.space(x, FEATURE_BATCH)).to(x.device)
        if self.space.differentiable is None:
            raise ValueError(f"features {self.space.name!r} have no derivative, which this fit needs")
        return self.space.differentiable(x)


@dataclass(frozen=True)
class DistanceSettings:
    """A distance of features that a calibration makes small.

    Attributes
    ----------
    features : str
        As `make_features` takes it; not the space that results are reported in.
    images : int
        Samples of a table.
    data : str or None
        The data aimed at, samples as `named_data` takes them; the source's own by default.
    seed, first : int
        Their start noises are those of a seed, from this index on.
    chunk : int
        Largest batch given to the network.
    device : str
    """

    features: str
    images: int
    data: str | None = None
    seed: int = 0
    first: int = 0
    chunk: int = 250
    device: str = "cpu"

    def open(self, source: Source) -> tuple[FeatureSpace, DataSet]:
        """The space, and the data (at most 5,000 of them, evenly spaced).

        Raises
        ------
        ValueError
            A source without data, data of another shape, moments alone, or as `make_features`.
        """
        data = source.data() if self.data is None else named_data(self.data)
        if not isinstance(data, DataSet) or tuple(data.samples.shape[1:]) != source.shape:
            found = tuple(data.samples.shape[1:]) if isinstance(data, DataSet) else "moments alone"
            raise ValueError(f"--data {self.data} has {found}; samples of shape {source.shape} are needed")
        few = data.samples[:: -(-len(data.samples) // _MOST)]
        return make_features(self.features, few, self.device), DataSet(data.name, few)

    def build(self, problem: Problem, source: Source, space: FeatureSpace, target: Tensor) -> FeatureDistance:
        """The distance to data of these features (M, F), whose calls are counted by `problem`."""
        indices = range(self.first, self.first + self.images)
        part = replace(problem, model_kwargs=source.kwargs(indices, self.device))
        x = start_state(source, self.seed, indices, torch.float32, self.device)
        return FeatureDistance(part, x, SpaceFeatures(space), target, name=space.name, chunk=self.chunk)


class Judge:
    """Fréchet distances of a table's samples to the data of a source.

    Parameters
    ----------
    source : Source
    guidance : float
        1 is the network itself.
    space : str
        As `make_features` takes it.
    count : int
        Samples of a table.
    """

    def __init__(self, source: Source, guidance: float, space: str, count: int) -> None:
        self._source, self._count = source, count
        self._guidance = None if guidance == 1.0 else source.guidance(guidance)
        data = source.data().samples
        self._space = make_features(space, data)
        self._reference = Moments.of(self._space(data, FEATURE_BATCH))

    def distance(self, table: Table) -> float:
        """Fréchet distance of `count` samples of the table to the data; ValueError where these features chose it."""
        check_judge(table, self._space.name, self._space.network)
        found, source = Moments(), self._source
        for indices in batches(self._count, 250):
            kwargs = source.kwargs(indices)
            problem = Problem(source.model, source.path, source.prediction, self._guidance, kwargs)
            with torch.no_grad():
                out = run_table(problem, table, start_state(source, _SEED, indices, torch.float32))
            found.update(self._space(out, FEATURE_BATCH))
        return frechet_distance(found, self._reference)

    @cached_property
    def floor(self) -> float:
        """Distance of converged samples."""
        return self.distance(plan(self._source.path, "unipc", steps=_CONVERGED, grid="logsnr", order=3))
