"""Feature distances of tables on a source, for the studies of calibration."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from pathline.samplers import Table, plan
from pathline.samplers.anchors import missing_anchors
from pathline.samplers.calibrate.learned import start_prediction
from pathline.samplers.calibrate.trajectories import Problem
from pathline.samplers.transforms import DATA_MEAN

from .distances import frechet_distance
from .features import make_features
from .moments import Moments
from .runners import batches, start_state
from .sources import Source

_SEED = 4  # neither the noises of fits nor those of errors
_CONVERGED = 30  # calls of third order on levels even in log-SNR
_BATCH = 32  # of the feature network: larger ones leave the cache


def run_table(problem: Problem, table: Table, x: Tensor, chunk: int = 64) -> Tensor:
    """Samples (B, ...) of a table, which is given the mean of each condition where it needs one."""
    anchors = {}
    if missing_anchors(table):
        anchors = {DATA_MEAN: start_prediction(problem, x, chunk).expand(x.shape)}
    return problem.run(table, x, chunk=chunk, anchors=anchors)


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
        self._reference = Moments.of(self._space(data, _BATCH))

    def distance(self, table: Table) -> float:
        """Fréchet distance of `count` samples of the table to the data."""
        found, source = Moments(), self._source
        for indices in batches(self._count, 250):
            kwargs = source.kwargs(indices)
            problem = Problem(source.model, source.path, source.prediction, self._guidance, kwargs)
            with torch.no_grad():
                out = run_table(problem, table, start_state(source, _SEED, indices, torch.float32))
            found.update(self._space(out, _BATCH))
        return frechet_distance(found, self._reference)

    @cached_property
    def floor(self) -> float:
        """Distance of converged samples."""
        return self.distance(plan(self._source.path, "unipc", steps=_CONVERGED, grid="logsnr", order=3))
