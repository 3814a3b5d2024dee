"""The study of what calibration gains: its figures, how it goes on, what it refuses."""

import json
from pathlib import Path

import pytest

from pathline.evals import calibration_study
from pathline.evals.calibration_distance import run_table
from pathline.evals.calibration_study import main
from pathline.evals.peers import Setting
from pathline.samplers import Table

ARGUMENTS = [
    *("bed:mixture", "--nfe", "4", "--trajectories", "8", "--hold_out", "4", "--samples", "12", "--screen", "4"),
    *("--keep", "1", "--statistics", "6", "--features", "raw", "--images", "200"),
]


@pytest.mark.slow
def test_a_study_measures_all_on_new_noises_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "study.json"
    few = [Setting("ddim", "time"), Setting("ipndm:order=2,afs=unit", "beta"), Setting("unipc:order=2", "logsnr")]
    monkeypatch.setattr(calibration_study, "candidates", lambda nfe: few)
    monkeypatch.setattr(calibration_study, "_V3", ((2, "time", False),))
    main([*ARGUMENTS, "--out", str(out)])
    found = json.loads(out.read_text())
    cell = found["cells"]["4"]
    assert cell["calibrated"][0] < 0.7 * cell["untuned"][0]
    assert "DPM-Solver-v3 order 2 on time" in cell["searched"]
    assert any(name.startswith(("IIA ", "DC ", "ipndm-2 on GITS")) for name in cell["searched"])
    assert 0 < cell["distance"]["calibrated"] < 1.5 * found["converged_distance"]

    table = Table.load(tmp_path / "study" / "calibrated-4.safetensors")
    bench = calibration_study.Bench(calibration_study.open_bed("bed:mixture"), samples=12, seed=1)
    again = bench.distance(run_table(bench.problem, table.released(), bench.start))
    assert again == pytest.approx(cell["calibrated"][0], rel=1e-6)

    monkeypatch.setattr(calibration_study.Study, "cell", lambda self, nfe: pytest.fail("measured twice"))
    main([*ARGUMENTS, "--out", str(out)])
    with pytest.raises(SystemExit, match="a study of other settings"):
        main([*ARGUMENTS, "--guidance", "2.0", "--out", str(out)])
