"""Power-function averages in a run, their snapshots, and networks of other lengths made of those."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pathline.training import load_pipeline
from pathline.training.power_averages import PowerAverages, export_average, reconstruct
from pathline.training.power_ema import decay
from support.training_runs import fresh_accelerate, resumed_equals_unbroken, run, same, weights

LONG = {
    "ema": "power",
    "max_train_steps": 60,
    "train_batch_size": 2,
    "learning_rate": 5e-3,
    "ema_snapshot_steps": 4,
    "checkpointing_steps": 40,
}


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return float(sum((first[key].detach() - second[key]).double().square().sum() for key in first) ** 0.5)


def test_averages_follow_their_profiles() -> None:
    network = nn.Linear(3, 2)
    averages = PowerAverages(network, [0.05, 0.2])
    expected = dict.fromkeys((0.05, 0.2), torch.zeros(2, 3))
    for step in range(1, 30):
        nn.init.normal_(network.weight)
        averages.update(network)
        for std in expected:
            beta = decay(std, step, 1.0)
            expected[std] = beta * expected[std] + (1 - beta) * network.weight.detach()
    own = network.weight.detach().clone()
    with averages.applied(network):
        torch.testing.assert_close(network.weight.detach(), expected[0.05])
    assert torch.equal(network.weight, own)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with fresh_accelerate():
        return run(tmp_path_factory.mktemp("power") / "run", **LONG)


def test_a_length_not_tracked_is_made_of_snapshots(finished: Path, tmp_path: Path) -> None:
    tracked = run(tmp_path / "tracked", **LONG, ema_stds="0.075,0.13")
    misfit = export_average(finished, 0.075, tmp_path / "out")
    assert misfit < 0.05
    found, wanted = weights(tmp_path / "out"), weights(tracked)
    near = weights(finished)  # the tracked average of length 0.05
    assert distance(found, wanted) < 0.05 * distance(near, wanted)
    card = load_pipeline(tmp_path / "out").metadata
    assert (card["training"]["weights"], card["training"]["steps"]) == ("power-function average, std 0.075", 60)
    # and one that ends earlier, against the snapshot of a run that tracks it
    stored = load_file(tracked / "ema_snapshots" / "step-0000048.safetensors")
    exact = {name.removeprefix("0.13/"): value for name, value in stored.items() if name.startswith("0.13/")}
    made = dict(reconstruct(finished, 0.13, 48).network.named_parameters())
    assert distance(made, exact) < 0.05 * distance(near, exact)


def test_a_stored_length_is_itself(finished: Path, tmp_path: Path) -> None:
    export_average(finished, 0.05, tmp_path / "out")
    for name, value in weights(finished).items():
        torch.testing.assert_close(weights(tmp_path / "out")[name], value, atol=1e-5, rtol=1e-4)


def test_runs_with_power_averages_resume_bit_for_bit(tmp_path: Path) -> None:
    again = resumed_equals_unbroken(tmp_path, ema="power", ema_snapshot_steps=2)
    names = [path.name for path in sorted((again / "ema_snapshots").iterdir())]
    assert names == ["run.json", *(f"step-000000{step}.safetensors" for step in (2, 4, 6))]
    for name in names[1:]:
        snapshots = (load_file(tmp_path / part / "ema_snapshots" / name) for part in ("whole", "again"))
        assert same(*snapshots)
    assert reconstruct(again, 0.05, 2).misfit < 1e-3  # before and after the resume they are one run


def test_snapshots_that_do_not_serve_are_named(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished / "ema_snapshots", folder / "ema_snapshots")
    with pytest.raises(ValueError, match="out must be a new or an empty folder"):
        export_average(folder, 0.1, folder)
    with pytest.raises(ValueError, match=r"std=0\.01 is far outside those stored \(0\.05 to 0\.1\)"):
        reconstruct(folder, 0.01)
    with pytest.raises(ValueError, match="ends at 61 cannot"):
        reconstruct(folder, 0.1, 61)
    for step in range(20, 60, 4):
        (folder / "ema_snapshots" / f"step-00000{step}.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"profile would be off by \d+%; missing are those of steps 20, 24, 28, 32, 36"
    ):
        reconstruct(folder, 0.08, 50)
    last = folder / "ema_snapshots" / "step-0000060.safetensors"
    tensors = {name: value.clone() for name, value in load_file(last).items()}  # else they are the file itself
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"step-0000060\.safetensors cannot be read"):
        reconstruct(folder, 0.08, 50)
    save_file(tensors, last, metadata={"run": "other", "updates": "60", "stds": json.dumps([0.05, 0.1])})
    with pytest.raises(ValueError, match=r"step-0000060\.safetensors belongs to another run"):
        reconstruct(folder, 0.08, 50)
    with pytest.raises(ValueError, match="holds no snapshots of power-function averages; train with --ema power"):
        reconstruct(tmp_path, 0.08)


def test_the_command(finished: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pathline.evals.cli import app

    done = CliRunner().invoke(app, ["ema", str(finished), "--std", "0.08", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    assert "profile within" in done.stdout
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ema": "powers"}, "unknown ema 'powers'; did you mean 'power'"),
        ({"ema": "power", "ema_stds": "0.05,x"}, "ema_stds must be numbers with commas between them, got '0.05,x'"),
        ({"ema": "power", "ema_stds": "0.4"}, r"std=0\.4 is not possible"),
        ({"ema": "power", "ema_stds": "0.1,0.1"}, "ema_stds must be different"),
        ({"ema_snapshot_steps": 0}, "ema_snapshot_steps must be at least 1, got 0"),
    ],
)
def test_bad_averages_are_refused_before_any_work(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
