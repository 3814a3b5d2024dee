"""Counted problems and converged trajectories, against a Gaussian whose flow is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from pathline.interpolants import (
    DiscretePath,
    EDMPath,
    Gaussian,
    GaussianMixture,
    GaussianPath,
    LinearPath,
    TargetModel,
    VPPath,
)
from pathline.samplers import ClassifierFree, Nodes, NonFiniteError, build_table, make_nodes, run
from pathline.samplers.calibrate.trajectories import BudgetError, Problem, reference_calls, reference_states

MEAN = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
VARIANCE = torch.logspace(-2.0, 0.5, 6, dtype=torch.float64)

PATHS = [VPPath(), LinearPath(), EDMPath(), DiscretePath.scaled_linear()]


def gaussian(path: GaussianPath, **options: object) -> Problem:
    return Problem(Gaussian(MEAN, torch.diag(VARIANCE)).as_model(path, "data"), path, **options)  # type: ignore[arg-type]


def start(path: GaussianPath, count: int = 8) -> Tensor:
    return path.prior((count, 6), torch.Generator().manual_seed(3), dtype=torch.float64)


def exact_flow(x: Tensor, nodes: Nodes) -> Tensor:
    """States of the flow of a Gaussian: each coordinate keeps its quantile."""
    signal, noise = torch.tensor(nodes.signal)[:, None], torch.tensor(nodes.noise)[:, None]
    spread = (signal**2 * VARIANCE + noise**2).sqrt()
    return signal[:, None] * MEAN + (spread / spread[0])[:, None] * (x - signal[0] * MEAN)


@pytest.mark.parametrize(
    "path", [VPPath(), LinearPath(), EDMPath(), DiscretePath.scaled_linear()], ids=lambda p: p.name
)
@pytest.mark.parametrize("grid", ["logsnr", "time"])
def test_references_are_the_exact_flow_at_every_node(path: GaussianPath, grid: str) -> None:
    nodes, x = make_nodes(path, grid, 6), start(path)
    states = reference_states(gaussian(path), x, nodes)
    error = (states - exact_flow(x, nodes)).abs().amax((1, 2))
    assert states.shape == (7, 8, 6)
    assert error[:-1].max() < 1e-4
    # a trained noise schedule ends before the data, which the last step replaces by their prediction
    assert error[-1] < (2e-2 if isinstance(path, DiscretePath) else 1e-4)
    finer = reference_states(gaussian(path), x, nodes, per_step=32)
    assert (finer - exact_flow(x, nodes)).abs().amax((1, 2))[1:-1].max() < error[1:-1].max() / 4


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("grid", ["logsnr", "karras", "time"])
def test_references_of_single_steps(path: GaussianPath, grid: str) -> None:
    """Also of the last one, which on a trained schedule has no length in λ."""
    nodes, x = make_nodes(path, grid, 5), start(path)
    states = reference_states(gaussian(path), x, nodes, per_step=32)
    for i in range(nodes.steps):
        single = nodes.part(i, i + 1)
        (_, end) = reference_states(gaussian(path), states[i], single, per_step=32)
        torch.testing.assert_close(end, states[i + 1], rtol=0, atol=2e-3)
        assert reference_calls(single, path, 32) >= 1


def test_references_do_not_depend_on_the_time_labels_of_the_nodes() -> None:
    nodes, x = make_nodes(VPPath(), "logsnr", 4), start(VPPath())
    labelled = Nodes(nodes.signal, nodes.noise, nodes.time[::-1].copy(), VPPath())
    assert torch.equal(*(reference_states(gaussian(VPPath()), x, n) for n in (nodes, labelled)))


def test_parts_of_a_batch_have_the_references_of_the_whole() -> None:
    path = LinearPath()
    target = GaussianMixture([0.5, 0.5], [[-1.0] * 6, [1.0] * 6], std=[0.2, 0.3], classes=[0, 1])
    free = ClassifierFree(2.0, {"labels": torch.full((7,), -1)})
    problem = Problem(target.as_model(path, "velocity"), path, "velocity", free, {"labels": torch.arange(7) % 2})
    nodes, x = make_nodes(path, "time", 4), start(path, 7)
    whole = reference_states(problem, x, nodes)
    assert torch.allclose(reference_states(problem, x, nodes, chunk=3), whole, atol=1e-12)
    alone = reference_states(problem.part(slice(4, 5), 7), x[4:5], nodes)
    assert torch.allclose(alone, whole[:, 4:5], atol=1e-12)
    assert not torch.allclose(reference_states(problem.part(slice(3, 4), 7), x[4:5], nodes), whole[:, 4:5], atol=1e-2)


def test_every_sample_of_every_call_is_counted_once_and_a_guided_pair_too() -> None:
    path = LinearPath()
    seen = 0

    class Counted(TargetModel):
        def __call__(self, x: Tensor, t: float | Tensor, labels: object = None) -> Tensor:
            nonlocal seen
            seen += len(x)
            return super().__call__(x, t, labels)

    target = GaussianMixture([0.5, 0.5], [[-1.0] * 6, [1.0] * 6], std=[0.2, 0.3], classes=[0, 1])
    guidance = ClassifierFree(3.0, {"labels": torch.full((5,), -1)})
    problem = Problem(Counted(target, path), path, "data", guidance, {"labels": torch.arange(5) % 2})
    nodes = make_nodes(path, "logsnr", 4)
    table = build_table("heun", nodes, variant="sigma")
    x = start(path, 5)
    guided = problem.run(table, x)
    assert (problem.calls, seen) == (5 * table.evaluations, 10 * table.evaluations)
    plain = run(table, target.as_model(path, "data"), x, guidance=guidance, model_kwargs=problem.model_kwargs)
    assert torch.equal(guided, plain)
    before = problem.calls
    reference_states(problem, x, nodes)
    assert problem.calls - before == 5 * reference_calls(nodes, path)


def test_a_budget_is_refused_before_the_call_that_exceeds_it() -> None:
    path = VPPath()
    problem = gaussian(path, budget=100)
    nodes, x = make_nodes(path, "logsnr", 4), start(path)
    with pytest.raises(BudgetError, match=r"8 reference trajectories needs \d+ network calls, .* only 100"):
        reference_states(problem, x, nodes)
    assert problem.calls == 0
    table = build_table("ddim", nodes)
    for _ in range(3):
        problem.run(table, x)
    with pytest.raises(BudgetError, match="a batch of 8"):
        problem.run(table, x)
    assert (problem.calls, problem.calls_left) == (96, 4)


def test_half_precision_starts_have_wide_references() -> None:
    path = LinearPath()
    nodes, x = make_nodes(path, "time", 4), start(path)
    states = reference_states(gaussian(path), x.to(torch.bfloat16), nodes)
    assert states.dtype == torch.float32
    assert torch.equal(states[0], x.to(torch.bfloat16).float())


def test_bad_input_is_refused_with_its_name() -> None:
    path = VPPath()
    model = gaussian(path).model
    with pytest.raises(ValueError, match="model=3 is not possible"):
        Problem(3, path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prediction 'nois'"):
        Problem(model, path, "nois")
    with pytest.raises(ValueError, match="budget=0"):
        Problem(model, path, budget=0)
    with pytest.raises(ValueError, match="path="):
        Problem(model, "vp")  # type: ignore[arg-type]
    nodes, x = make_nodes(path, "logsnr", 4), start(path)
    with pytest.raises(ValueError, match="per_step=1 "):
        reference_states(gaussian(path), x, nodes, per_step=1)
    with pytest.raises(ValueError, match="chunk=0"):
        reference_states(gaussian(path), x, nodes, chunk=0)
    with pytest.raises(ValueError, match="does not lie on path"):
        reference_states(gaussian(path), x, make_nodes(LinearPath(), "logsnr", 4))
    with pytest.raises(ValueError, match="NaN"):
        reference_states(gaussian(path), x * math.nan, nodes)
    with pytest.raises(NonFiniteError):
        reference_states(Problem(lambda x, t: x * math.nan, path), x, nodes)
