"""Log-probabilities of single random moves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pathline.interpolants import GaussianMixture, LinearPath, VPPath
from pathline.samplers import build_table, make_nodes, run, sample
from pathline.samplers.likelihood import StepLogProbs, trajectory_log_probs

F64 = torch.float64
PATH = VPPath()
DATA = GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], std=[0.4, 0.6])


def start(batch: int = 3) -> Tensor:
    return PATH.prior((batch, 2), torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize(
    ("method", "options"), [("ddim", {"eta": 0.7}), ("dpm++-sde", {}), ("er-sde", {}), ("sde", {})]
)
def test_recorded_moves_are_normals_about_their_means(method: str, options: dict[str, Any]) -> None:
    table, model = build_table(method, make_nodes(PATH, "logsnr", 6), **options), DATA.as_model(PATH)
    record, means = StepLogProbs(table), list[Tensor]()
    silent: dict[str, Any] = {"noise": lambda row, slot, like: torch.zeros_like(like)}
    run(table, model, start(), hooks=[record], seed=4)
    assert record.log_probs.shape == (3, sum(any(z >= 0 for z in row.noises) for row in table.rows))
    again = trajectory_log_probs(table, model, record.states, differentiable=False)
    assert torch.allclose(again, record.log_probs, atol=1e-9)
    if method == "ddim":
        run(table, model, start(), callback=lambda info: means.append(info.state), **silent)
        spread = dict(table.rows[0].updates[0].terms)[table.rows[0].noises[0]]
        expected = torch.distributions.Normal(means[0], spread).log_prob(record.states[1]).sum(1)
        assert torch.allclose(record.log_probs[:, 0], expected, atol=1e-10)


def test_the_same_trajectories_under_another_model_give_gradients() -> None:
    table = build_table("ddim", make_nodes(PATH, "logsnr", 5), eta=1.0)

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros((), dtype=F64))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return DATA.as_model(PATH)(x, t) + self.shift

    network, record = Shifted(), StepLogProbs(table)
    run(table, network, start(), hooks=[record], seed=1)
    scores = trajectory_log_probs(table, network, record.states)
    assert torch.allclose(scores, record.log_probs, atol=1e-9)
    scores.sum().backward()
    step = 1e-6
    with torch.no_grad():
        network.shift += step
    moved = trajectory_log_probs(table, network, record.states, differentiable=False)
    assert float((moved.sum() - scores.detach().sum()) / step) == pytest.approx(float(network.shift.grad), rel=1e-3)


def test_expected_scores_vanish() -> None:
    """E[exp(log p_other − log p)] = 1 over the trajectories of p: the ratio that policy gradients clip."""
    flow = LinearPath()
    table = build_table("sde", make_nodes(flow, np.linspace(0.1, 0.9, 5)))
    own, other = (
        DATA.as_model(flow, "velocity"),
        GaussianMixture([1.0], [[0.1, 0.0]], std=[0.6]).as_model(flow, "velocity"),
    )
    record = StepLogProbs(table)
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    run(table, own, x, prediction="velocity", hooks=[record])
    near = lambda x, t: 0.9 * own(x, t) + 0.1 * other(x, t)  # noqa: E731
    ratio = (trajectory_log_probs(table, near, record.states, prediction="velocity") - record.log_probs).sum(1).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * float(ratio.std()) / math.sqrt(4000))


def test_moves_that_are_no_single_normals_are_refused() -> None:
    for method in ("ddim", "sa"):
        with pytest.raises(ValueError, match=r"draws no noise|one noise"):
            StepLogProbs(build_table(method, make_nodes(PATH, "logsnr", 5)))
    table = build_table("ddim", make_nodes(PATH, "logsnr", 5), eta=1.0)
    with pytest.raises(ValueError, match="chunk_size=1"):
        sample(DATA.as_model(PATH), start(), method=table, hooks=[StepLogProbs(table)], chunk_size=1)
