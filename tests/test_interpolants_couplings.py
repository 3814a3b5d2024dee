"""Couplings: marginals first, then the cost they promise; entropic plans against each other and closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants.couplings import (
    ClassBase,
    ConditionalCoupling,
    Coupling,
    IndependentCoupling,
    InpaintingBase,
    SuperResolutionBase,
    TransportCoupling,
    class_distance,
    cosine_distance,
    newton_sparse,
    power_distance,
    sinkhorn,
    squared_distance,
)
from pathline.interpolants.couplings.conditional import cheaper_share, search_weight


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# --- costs --------------------------------------------------------------------------------------------------


def test_costs() -> None:
    a, b = normals(5, 2, 3), normals(4, 2, 3, seed=1)
    expected = torch.stack([torch.stack([(x - y).square().sum() for y in b]) for x in a])
    torch.testing.assert_close(squared_distance(a.float(), b.float()), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(power_distance(2.0)(a, b), 0.5 * expected)
    cubic = (a[1] - b[2]).abs().pow(3).sum() / 3
    torch.testing.assert_close(power_distance(3.0)(a, b)[1, 2], cubic)
    cosine = torch.nn.functional.cosine_similarity(a[0].flatten(), b[3].flatten(), dim=0)
    torch.testing.assert_close(cosine_distance(a, b)[0, 3], 1 - cosine)
    assert float(cosine_distance(torch.zeros(1, 2), torch.ones(1, 2))) == 1.0
    assert class_distance(torch.tensor([0, 1]), torch.tensor([1, 1])).tolist() == [[2.0, 2.0], [0.0, 0.0]]


def test_squared_distance_of_large_batches_is_that_of_small_ones() -> None:
    a, b = normals(700, 64) + 10, normals(500, 64, seed=1) + 10
    parts = torch.cat([squared_distance(rows, b) for rows in a.split(100)])
    torch.testing.assert_close(squared_distance(a, b), parts, rtol=1e-9, atol=1e-9)


# --- entropic plans -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", [sinkhorn, newton_sparse])
def test_symmetric_two_by_two_plan_in_closed_form(solve: object) -> None:
    cost, sharpness = np.array([[0.1, 0.7], [0.5, 0.3]]), 5.0
    gap = 0.5 * (cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1])
    plan = solve(cost, 1 / sharpness, tolerance=1e-13)  # type: ignore[operator]
    assert plan.matrix[0, 0] == pytest.approx(0.5 / (1 + np.exp(-sharpness * gap)), abs=1e-12)


@pytest.mark.parametrize(("size", "sharpness"), [(100, 100.0), (200, 300.0), (100, 1200.0)])
def test_newton_steps_reach_machine_precision(size: int, sharpness: float) -> None:
    """Sizes and iterations as published for random costs, where sweeps alone need tens of thousands."""
    cost = np.random.default_rng(0).random((size, size))
    plan = newton_sparse(cost, 1 / sharpness)
    assert plan.error < 1e-12
    assert plan.newton_steps <= 100
    assert plan.sweeps == 20
    swept = sinkhorn(cost, 1 / sharpness, max_sweeps=plan.sweeps + plan.newton_steps)
    assert swept.error > 1e5 * plan.error
    np.testing.assert_allclose(plan.matrix.sum(0), 1 / size, rtol=0, atol=5e-13)
    scaled = np.exp((plan.rows[:, None] + plan.columns - cost) * sharpness)
    np.testing.assert_allclose(plan.matrix, scaled, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("sharpness", [20.0, 100.0, 1200.0])
def test_newton_steps_converge_where_plans_are_not_sparse_or_almost_fall_apart(sharpness: float) -> None:
    """Clusters of unequal sizes: many entries count inside each, and next to none between them."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 90, 2)) * 0.1
    first[:40] += 1.0
    second[:50] += 1.0
    cost = ((first[:, None] - second[None]) ** 2).sum(-1)
    plan = newton_sparse(cost / cost.max(), 1 / sharpness)
    assert plan.error < 1e-12
    assert plan.newton_steps <= 100


