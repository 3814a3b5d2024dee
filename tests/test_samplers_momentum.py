"""Heavy-ball momentum on any method, and what it does to order and frames."""

import pytest
import torch

from pathline.interpolants import LinearPath
from pathline.samplers import Table, build_table, heavy_ball, make_nodes, residuals, run, sample
from support.problems import PATH, Case, end_error, gaussian_methods, slope, uniform_nodes

REFUSED = {"ghvb", "heavy-ball", "dpm++-heavy-ball", "unipc-heavy-ball"}  # these have momentum of their own


@pytest.mark.parametrize("method", gaussian_methods())
def test_every_method_takes_momentum_or_says_why_not(method: str) -> None:
    for nodes in (uniform_nodes("lam", 7), make_nodes(PATH, "karras", 7), make_nodes(LinearPath(), "logsnr", 7)):
        plain = build_table(method, nodes)
        if method in REFUSED:
            with pytest.raises(ValueError, match="needs steps from one state along network outputs"):
                build_table(method, nodes, heavy_ball=0.7)
            continue
        table = build_table(method, nodes, heavy_ball=0.7)
        assert table.evaluations == plain.evaluations
        assert table.options["heavy_ball"] == 0.7
        if not table.frame.startswith("none"):
            assert residuals(table).max() < 1e-9


@pytest.mark.parametrize("beta", [0.4, 0.9])
@pytest.mark.parametrize("order", [1, 4])
def test_it_is_the_published_heavy_ball_on_adams_bashforth(order: int, beta: float) -> None:
    nodes = uniform_nodes("noise_ratio", 8)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = run(build_table("ipndm", nodes, order=order, heavy_ball=beta), network, x, prediction="noise")
    theirs = run(build_table("heavy-ball", nodes, order=order, beta=beta), network, x, prediction="noise")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x + t[:, None])


@pytest.mark.parametrize(("method", "options"), [("dpm++", {"order": 2}), ("unipc", {"order": 2}), ("res", {})])
def test_momentum_lowers_the_order_to_one(method: str, options: dict[str, int]) -> None:
    steps = [192, 288, 400]
    case = Case({**options, "heavy_ball": 0.6}, 1, 1)
    assert slope(steps, [end_error(method, case, n, 0) for n in steps]) == pytest.approx(1.0, abs=0.2)


def test_beta_one_changes_nothing() -> None:
    table = build_table("dpm++", uniform_nodes("lam", 5))
    assert heavy_ball(table, 1.0) is table


@pytest.mark.parametrize("beta", [0.0, -0.5, 1.5])
def test_beta_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        build_table("ddim", uniform_nodes("lam", 5), heavy_ball=beta)


def test_sample_takes_it_as_an_option() -> None:
    x = torch.ones(1, 2)
    out = sample(lambda x, t: 0.5 + 0 * x, x, path=PATH, method="dpm++", nfe=6, heavy_ball=0.8)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))


def test_the_released_unipc_carries_its_velocity_in_other_units() -> None:
    nodes = uniform_nodes("lam", 6)
    tables: list[Table] = [build_table("unipc-heavy-ball", nodes, variant=v) for v in ("released", "data")]
    assert residuals(tables[0]).max() > 1e-4
    assert residuals(tables[1]).max() < 1e-12
