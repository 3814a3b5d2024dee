"""Sweeps: counted, keyed by sample, resumable, equal on any split, and refused before any work."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pathline.evals.sweep as sweep_module
from pathline.evals.distances import frechet_distance
from pathline.evals.moments import Moments
from pathline.evals.records import RecordFile
from pathline.evals.rerun import rerun_record
from pathline.evals.runners import run_cell, start_state
from pathline.evals.settings import SweepSettings
from pathline.evals.sources import Source, open_source
from pathline.evals.sweep import run_sweep
from pathline.evals.testbeds import make_bed
from pathline.evals.truth import CHUNK, dense_times, load_truth
from pathline.evals.world import World
from pathline.interpolants import EDMPath, LinearPath, VPPath
from pathline.interpolants.gaussian import Gaussian
from pathline.samplers import START_NOISE, keyed_normal, sample

Finished = tuple[Path, list[dict[str, Any]]]

RING = SweepSettings(
    "bed:ring",
    methods=("ddim", "dpm++:order=2"),
    grids=("time",),
    nfe=(4, 8),
    samples=60,
    features="raw",
    truth_steps=60,
    dtype="float64",
)


def without_run(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records less what may differ between two runs, in an order that does not depend on who finished first."""
    return sorted(({k: v for k, v in r.items() if k != "run"} for r in records), key=lambda r: r["id"])


def by_cell(records: list[dict[str, Any]], metric: str) -> dict[tuple[str, int, str], float]:
    return {(r["config"]["method"], r["config"]["nfe"], r["config"]["runner"]): r["metrics"][metric] for r in records}


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("ring") / "r.jsonl"
    return path, run_sweep(RING, path, progress=False).records


def test_every_cell_has_one_record_with_the_whole_protocol(ring: Finished) -> None:
    path, records = ring
    assert len(records) == 4
    assert RecordFile(path).load().records == records
    for record in records:
        config = record["config"]
        assert config.keys() >= {"source", "path", "prediction", "samples", "dtype", "guidance", "labels", "features"}
        assert config.keys() >= {"reference", "truth", "distances"}
        assert record["facts"]["nfe"] == config["nfe"]
        assert record["run"]["versions"].keys() >= {"torch", "pathline", "diffusers"}
    assert len({record["protocol"] for record in records}) == 1
    assert json.loads((path.parent / "r.settings.json").read_text())["samples"] == 60


def test_metrics_are_those_of_the_samples(ring: Finished) -> None:
    records = ring[1]
    source = open_source(RING.source)
    cell = next(c for c in RING.cells() if c.method.name == "dpm++" and c.nfe == 8)
    x = start_state(source, 0, range(60), torch.float64)
    expected = sample(
        source.model, x, path=LinearPath(), method="dpm++", order=2, nfe=8, grid="time", prediction="velocity"
    )
    outcome = run_cell(source, cell, RING)
    assert torch.equal(outcome.samples, expected)
    mean, covariance = source.data().exact
    distance = frechet_distance(Moments.of(expected), Moments.exact(mean, covariance))
    assert by_cell(records, "fd")["dpm++", 8, "sample"] == pytest.approx(distance, rel=1e-9)


def test_errors_are_those_to_the_exact_flow(tmp_path: Path) -> None:
    settings = replace(RING, source="bed:gaussian", nfe=(8, 16), truth="unipc:order=3", truth_steps=200)
    found = run_sweep(settings, tmp_path / "r.jsonl", progress=False).records
    source, target = open_source("bed:gaussian"), make_bed("gaussian").target
    assert isinstance(target, Gaussian)
    x = start_state(source, 0, range(60), torch.float64)
    exact = target.flow_map(x, (0.0, 1.0), (1.0, 0.0))
    errors = by_cell(found, "rmse")
    for cell in settings.cells():
        direct = (run_cell(source, cell, settings).samples - exact).square().mean().sqrt().item()
        assert errors[cell.method.name, cell.nfe, "sample"] == pytest.approx(direct, rel=0.01)
    assert errors["dpm++", 16, "sample"] < 0.6 * errors["ddim", 16, "sample"]
    assert errors["ddim", 16, "sample"] < 0.7 * errors["ddim", 8, "sample"]
    (gap,) = {r["metrics"]["truth_gap"] for r in found}
    assert 0 < gap < 0.01 * errors["dpm++", 16, "sample"]


