"""Stochastic methods draw from the right law: moments and mode masses of a mixture, within standard errors."""

import math

import pytest
import torch

from pathline.interpolants import GaussianMixture, VPPath
from pathline.samplers import Case, build_table, make_nodes, method_info, run
from support.problems import gaussian_methods

PATH = VPPath()
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.2], [0.9]], std=[0.2, 0.35])
COUNT, STEPS = 8000, 120
STOCHASTIC = [
    (name, case)
    for name in gaussian_methods()
    for case in method_info(name).cases
    if case.order > 0 and build_table(name, make_nodes(PATH, "logsnr", 6), **case.options).stochastic
]


@pytest.mark.parametrize(("name", "case"), STOCHASTIC, ids=lambda v: getattr(v, "options", v))
def test_marginal_of_a_mixture(name: str, case: Case) -> None:
    generator = torch.Generator().manual_seed(11)
    table = build_table(name, make_nodes(PATH, "time" if case.variable == "time" else "logsnr", STEPS), **case.options)
    x = run(
        table,
        MIXTURE.as_model(PATH),
        PATH.prior((COUNT, 1), generator, dtype=torch.float64),
        prediction="data",
        noise=lambda row, slot, like: torch.randn(like.shape, generator=generator, dtype=like.dtype),
    )
    assert isinstance(x, torch.Tensor)
    mean, variance = float(MIXTURE.mean), float(MIXTURE.covariance)
    fourth = float(((MIXTURE.sample(200_000, torch.Generator().manual_seed(1)) - mean) ** 4).mean())
    errors = {
        "mean": (float(x.mean()) - mean, math.sqrt(variance / COUNT)),
        "variance": (float(x.var()) - variance, math.sqrt((fourth - variance**2) / COUNT)),
        "left mass": (float((x < -0.35).double().mean()) - 0.3, math.sqrt(0.3 * 0.7 / COUNT)),
    }
    for what, (error, standard) in errors.items():
        bias = 0.01  # first-order methods at this many steps; a wrong law is off by ten times as much
        assert abs(error) < 4 * standard + bias, f"{what}: {error:.4f} with standard error {standard:.4f}"
