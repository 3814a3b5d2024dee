"""Whole runs: resume, processes, checkpoints, stops, logs and the command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from accelerate import Accelerator
from safetensors.torch import load_file

from pathline.training import (
    NonFiniteLossError,
    TrainingInterruptedError,
    TrainOptions,
    load_pipeline,
    read_config,
    resolve_options,
)
from pathline.training.cli import add_to
from pathline.training.run_log import RunLog
from pathline.training.trainer import Trainer
from support.training_runs import TINY, fresh_accelerate, losses, run, same, weights


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"random_flip": True, "class_conditional": True, "gradient_accumulation_steps": 2, "train_batch_size": 4},
        {"objective": "edm", "network_config": {**TINY["network_config"], "dropout": 0.2}, "mixed_precision": "bf16"},
    ],
    ids=["plain", "conditional", "edm-dropout-bf16"],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"checkpointing_steps": 4, "logging_steps": 1, **options}
    whole = run(tmp_path / "whole", **options)
    again = run(tmp_path / "again", **options)
    assert same(weights(whole), weights(again))
    # what a run that died after step 5 leaves: its log goes further than its checkpoint
    for leftover in ("checkpoint-6", "unet"):
        subprocess.run(["rm", "-r", str(again / leftover)], check=True)
    (again / "log.jsonl").write_text(
        "".join((again / "log.jsonl").read_text().splitlines(True)[:5]) + '{"step": 6, "lo'
    )
    run(tmp_path / "again", **options, resume_from_checkpoint="latest")
    assert same(weights(whole), weights(again))
    assert losses(again) == losses(whole)
    for name in ("model.safetensors", "ema.safetensors"):
        assert same(load_file(whole / "checkpoint-6" / name), load_file(again / "checkpoint-6" / name))
    first, second = (torch.load(f / "checkpoint-6" / "optimizer.bin", weights_only=True) for f in (whole, again))
    assert first["param_groups"] == second["param_groups"]
    assert all(
        torch.equal(first["state"][key][name], second["state"][key][name])
        for key in first["state"]
        for name in ("exp_avg", "exp_avg_sq", "step")
    )


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    # A large epsilon keeps Adam from dividing rounding errors by tiny gradients.
    options = {"logging_steps": 1, "adam_epsilon": 1e-3}
    whole = run(tmp_path / "whole", **options)
    parts = run(tmp_path / "parts", **options, train_batch_size=2, gradient_accumulation_steps=4)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[key], value, rtol=1e-5, atol=1e-6)


def test_seeds_matter_and_the_average_is_what_is_saved(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    other = run(tmp_path / "other", seed=1)
    assert not same(weights(first), weights(other))
    average = load_file(first / "checkpoint-6" / "ema.safetensors")
    assert same(weights(first), average)
    assert not same(average, load_file(first / "checkpoint-6" / "model.safetensors"))
    plain = run(tmp_path / "plain", use_ema=False)
    assert same(weights(plain), load_file(first / "checkpoint-6" / "model.safetensors"))
    assert json.loads((plain / "pathline.json").read_text())["training"]["weights"] == "last"


def launch(folder: Path, processes: int, *options: str) -> None:
    # `accelerate launch --cpu` starts one process whatever their number is said to be; this starts them all.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    config = folder.with_suffix(".json")
    config.write_text(json.dumps({**TINY, "output_dir": str(folder), "logging_steps": 1, "adam_epsilon": 1e-3}))
    command += ["-m", "pathline.training", "--config", str(config), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


ADAPTIVE = {"objective": "v", "loss_weight": "sigmoid", "time_density": "adaptive"}
BRIDGE = {"objective": "bridge", "path": "bbdm", "image_condition": "super_resolution"}


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param(ADAPTIVE, marks=pytest.mark.slow), pytest.param(BRIDGE, marks=pytest.mark.slow)],
    ids=["flow", "adaptive", "bridge"],
)
def test_two_processes_equal_one(tmp_path: Path, options: dict[str, str]) -> None:
    one = run(tmp_path / "one", logging_steps=1, adam_epsilon=1e-3, **options)
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    launch(tmp_path / "two", 2, "--train_batch_size", "4", "--checkpointing_steps", "4", *given)
    two = tmp_path / "two"
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    for key, value in weights(one).items():
        torch.testing.assert_close(weights(two)[key], value, rtol=1e-5, atol=1e-6)
    assert (two / "checkpoint-6" / "random_states_1.pkl").is_file()


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path) -> None:
    folder = run(
        tmp_path,
        max_train_steps=60,
        train_batch_size=16,
        learning_rate=5e-3,
        preview_images=4,
        preview_steps=40,
        preview_nfe=2,
    )
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert {"loss_by_time", "learning_rate", "grad_norm", "ema_decay", "images_per_second"} <= lines[0].keys()
    assert sum(lines[0]["loss_by_time"]) / 5 == pytest.approx(lines[0]["loss"], rel=0.05)
    assert lines[-1]["learning_rate"] == pytest.approx(0.0)
    assert {f.name for f in (folder / "previews").iterdir()} == {"step-000040.png", "step-000060.png"}
    assert [f.name for f in sorted(folder.glob("checkpoint-*"))] == ["checkpoint-60"]
    assert json.loads((folder / "config.json").read_text())["max_train_steps"] == 60


@pytest.mark.parametrize("objective", ["flow", "noise", "v", "data", "edm"])
@pytest.mark.parametrize("network", ["unet", "dit"])
def test_every_objective_trains_and_loads(tmp_path: Path, objective: str, network: str) -> None:
    small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16}
    config = small if network == "dit" else TINY["network_config"]
    folder = run(
        tmp_path, objective=objective, network=network, network_config=config, max_train_steps=2, class_conditional=True
    )
    loaded = load_pipeline(folder)
    assert loaded.null_label == 10
    state = loaded.path.prior((2, 1, 8, 8), torch.Generator().manual_seed(0))
    output = loaded.model(state, torch.full((2,), 0.5), class_labels=torch.tensor([1, 10]))
    assert bool(torch.isfinite(output).all())
    assert loaded.metadata["training"]["objective"]["path"] == loaded.metadata["path"]


def test_old_checkpoints_go_and_a_used_folder_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, checkpointing_steps=1, checkpoints_total_limit=3)
    assert sorted(f.name for f in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(
        ValueError, match="holds checkpoint-6 of an earlier run; go on with --resume_from_checkpoint latest"
    ):
        run(tmp_path)


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(tmp_path: Path) -> None:
    run(tmp_path, checkpointing_steps=2, checkpoints_total_limit=3)
    weights_file = tmp_path / "checkpoint-6" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(bytes(content))
    message = "checkpoint-6 is damaged: model.safetensors does not have .*--resume_from_checkpoint .*checkpoint-4"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, resume_from_checkpoint="latest")
    (tmp_path / "checkpoint-4" / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4 is damaged: optimizer.bin is missing.*checkpoint-2"):
        run(tmp_path, resume_from_checkpoint="checkpoint-4")
    (tmp_path / "checkpoint-2" / "manifest.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"checkpoint-2 is damaged: manifest.json is missing or unreadable; there is no"
    ):
        run(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(
        ValueError, match=r"checkpoint 'checkpoint-3' does not exist; in .* there are: checkpoint-2, checkpoint-4"
    ):
        run(tmp_path, resume_from_checkpoint="checkpoint-3")


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, max_train_steps=2)
    with pytest.raises(
        ValueError, match=r"other options: learning_rate was 0.003, is 0.1; seed was 0, is 4; use the same"
    ):
        run(tmp_path, max_train_steps=2, resume_from_checkpoint="latest", learning_rate=0.1, seed=4)
    with pytest.raises(ValueError, match="images per optimiser step was 8, is 4"):
        run(tmp_path, max_train_steps=2, resume_from_checkpoint="latest", train_batch_size=4)
    with pytest.raises(
        ValueError, match=r"max_train_steps was 2, is 3 .the learning rate depends on .*--lr_scheduler constant"
    ):
        run(tmp_path, max_train_steps=3, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"'latest', but .* holds no checkpoint"):
        run(tmp_path / "empty", resume_from_checkpoint="latest")


def test_an_interval_of_time_without_samples_has_no_mean(tmp_path: Path) -> None:
    """A zero would be read as a perfect loss."""
    log = RunLog(tmp_path, Accelerator(cpu=True), tracked=False)
    log.count(0.5)
    log.note_levels(torch.tensor([0.0, 1.0]).double(), torch.tensor([0.1, 0.9]).double())
    log.write(1, 0.1, 2)
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss_by_time"] == [0.0, None, None, None, 1.0]


def test_a_constant_rate_may_be_trained_longer(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", lr_scheduler="constant_with_warmup")
    run(tmp_path / "parts", lr_scheduler="constant_with_warmup", max_train_steps=3)
    parts = run(tmp_path / "parts", lr_scheduler="constant_with_warmup", resume_from_checkpoint="latest")
    assert same(weights(whole), weights(parts))


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._losses

    def poisoned(self: Trainer, places: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        values, times = original(self, places, batch)
        if self.step == 4:
            values = values * torch.where(torch.arange(8) == 3, torch.nan, 1.0)
        return values, times

    monkeypatch.setattr(Trainer, "_losses", poisoned)
    with pytest.raises(
        NonFiniteLossError, match=r"loss is nan at optimiser step 5, at time 0\.\d+ .*log-SNR.*1 of 8"
    ) as error:
        run(tmp_path, checkpointing_steps=2)
    assert "checkpoint-4" in str(error.value)
    assert sorted(f.name for f in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_an_interrupt_leaves_a_resumable_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    original, handler = Trainer._optimise, signal.getsignal(signal.SIGINT)

    def interrupted(self: Trainer, batches: Any) -> float:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "_optimise", interrupted)
    with pytest.raises(
        TrainingInterruptedError, match="stopped after step 3 of 6; go on with --resume_from_checkpoint latest"
    ):
        run(tmp_path / "broken")
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    broken = run(tmp_path / "broken", resume_from_checkpoint="latest")
    assert same(weights(whole), weights(broken))


def command(*arguments: str) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(add_to(typer.Typer()), arguments)


def test_the_command_stops_at_ctrl_c_with_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "options.json"
    config.write_text(json.dumps({**TINY, "max_train_steps": 100_000, "output_dir": str(tmp_path / "run")}))
    process = subprocess.Popen(
        [sys.executable, "-m", "pathline.training", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "log.jsonl").exists() or not (tmp_path / "run" / "log.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume_from_checkpoint latest" in errors
    assert "Traceback" not in errors
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1


def test_the_command_reads_files_and_both_spellings(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text(
        "max_train_steps = 2\ntrain_batch_size = 4\nprogress = false\npreview_images = 0\n"
        "[network_config]\nblock_out_channels = [8, 8]\nnorm_num_groups = 4\nattention_head_dim = 8\n"
    )
    folder = tmp_path / "out"
    config = str(tmp_path / "options.toml")
    done = command("--config", config, "--train-batch-size", "3", "--no_use_ema", "--cpu", "--output_dir", str(folder))
    assert done.exit_code == 0, done.stderr
    resolved = json.loads((folder / "config.json").read_text())
    assert (resolved["train_batch_size"], resolved["max_train_steps"], resolved["use_ema"]) == (3, 2, False)
    assert (resolved["path"], resolved["learning_rate"]) == ("linear", 0.003)


def test_unknown_options_of_the_command_are_errors() -> None:
    done = command("--train_batchsize", "3")
    assert done.exit_code == 2
    assert "train_batch_size" in done.stderr
    done = command("--loss_weight", "min_snrr", "--output_dir", "never")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown loss weight 'min_snrr'; did you mean 'min_snr'")
    assert not Path("never").exists()


def test_presets_fill_what_is_not_given() -> None:
    options = resolve_options({})
    assert (options.dataset_name, options.path, options.prediction) == ("digits", "linear", "velocity")
    edm = resolve_options({"objective": "edm", "sigma_data": 0.6})
    assert edm.loss_weight_config == {"sigma_data": 0.6}
    assert edm.time_density_config == {"mean": -1.2, "std": 1.2}
    changed = resolve_options({"objective": "edm", "time_density": "uniform_logsnr"})
    assert changed.time_density_config == {}
    assert resolve_options({"num_epochs": 2}).max_train_steps is None
    other = resolve_options({"train_data_dir": "somewhere"})
    assert (other.dataset_name, other.max_train_steps) == (None, 10_000)
    assert TrainOptions(**options.to_dict()) == options


def test_the_weighting_schemes_of_diffusers_are_understood() -> None:
    normal = resolve_options({"weighting_scheme": "logit_normal", "logit_mean": 0.5, "logit_std": 0.6})
    assert (normal.time_density, normal.loss_weight) == ("logit_normal", "none")
    assert normal.time_density_config == {"mean": 0.5, "std": 0.6}
    assert resolve_options({"weighting_scheme": "sigma_sqrt"}).loss_weight == "sigma_sqrt"
    assert resolve_options({"weighting_scheme": "mode", "mode_scale": 1.0}).time_density_config == {"scale": 1.0}


def test_config_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"learning_rate": 1, "class_dropout": 0.2}')
    assert read_config(tmp_path / "a.json") == {"learning_rate": 1.0, "class_dropout": 0.2}
    for name, text, words in (
        ("b.json", '{"lerning_rate": 1}', "b.json: unknown option 'lerning_rate'; did you mean 'learning_rate'"),
        ("b.json", '{"seed": "x"}', "b.json: seed must be of type int, got 'x'"),
        ("b.json", '{"seed": true}', "seed must be of type int, got True"),
        ("b.json", "[1]", "must hold a JSON object"),
        ("b.toml", "seed = ", "cannot be read as TOML"),
        ("b.yaml", "seed: 1", "must be a .json or .toml file"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            read_config(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "flows"}, "unknown objective 'flows'; did you mean 'flow'"),
        ({"lr_scheduler": "cosin"}, "unknown lr_scheduler 'cosin'; did you mean 'cosine'"),
        ({"mixed_precision": "fp32"}, "unknown mixed_precision 'fp32'"),
        ({"train_batch_size": 0}, "train_batch_size must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above 0, got -1.0"),
        ({"class_dropout": 1.0}, r"class_dropout must be in \[0, 1\), got 1.0"),
        ({"weighting_scheme": "sigma"}, "unknown weighting_scheme 'sigma'"),
        ({"weighting_scheme": "mode", "time_density": "uniform"}, "weighting_scheme 'mode' means time_density 'mode'"),
        ({"logit_mean": 0.5}, "logit_mean belongs to time_density 'logit_normal', got time_density None"),
        ({"path": "linea"}, "unknown path 'linea'; did you mean 'linear'"),
        ({"objective": "noise", "path_config": {"schedule": "lin"}}, "unknown schedule of the discrete path 'lin'"),
        ({"objective": "noise", "path_config": {"schedule": "linear", "steps_": 3}}, "does not suit the schedule"),
        ({"dataset_name": "digit"}, "unknown data set 'digit'"),
        ({"report_to": "tensorbord"}, "unknown tracker"),
        ({"mixed_precision": "fp16"}, "'fp16' needs a GPU"),
        ({"ema_max_decay": 2.0}, r"ema_max_decay must lie in \[0, 1\], got 2.0"),
        ({"network": "unet3"}, "unknown network 'unet3'"),
        ({"preview_images": 4, "preview_method": "dpmm"}, "unknown method 'dpmm'"),
        ({"nonsense": 1}, "unknown option 'nonsense'"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_classes_need_labels(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "x.npz", arr_0=np.zeros((12, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match=r"class_conditional needs labels, and data set .* has none"):
        run(tmp_path / "out", train_data_dir=str(tmp_path / "x.npz"), class_conditional=True)
