"""`pathline likelihood`, and the figure of what noise does to an edit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pathline.evals.contraction import NOISES, draw_contraction, mixture_contraction, network_contraction
from pathline.evals.likelihoods import LikelihoodSettings, discrete_levels, measure_likelihood, summary_lines
from pathline.evals.sources import open_source


def test_a_law_is_found_as_likely_as_it_is() -> None:
    done: list[int] = []
    settings = LikelihoodSettings("bed:ring", count=12, batch_size=8, rtol=1e-3)
    found = measure_likelihood(settings, done.append)
    assert done == [8, 4]
    assert found.exact is not None
    assert found.nats == pytest.approx(found.exact, abs=0.02)
    assert (found.count, found.dimensions, found.levels, found.divergence) == (12, 2, 1, "exact")
    assert found.bits == pytest.approx(-found.nats / (2 * 0.693147), abs=1e-4)
    assert "the law itself" in summary_lines(found)
    table = LikelihoodSettings("bed:ring:path=vp,prediction=noise", count=4, method="heun", steps=20)
    assert measure_likelihood(table).evaluations == 40


def test_discrete_data_are_recognised() -> None:
    assert discrete_levels(torch.arange(256)[None] / 127.5 - 1) == (256, -1.0, 1.0)
    assert discrete_levels(torch.tensor([[-1.0, -0.5, 0.5, 1.0]]))[0] == 5
    rounded = (torch.linspace(0, 255, 17).round() / 127.5 - 1)[None]  # 17 greys in 8 bits
    assert discrete_levels(rounded)[0] == 17
    assert discrete_levels(torch.randn(50, 20))[0] == 1
    assert discrete_levels(torch.tensor([[0.0, 0.1, 1.0]]).expand(3, 3))[0] in (1, 11)


def test_the_command_writes_numbers(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pathline.evals.cli import app

    out = tmp_path / "found.json"
    done = CliRunner().invoke(
        app, ["likelihood", "bed:ring", "--count", "2", "--rtol", "1e-2", "-q", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "bits" in done.output
    assert json.loads(out.read_text())["found"]["count"] == 2
    refused = CliRunner().invoke(app, ["likelihood", "bed:ring", "--method", "nothing", "-q"])
    assert isinstance(refused.exception, ValueError)


def test_noise_contracts_more_the_more_there_is(tmp_path: Path) -> None:
    found = mixture_contraction(count=3000, steps=20)
    ends = [found["kl"][f"{zeta:g}"][-1] for zeta in NOISES]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] > 0.7
    assert ends[-1] < 0.4
    assert len(found["times"]) == len(found["kl"]["0"])
    network = network_contraction(open_source("bed:mixture"), count=16, steps=10)
    assert all(len(network[name]) == len(network["strengths"]) for name in ("flow", "noise", "flow change"))
    assert network["flow change"] == sorted(network["flow change"])  # more levels, less of the image
    network["pictures"] = torch.zeros(32, 1, 8, 8)
    draw_contraction(found, network, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