def test_a_second_run_computes_nothing(ring: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    path, records = ring
    before = path.read_bytes()
    monkeypatch.setattr(sweep_module, "run_cell", None)
    again = run_sweep(RING, path, progress=False)
    assert (again.new, again.records) == (0, records)
    assert path.read_bytes() == before


def test_new_budgets_are_added_to_old_records(ring: Finished, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(ring[0].read_bytes())
    wider = run_sweep(replace(RING, nfe=(4, 6)), path, progress=False)
    assert (wider.new, len(wider.records)) == (2, 4)
    assert len(RecordFile(path).load().records) == 6


def test_an_interrupted_sweep_goes_on_and_ends_with_equal_records(
    ring: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def stopping(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return run_cell(*args)

    path = tmp_path / "r.jsonl"
    monkeypatch.setattr(sweep_module, "run_cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(RING, path, progress=False)
    assert len(RecordFile(path).load().records) == 2
    resumed = run_sweep(RING, path, progress=False)
    assert resumed.new == 2
    assert without_run(resumed.records) == without_run(ring[1])


def test_a_damaged_record_is_named_and_computed_again(ring: Finished, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    lines = ring[0].read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:50] + b"\n" + b"".join(lines[2:]))
    said: list[str] = []
    result = run_sweep(RING, path, progress=False, say=said.append)
    assert result.new == 1
    assert "line 2 is damaged" in said[0]
    assert without_run(result.records) == without_run(ring[1])
    assert (tmp_path / "r.jsonl.damaged").read_bytes() == lines[1][:50] + b"\n"


@pytest.mark.parametrize("method", ["dpm++:order=2", "ddim:eta=1.0"])
@pytest.mark.parametrize("runner", ["sample", "scheduler"])
def test_batch_size_changes_no_sample(method: str, runner: str) -> None:
    settings = replace(RING, methods=(method,), runners=(runner,), samples=10)
    source = open_source("bed:mixture:conditional=true")
    cell = next(settings.cells())
    whole = run_cell(source, cell, settings)
    split = run_cell(source, cell, replace(settings, batch_size=3))
    assert whole.nfe == split.nfe == 4
    torch.testing.assert_close(split.samples, whole.samples, rtol=0, atol=1e-12)


def test_start_noise_belongs_to_the_global_index() -> None:
    source = open_source("bed:ring:path=edm")
    x = start_state(source, 7, range(5, 9), torch.float64)
    expected = 80 * keyed_normal((2,), 7, range(4, 12), START_NOISE, dtype=torch.float64)
    torch.testing.assert_close(x, expected[1:5], rtol=1e-12, atol=0)
    assert not torch.equal(start_state(source, 8, range(5, 9), torch.float64), x)


@pytest.mark.parametrize("method", ["ddim", "ddim:eta=0.7", "heun", "unipc:order=3", "ipndm:order=4"])
@pytest.mark.parametrize("bed", ["bed:mixture", "bed:mixture:path=discrete,prediction=noise"])
def test_library_and_diffusers_loop_give_the_same_samples(method: str, bed: str) -> None:
    settings = replace(RING, source=bed, methods=(method,), nfe=(7,), samples=6, batch_size=4)
    source = open_source(bed)
    cells = replace(settings, runners=("sample", "scheduler")).cells()
    by_library, by_loop = (run_cell(source, cell, settings) for cell in cells)
    assert by_library.nfe == by_loop.nfe == 7
    # labels reach the network of a diffusers loop in float32
    torch.testing.assert_close(by_loop.samples, by_library.samples, rtol=0, atol=2e-5)


class _Broken:
    """A model that fails after a number of calls, or whenever it is called."""

    def __init__(self, model: Any, value: float | None = None) -> None:
        self.model, self.value = model, value

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.value is None:
            raise AssertionError("the network was called")
        out = self.model(x, t, **kwargs)
        return out * self.value if len(x) == 60 and float(t[0]) > 0.6 else out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("dpmm",)}, "unknown method 'dpmm'; did you mean 'dpm"),
        ({"methods": ("ddim:etta=1",)}, "did you mean 'eta'"),
        ({"methods": ("ddim:seed=1",)}, "seed"),
        ({"methods": ("ddim", "dopri5:rtol=1e-3")}, r"'dopri5' chooses its own steps.*sample\(model, x"),
        ({"grids": ("logsnrr",)}, "unknown grid 'logsnrr'; did you mean 'logsnr'"),
        ({"grids": ("karras:ro=5",)}, "did you mean 'rho'"),
        ({"truth": "ddim:eta=1"}, "draws noise; choose a deterministic one"),
        ({"truth": "unipcc"}, "did you mean 'unipc'"),
        ({"features": "pixel"}, "unknown feature space 'pixel'"),
        ({"guidance": 2.0}, "needs a class-conditional source"),
        ({"data": "nowhere.npz"}, r"nowhere\.npz does not exist"),
        ({"methods": ("heun",), "nfe": (1,), "grids": ("karras:rho=-1",)}, "no cell can be run"),
    ],
)
def test_what_cannot_work_is_refused_before_the_network_is_called(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = open_source("bed:ring")
    source = replace(source, model=_Broken(source.model))
    with pytest.raises(ValueError, match=message):
        run_sweep(replace(RING, **change), tmp_path / "r.jsonl", source=source, progress=False)
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bed:rung", "unknown test bed 'rung'; did you mean 'ring'"),
        ("bed:ring:pth=vp", "unknown option of a test bed 'pth'; did you mean 'path'"),
        ("bed:ring:path=liner", "did you mean 'linear'"),
        ("nowhere/at/all", "nowhere/at/all has no pathline.json"),
    ],
)
def test_unknown_sources_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(text)


