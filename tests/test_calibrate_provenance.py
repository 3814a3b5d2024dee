"""Every public fit says what it was fitted to, so that its table is refused on another prediction or guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pathline.interpolants import GaussianMixture, VPPath
from pathline.samplers import ClassifierFree, Table, make_nodes, sample
from pathline.samplers.calibrate.ays import align_steps
from pathline.samplers.calibrate.bns import bespoke_solver
from pathline.samplers.calibrate.compensation import search_ratios
from pathline.samplers.calibrate.decision_search import search_steps
from pathline.samplers.calibrate.extractor import check_judge
from pathline.samplers.calibrate.gradient import train_rows
from pathline.samplers.calibrate.integration import fit_integration
from pathline.samplers.calibrate.ld3 import learn_levels
from pathline.samplers.calibrate.learned import learn_rows
from pathline.samplers.calibrate.objectives import FeatureDistance
from pathline.samplers.calibrate.trajectories import Problem

PATH = VPPath()
MODEL = GaussianMixture([0.4, 0.6], [[1.0, -1.0], [-0.5, 0.5]], 0.2).as_model(PATH, "noise")
START = PATH.prior((12, 2), torch.Generator().manual_seed(0), dtype=torch.float64)
GUIDED = ClassifierFree(3.0, {})


def problem() -> Problem:
    return Problem(MODEL, PATH, "noise", GUIDED)


def levels() -> Any:
    return make_nodes(PATH, "logsnr", 4)


FITS: dict[str, Callable[[], Table]] = {
    "learned": lambda: learn_rows(problem(), START, 3, rounds=0, grids=["logsnr"]).table,
    "dc": lambda: search_ratios(problem(), levels(), START[:6], base_options={"order": 2}).table,
    "iia": lambda: fit_integration(problem(), levels(), START[:6]).table,
    "s3": lambda: search_steps(problem(), START, 3, stages=0, evaluations=4).table,
    "trained": lambda: train_rows(problem(), START, 3, options={"order": 2}).table,
    "ld3": lambda: learn_levels(problem(), START, 3, rounds=(1, 1)).table,
    "bns": lambda: bespoke_solver(problem(), START, 3, rounds=1).table,
    "ays": lambda: align_steps(problem(), START, 3).table,
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_is_refused_on_another_prediction_or_guidance(name: str) -> None:
    table = FITS[name]()
    if name in ("trained", "ld3", "bns", "ays") and not table.provenance:
        pytest.fail("the base was kept: this test needs a fit that wins")
    assert table.provenance["path"] == repr(PATH)
    for use in ({"guidance": None}, {"guidance": GUIDED, "prediction": "data"}):
        with pytest.raises(ValueError, match="was fitted to"):
            sample(MODEL, START, path=PATH, method=table, **{"prediction": "noise", **use})
    assert sample(MODEL, START, path=PATH, method=table, prediction="noise", guidance=GUIDED).shape == START.shape


def test_a_search_in_a_feature_space_is_not_judged_in_it() -> None:
    def features(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    target = features(torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    found = search_steps(
        problem(), START, 3, stages=0, evaluations=4,
        objective=lambda part, x: FeatureDistance(part, x, features, target, name="effnet-lite0"),
    )  # fmt: skip
    for table in (found.table, found.table.released(), Table.from_content(found.table.content())):
        with pytest.raises(ValueError, match="fitted with the feature extractor 'effnet-lite0'"):
            check_judge(table, "effnet-lite0")
        check_judge(table, "inception")
    plain = search_steps(problem(), START, 3, stages=0, evaluations=4).table
    check_judge(plain, "effnet-lite0")
