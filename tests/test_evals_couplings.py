"""The study and the benchmark of couplings: laws, distances, what is timed, what is written."""

import json
from pathlib import Path

import pytest
import torch

from pathline.evals import coupling_bench
from pathline.evals.coupling_bench import markdown, time_solvers
from pathline.evals.coupling_study import CouplingStudy, ToySettings, main, run_study
from pathline.evals.toy_flows import draw_pairs, eight_gaussians, transport_distance, two_moons
from pathline.interpolants import coupling_by_name


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_laws_have_their_moments() -> None:
    points = eight_gaussians(20_000, seeded())
    assert float(points.mean(0).abs().max()) < 0.1
    assert float(points.square().sum(1).mean()) == pytest.approx(25.2, rel=0.01)
    moons, classes = two_moons(20_000, seeded())
    assert float(classes.float().mean()) == pytest.approx(0.5, abs=0.02)
    for label, centre in ((0, (-1.0, 6 / torch.pi - 1)), (1, (2.0, 0.5 - 6 / torch.pi))):
        torch.testing.assert_close(moons[classes == label].mean(0), torch.tensor(centre), rtol=0, atol=0.1)


def test_only_plain_transport_ties_the_base_to_the_class() -> None:
    means = {}
    for name in ("independent", "ot", "c2ot"):
        pairs = draw_pairs(coupling_by_name(name), 1024, 256, seeded(1), conditional=True)
        assert pairs.labels is not None
        means[name] = (pairs.base[pairs.labels == 0].mean(0) - pairs.base[pairs.labels == 1].mean(0)).norm()
    assert means["ot"] > 3
    assert max(means["independent"], means["c2ot"]) < 0.7


def test_distance_ignores_the_order_and_looks_within_classes() -> None:
    data, classes = two_moons(64, seeded())
    order = torch.randperm(64, generator=seeded(1))
    assert transport_distance(data[order], data, None, None) == pytest.approx(0, abs=1e-12)
    assert transport_distance(data[order], data, classes[order], classes) == pytest.approx(0, abs=1e-12)
    assert transport_distance(data[order], data, 1 - classes[order], classes) > 1
    assert transport_distance(data + 2.0, data, None, None) == pytest.approx(8.0, rel=1e-5)


@pytest.mark.slow
def test_study_writes_rows_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--steps", "10", "--pairs", "64", "--block", "32", "--samples", "48")
    main([*sizes, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "couplings.json").read_text())
    assert [row["run"] for row in found["rows"]][2:] == [
        "reflow",
        "independent, classes",
        "ot, classes",
        "c2ot, classes",
    ]
    assert found["rows"][1]["pair_cost"] < found["rows"][0]["pair_cost"]
    assert all(row["adaptive"] > 0 and row["straightness"] > 0 for row in found["rows"])
    assert (tmp_path / "couplings.png").stat().st_size > 10_000
    assert "| reflow |" in capsys.readouterr().out
    tracks = CouplingStudy(ToySettings(samples=8)).start
    assert torch.equal(tracks, CouplingStudy(ToySettings(samples=8)).start)


@pytest.mark.slow
def test_transport_and_reflow_straighten_and_c2ot_mends_conditions() -> None:
    rows = {row["run"]: row for row in run_study(ToySettings(1000, 4096, 512, 600)).rows}
    assert rows["ot"]["straightness"] < 0.1 * rows["independent"]["straightness"]
    assert rows["reflow"]["straightness"] < 0.1 * rows["independent"]["straightness"]
    for name in ("ot", "reflow"):
        assert rows[name]["euler-1"] < 0.2 * rows["independent"]["euler-1"]
    assert rows["ot, classes"]["adaptive"] > 5 * rows["c2ot, classes"]["adaptive"]
    assert rows["c2ot, classes"]["euler-1"] < 0.3 * rows["independent, classes"]["euler-1"]


def test_bench_asks_all_solvers_for_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coupling_bench, "MOST_SWEEPS", 50)
    rows = time_solvers(24)
    assert {row["solver"] for row in rows} >= {"newton_sparse", "sinkhorn"}
    assert len({row["problem"] for row in rows}) == 4
    assert all(row["error"] < 2e-9 for row in rows if row["solver"] == "newton_sparse")
    assert markdown(rows).splitlines()[0] == "| problem | solver | iterations | s | error |"
    assert len(markdown(rows).splitlines()) == len(rows) + 2


def test_bench_times_every_part_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = coupling_bench._parts(*coupling_bench._images(4, seeded()))
    assert len(parts) >= 5
    for work in parts.values():
        assert coupling_bench.seconds(work, 1) >= 0
    with pytest.raises(SystemExit):
        coupling_bench.main(["--tables", "stpe", "--out", str(tmp_path / "x.json")])
    monkeypatch.setattr(coupling_bench, "BLOCKS", (8,))
    coupling_bench.main(["--tables", "couplings", "--out", str(tmp_path / "bench.json")])
    rows = json.loads((tmp_path / "bench.json").read_text())["couplings"]
    assert {row["coupling"] for row in rows} >= {"ot", "c2ot", "sinkhorn", "newton"}
    assert "s per step" in (tmp_path / "bench.md").read_text()