def test_scheduler_runner_is_refused_where_diffusers_has_no_such_path(tmp_path: Path) -> None:
    settings = replace(RING, source="bed:ring:path=vp", runners=("scheduler",))
    with pytest.raises(ValueError, match="no diffusers loop samples"):
        run_sweep(settings, tmp_path / "r.jsonl", progress=False)


def test_a_budget_below_a_method_leaves_out_that_cell_only(tmp_path: Path) -> None:
    settings = replace(RING, grids=("karras", "time"), nfe=(1, 4), methods=("ddim", "heun"), truth_steps=0)
    result = run_sweep(settings, tmp_path / "r.jsonl", progress=False)
    assert len(result.records) + len(result.notes) == 8
    assert all(note.startswith("left out ") for note in result.notes)
    assert all(record["metrics"].get("rmse") is None for record in result.records)


def test_a_diverging_sampler_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    source = open_source("bed:ring")
    source = replace(source, model=_Broken(source.model, float("nan")))
    result = run_sweep(replace(RING, truth_steps=0, nfe=(2, 8)), tmp_path / "r.jsonl", source=source, progress=False)
    failed = [r for r in result.records if "error" in r["facts"]]
    assert {r["config"]["nfe"] for r in failed} == {8}
    assert all(not r["metrics"] for r in failed)
    assert len(result.records) == 4
    assert any("diverged" in note for note in result.notes)