def test_plans_agree_with_marginals_of_their_own() -> None:
    rng = np.random.default_rng(1)
    cost, rows, columns = rng.random((30, 20)), rng.random(30) + 0.1, rng.random(20) + 0.1
    rows, columns = rows / rows.sum(), columns / columns.sum()
    first = sinkhorn(cost, 0.05, rows, columns, tolerance=1e-12, max_sweeps=100_000)
    second = newton_sparse(cost, 0.05, rows, columns)
    np.testing.assert_allclose(first.matrix, second.matrix, rtol=0, atol=1e-11)
    np.testing.assert_allclose(second.matrix.sum(1), rows, rtol=0, atol=1e-12)


def test_no_regularisation_is_too_small_for_logarithms() -> None:
    cost = np.random.default_rng(2).random((20, 20))
    plan = sinkhorn(cost, 1e-5, max_sweeps=50)
    assert np.isfinite(plan.matrix).all()
    assert plan.matrix.sum() == pytest.approx(1.0)


# --- pairs --------------------------------------------------------------------------------------------------


def test_exact_transport_in_one_dimension_sorts() -> None:
    base, data = normals(200, 1), 3 * normals(200, 1, seed=1) + 1
    pairs = TransportCoupling()(base, data)
    assert torch.equal(base[pairs.base, 0].argsort(), data[pairs.data, 0].argsort())
    assert torch.equal(pairs.data, torch.arange(200))
    assert torch.equal(pairs.base.sort().values, torch.arange(200))


