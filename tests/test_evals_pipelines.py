"""Trained folders and diffusers pipelines as sources, and the demonstration on top of them."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pathline.evals.demo as demo_module
from pathline.evals.records import RecordFile
from pathline.evals.runners import run_cell
from pathline.evals.scheduler_loop import SchedulerRun
from pathline.evals.settings import Cell, SweepSettings
from pathline.evals.sources import open_source
from pathline.evals.sweep import run_sweep
from pathline.evals.threads import quickest_threads
from pathline.training import train_model

TINY = {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8}


def train_tiny(folder: Path, **options: object) -> Path:
    train_model(
        output_dir=str(folder),
        max_train_steps=2,
        train_batch_size=8,
        lr_warmup_steps=0,
        network_config=TINY,
        preview_images=0,
        plots=False,
        progress=False,
        cpu=True,
        **options,
    )
    return folder


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("flow") / "generator")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("noise") / "labelled", objective="noise", class_conditional=True)


def cells_of(folder: Path) -> tuple[SweepSettings, list[Cell]]:
    settings = SweepSettings(
        str(folder), methods=("dpm++:order=2",), grids=("time",), nfe=(4,), samples=5, batch_size=3
    )
    return settings, list(replace(settings, runners=("sample", "scheduler")).cells())


def test_a_folder_says_what_it_is(flow: Path) -> None:
    source = open_source(str(flow))
    assert source.path.name == "linear"
    assert (source.prediction, source.shape, source.classes) == ("velocity", (1, 8, 8), 0)
    assert source.name.startswith("generator (linear path")
    data = source.data()
    assert data.name.startswith("digits, split train")
    assert data.samples.shape[1:] == (1, 8, 8)
    assert -1 <= data.samples.min() < -0.9


def test_identity_follows_the_weights(flow: Path, tmp_path: Path) -> None:
    first = open_source(str(flow)).identity
    assert open_source(str(flow)).identity == first
    other = train_tiny(tmp_path / "other", seed=3)
    assert open_source(str(other)).identity != first


def test_a_real_pipeline_call_gives_the_library_s_samples(flow: Path) -> None:
    settings, (by_library, by_pipeline) = cells_of(flow)
    source = open_source(str(flow))
    expected = run_cell(source, by_library, settings)
    found = run_cell(source, by_pipeline, settings)
    assert expected.nfe == found.nfe == 4
    torch.testing.assert_close(found.samples, expected.samples, rtol=0, atol=2e-5)
    assert source.pipeline is not None
    pipeline = source.pipeline()
    assert type(pipeline).__name__ == "DDPMPipeline"
    assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler", "the stock scheduler is put back"
    assert not pipeline.unet._forward_pre_hooks


def test_the_pipeline_s_own_loop_runs(flow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, (_, cell) = cells_of(flow)

    def refuse(*args: object) -> None:
        raise AssertionError("the plain loop ran instead")

    monkeypatch.setattr(SchedulerRun, "_by_loop", refuse)
    run_cell(open_source(str(flow)), cell, settings)


def test_labels_go_by_global_index_through_both_runners(labelled: Path) -> None:
    settings, (by_library, by_loop) = cells_of(labelled)
    source = open_source(str(labelled))
    assert (source.classes, source.null_label) == (10, 10)
    assert source.kwargs(range(8, 12))["class_labels"].tolist() == [8, 9, 0, 1]
    expected = run_cell(source, by_library, settings)
    found = run_cell(source, by_loop, settings)
    torch.testing.assert_close(found.samples, expected.samples, rtol=0, atol=2e-4)
    guided = run_cell(source, by_library, replace(settings, guidance=3.0))
    assert (guided.nfe, guided.network_rows) == (4, 8)
    assert not torch.allclose(guided.samples, expected.samples)


def test_a_damaged_folder_is_named(flow: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(flow, broken)
    (weights,) = (broken / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"broken.*cannot be loaded"):
        open_source(str(broken))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no pathline\.json"):
        open_source(str(tmp_path / "empty"))


def test_a_sweep_of_a_trained_folder_keeps_samples_for_the_report(flow: Path, tmp_path: Path) -> None:
    settings = SweepSettings(
        str(flow), methods=("euler",), grids=("time",), nfe=(3,), samples=12, features="pca:4", truth_steps=4, keep=5
    )
    result = run_sweep(settings, tmp_path / "r.jsonl", progress=False)
    (record,) = result.records
    assert record["config"]["reference"]["name"] == "digits, split train"
    assert record["config"]["features"]["label"] == "FD (PCA-4 pixels)"
    kept = sorted(path.name for path in (tmp_path / "r-samples").iterdir())
    assert kept == sorted([f"{record['id']}.npz", f"{record['facts']['truth']}.npz"])


def test_demo_shows_reports_and_reuses(flow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(flow, tmp_path / "demo" / "generator")
    monkeypatch.setattr(demo_module, "METHODS", ("euler", "dpm++:order=2"))
    monkeypatch.setattr(demo_module, "BUDGETS", (3,))
    monkeypatch.setattr(demo_module, "SAMPLES", 40)
    monkeypatch.setattr(demo_module, "TRUTH_STEPS", 5)
    said: list[str] = []
    report = demo_module.run_demo(tmp_path / "demo", progress=False, say=said.append)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names >= {"report.html", "fd-vs-nfe.png", "rmse-vs-nfe.png", "samples.png", "digits.png", "records.jsonl"}
    assert len(RecordFile(tmp_path / "demo" / "records.jsonl").load().records) == 4
    assert any(str(report.page) in text for text in said)
    said.clear()
    demo_module.run_demo(tmp_path / "demo", progress=False, say=said.append)
    assert any("0 of 4 results were new" in text for text in said)


def test_threads_are_chosen_and_given_back() -> None:
    before = torch.get_num_threads()
    for slow in (1, 3):  # sleep in place of work: with one thread, then with three, is slow
        torch.set_num_threads(3)
        with quickest_threads(lambda slow=slow: time.sleep(0.02 if torch.get_num_threads() == slow else 0.0)) as chosen:
            assert chosen == {1: 3, 3: 1}[slow]
            assert torch.get_num_threads() == chosen
        assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_demo_is_what_was_promised() -> None:
    settings = demo_module.demo_settings(Path("m"))
    assert len(set(settings.methods)) >= 6
    assert (min(settings.nfe), max(settings.nfe)) == (3, 20)
    assert settings.runners == ("sample", "scheduler")
    assert settings.features.startswith("pca")