def test_stochastic_methods_have_distances_but_no_error(tmp_path: Path) -> None:
    settings = replace(RING, methods=("ddim:eta=1.0",), nfe=(8,))
    (record,) = run_sweep(settings, tmp_path / "r.jsonl", progress=False).records
    assert record["facts"]["stochastic"]
    assert record["metrics"]["rmse"] is None
    assert record["metrics"]["fd"] > 0


def test_guided_evaluations_and_network_rows_are_both_counted(tmp_path: Path) -> None:
    settings = replace(RING, source="bed:ring:conditional=true", guidance=2.0, methods=("ddim",), nfe=(4,))
    (guided,) = run_sweep(settings, tmp_path / "r.jsonl", progress=False).records
    assert (guided["facts"]["nfe"], guided["facts"]["network_rows"]) == (4, 8)
    (plain,) = run_sweep(replace(settings, guidance=None), tmp_path / "r.jsonl", progress=False).records
    assert (plain["facts"]["nfe"], plain["facts"]["network_rows"]) == (4, 4)
    assert plain["protocol"] != guided["protocol"]
    assert plain["metrics"]["fd"] != guided["metrics"]["fd"]


def test_truth_is_computed_once_kept_and_mended(tmp_path: Path) -> None:
    source = open_source("bed:ring")
    settings = replace(RING, samples=40, truth_steps=20)
    truth = load_truth(source, settings, 0, tmp_path, World())
    (file,) = tmp_path.iterdir()
    blind: Source = replace(source, model=_Broken(source.model))
    again = load_truth(blind, settings, 0, tmp_path, World())
    assert torch.equal(again.samples, truth.samples)
    fewer = load_truth(blind, replace(settings, samples=10), 0, tmp_path, World())
    assert torch.equal(fewer.samples, truth.samples[:10])
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged"):
        mended = load_truth(source, settings, 0, tmp_path, World())
    assert torch.equal(mended.samples, truth.samples)
    more = load_truth(source, replace(settings, samples=CHUNK + 2), 0, tmp_path, World())
    torch.testing.assert_close(more.samples[:40], truth.samples, rtol=0, atol=1e-12)
    assert len(list(tmp_path.iterdir())) == 2
    assert load_truth(source, settings, 1, tmp_path, World()).key != truth.key


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), EDMPath()])
def test_dense_times_rise_from_pure_noise_to_data(path: Any) -> None:
    times = dense_times(path, 50)
    assert len(times) == 51
    assert (times[0], times[-1]) == (0.0, 1.0)
    assert (np.diff(times) > 0).all()


def test_a_stored_row_reruns_itself(ring: Finished) -> None:
    path, records = ring
    pairs = rerun_record(path, records[0]["id"][:8])
    assert pairs["nfe"] == (4, 4)
    assert all(stored == fresh for stored, fresh in pairs.values())
    with pytest.raises(ValueError, match="0 records"):
        rerun_record(path, "zzz")


def launch(arguments: list[str], processes: int, folder: Path) -> None:
    starter = [sys.executable, "-m", "pathline.evals"]
    if processes > 1:
        # `accelerate launch --cpu` starts one process whatever their number is said to be; this starts them all.
        starter = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        starter += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        starter += ["--main_process_port", "0", "-m", "pathline.evals"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*starter, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_give_the_records_of_one(tmp_path: Path) -> None:
    arguments = ["sweep", "bed:mixture", "--methods", "ddim dpm++:order=2 ddim:eta=1.0", "--nfe", "4,8"]
    arguments += ["--seeds", "0-1", "--samples", "300", "--features", "raw", "--truth-steps", "20", "--quiet"]
    found = []
    for processes in (1, 2):
        launch([*arguments, "--out", f"{processes}.jsonl"], processes, tmp_path)
        found.append(RecordFile(tmp_path / f"{processes}.jsonl").load().records)
    assert len(found[0]) == 12
    assert without_run(found[0]) == without_run(found[1])
    assert {r["run"]["processes"] for r in found[1]} == {2}