def test_minibatch_cost_falls_towards_the_distance_of_the_laws() -> None:
    """W2² of N(m, s²) and N(0, 1) is |m|² + (s − 1)² per coordinate; minibatches cost more, less so when larger."""
    costs = []
    for size in (16, 128, 1024):
        rounds = max(1, 1024 // size)
        found = [
            (base[p.base] - data[p.data]).square().sum(1).mean()
            for k in range(rounds)
            for base, data in [(normals(size, 2, seed=10 + k), 2 * normals(size, 2, seed=500 + k) + 1)]
            for p in [TransportCoupling()(base, data)]
        ]
        costs.append(float(torch.stack(found).mean()))
    exact = 2 * (1 + 1)
    assert costs[0] > costs[1] > exact
    assert costs[2] == pytest.approx(exact, abs=0.35)


@pytest.mark.parametrize("plan", ["sinkhorn", "newton"])
def test_entropic_pairs_have_the_marginals_and_covariance_of_the_bridge(plan: str) -> None:
    """Gaussians under reg = 2σ²: the cross-covariance is ½(√(σ⁴ + 4 s0² s1²) − σ²)."""
    size, sigma, s1 = 250, 1.0, 2.0
    base, data = normals(size, 1), s1 * normals(size, 1, seed=1)
    base, data = (base - base.mean()) / base.std(), s1 * (data - data.mean()) / data.std()
    coupling = TransportCoupling(plan, regularisation=2 * sigma**2)
    drawn = [coupling(base, data, generator=seeded(k)) for k in range(20)]
    x0 = torch.cat([base[p.base] for p in drawn])[:, 0]
    x1 = torch.cat([data[p.data] for p in drawn])[:, 0]
    count = len(x0)
    assert float(x0.mean()) == pytest.approx(0, abs=4 / count**0.5)
    assert float(x1.var()) == pytest.approx(s1**2, abs=6 * s1**2 * (2 / count) ** 0.5)
    expected = 0.5 * ((sigma**4 + 4 * s1**2) ** 0.5 - sigma**2)
    assert float((x0 * x1).mean()) == pytest.approx(expected, abs=5 * (s1**2 + expected**2) ** 0.5 / count**0.5 + 0.02)


def test_draws_are_those_of_the_generator() -> None:
    base, data = normals(20, 2), normals(20, 2, seed=1)
    coupling = TransportCoupling("sinkhorn", 0.5)
    first, second = (coupling(base, data, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first.base, second.base)
    assert torch.equal(first.data, second.data)
    assert not torch.equal(first.data, coupling(base, data, generator=seeded(4)).data)


# --- conditions ---------------------------------------------------------------------------------------------


def test_classes_keep_their_base() -> None:
    """Exact transport inside each class, so that the base does not know the class; plain transport tells it."""
    labels = torch.arange(400) % 2
    base, data = normals(400, 2), 0.1 * normals(400, 2, seed=1)
    data[:, 0] += 4.0 * labels - 2.0
    pairs = ConditionalCoupling()(base, data, labels)
    assert torch.equal(labels[pairs.base], labels[pairs.data])
    for label in (0, 1):
        inside = labels == label
        within = TransportCoupling()(base[inside], data[inside])
        assert torch.equal(torch.where(inside)[0][within.base], pairs.base[inside])
        assert float(base[pairs.base][inside, 0].mean()) == pytest.approx(float(base[inside, 0].mean()))
    plain = TransportCoupling()(base, data)
    assert float(base[plain.base][labels == 1, 0].mean()) > 0.6  # the half of the base nearer to the class


def test_weights_from_none_to_all() -> None:
    base, data, condition = normals(60, 2), normals(60, 2, seed=1), normals(60, seed=2)
    plain, free = TransportCoupling()(base, data), ConditionalCoupling(weight=0.0)(base, data, condition)
    assert torch.equal(plain.base, free.base)
    tied = ConditionalCoupling(weight=1e8)(base, data, condition)
    assert torch.equal(tied.base, torch.arange(60))


@pytest.mark.parametrize("ratio", [0.02, 0.2])
def test_weight_search_finds_its_ratio(ratio: float) -> None:
    base, data, condition = normals(128, 2), normals(128, 2, seed=1), normals(128, 5, seed=2)
    cost, apart = squared_distance(base, data).numpy(), cosine_distance(condition, condition).numpy()
    shares = [cheaper_share(cost, apart, w) for w in (0.0, 1.0, 10.0, 100.0, 1e4)]
    assert shares == sorted(shares, reverse=True)
    for start in (1e-3, 100.0, 1e6):
        assert cheaper_share(cost, apart, search_weight(cost, apart, ratio, start)) == pytest.approx(ratio, abs=3e-3)
    coupling = ConditionalCoupling(ratio=ratio)
    coupling(base, data, condition)
    assert cheaper_share(cost, apart, coupling.found) == pytest.approx(ratio, abs=3e-3)
    assert search_weight(cost, apart, 0.999) == 0.0


@pytest.mark.parametrize("count", [8, 64])
def test_published_ratio_couples_small_batches(count: int) -> None:
    """With the diagonal the share would never fall to 1/100, and the coupling would be the independent one."""
    base, data, condition = normals(count, 64), normals(count, 64, seed=1), normals(count, 3, seed=2)
    coupling = ConditionalCoupling(ratio=0.1 if count == 8 else 0.01)
    pairs = coupling(base, data, condition)
    assert coupling.found < 1e6
    assert not torch.equal(pairs.base, pairs.data)
    assert float((base[pairs.base] - data[pairs.data]).square().sum()) < float((base - data).square().sum())


def test_default_regularisation_follows_the_cost_and_is_told_of_once() -> None:
    """Costs of images are about 100: an absolute default would leave every plan unfinished."""
    base, data = 30.0 * normals(32, 8), 30.0 * normals(32, 8, seed=1)
    scaled = TransportCoupling("sinkhorn", each_data=True)(base, data, generator=seeded())
    small = TransportCoupling("sinkhorn", each_data=True)(base / 30.0, data / 30.0, generator=seeded())
    assert torch.equal(scaled.base, small.base)
    weak = TransportCoupling("sinkhorn", 0.01, tolerance=1e-9)
    with pytest.warns(UserWarning, match="is small for costs of mean"):
        weak(base[:8], data[:8], generator=seeded())
    weak(base[:8], data[:8], generator=seeded())  # a second warning would be an error


# --- bases made from the data -------------------------------------------------------------------------------


def test_bases_of_degraded_images() -> None:
    data, noise = normals(3, 2, 8, 8), normals(3, 2, 8, 8, seed=1)
    base, large, free = SuperResolutionBase(4, 0.5)(data, noise)
    assert free is None
    torch.testing.assert_close(large[1, 0, 4:, :4], data[1, 0, 4:, :4].mean().expand(4, 4))
    torch.testing.assert_close(base - large, 0.5 * noise)
    uniforms = torch.rand(3, 4, 4, generator=seeded())
    base, seen, free = InpaintingBase(4, 0.3)(data, noise, uniforms)
    assert free is not None
    assert free.shape == (3, 1, 8, 8)
    hidden = (uniforms < 0.3).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(data)
    assert torch.equal(base[hidden], noise[hidden])
    assert torch.equal(base[~hidden], data[~hidden])
    assert float(seen[hidden].abs().max()) == 0
    means, scales = normals(3, 2), torch.tensor([0.1, 1.0, 2.0])
    z = normals(4, 2, seed=5)
    found = ClassBase(means, scales)(torch.tensor([2, 0, 1, 2]), z)
    torch.testing.assert_close(found.base[0], means[2] + 2.0 * z[0])
    torch.testing.assert_close(found.base[1], means[0] + 0.1 * z[1], rtol=1e-6, atol=1e-6)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransportCoupling("greedy"), "unknown plan 'greedy'"),
        (lambda: TransportCoupling("sinkhorn", 0.0), "regularisation must be a finite number above 0"),
        (lambda: TransportCoupling("sinkhorn", float("inf")), "regularisation must be a finite number above 0"),
        (lambda: TransportCoupling("newton", tolerance=float("nan")), "tolerance must be a finite number above 0"),
        (lambda: ConditionalCoupling(ratio=0.1, tolerance=-1.0), "tolerance must be a finite number above 0"),
        (lambda: TransportCoupling()(torch.zeros(2, 1), torch.tensor([[0.0], [np.nan]])), "cost must be a finite"),
        (lambda: ConditionalCoupling(ratio=1.0), r"ratio=1\.0"),
        (lambda: ConditionalCoupling(weight=-1.0), r"weight=-1\.0"),
        (lambda: ConditionalCoupling()(torch.zeros(2, 1), torch.zeros(2, 1)), "condition must have one entry"),
        (lambda: IndependentCoupling()(torch.zeros(2, 1), torch.zeros(3, 1)), "batches of one size"),
        (lambda: squared_distance(torch.zeros(2, 1), torch.zeros(2, 2)), "samples of one shape"),
        (lambda: class_distance(torch.zeros(2), torch.zeros(2)), "class labels are integers"),
        (lambda: power_distance(1.0), r"power=1\.0"),
        (lambda: power_distance(float("inf")), "power=inf"),
        (lambda: sinkhorn(np.array([[np.nan]]), 1.0), "finite matrix"),
        (lambda: sinkhorn(np.zeros((2, 2)), -1.0), r"regularisation=-1\.0"),
        (lambda: sinkhorn(np.zeros((2, 2)), 1.0, rows=np.array([0.5, 0.6])), "rows must be 2 positive weights"),
        (lambda: newton_sparse(np.zeros((2, 2)), 1.0, sparsity=0.0), r"sparsity=0\.0"),
        (lambda: SuperResolutionBase(1), "factor=1"),
        (
            lambda: SuperResolutionBase(3)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)),
            "factor=3: images .* must have sides divisible",
        ),
        (lambda: InpaintingBase(hidden=1.0), r"hidden=1\.0"),
        (lambda: ClassBase(torch.zeros(2, 1), torch.zeros(2)), "scales must be positive"),
        (
            lambda: ClassBase(torch.zeros(2, 1), torch.ones(2))(torch.tensor([2]), torch.zeros(1, 1)),
            "labels must be from 0 to 1",
        ),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "coupling", [IndependentCoupling(), TransportCoupling(), TransportCoupling("newton", 0.5), ConditionalCoupling()]
)
def test_every_coupling_leaves_the_global_random_state(coupling: Coupling) -> None:
    before = torch.get_rng_state()
    pairs = coupling(normals(8, 2), normals(8, 2, seed=1), torch.arange(8) % 2, seeded())
    assert pairs.base.shape == pairs.data.shape == (8,)
    assert torch.equal(before, torch.get_rng_state())
