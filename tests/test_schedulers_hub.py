"""Pipelines saved for people who do not import pathline: with the hub's remote code, or with a stock scheduler."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from pathline.samplers.schedulers import (
    HeunScheduler,
    PathlineScheduler,
    UniPCScheduler,
    load_portable,
    save_portable,
    write_hub_shim,
)
from support.pipeline_runs import drive
from support.pipelines import TINY, absent, image_unet, quiet

SHIM = "pathline.samplers.schedulers.py"
SETTINGS = {"options": {"order": 2}, "grid": "karras", "seed": 7}


def small(scheduler: Any = None) -> Any:
    """The quickest pipeline to save and load."""
    stock = diffusers.DDPMScheduler(clip_sample=False)
    scheduler = scheduler or UniPCScheduler.from_config(stock.config, pathline=SETTINGS)
    return quiet(diffusers.DDPMPipeline(image_unet(), scheduler))


def images(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.tensor(quiet(pipe)(generator=generator, num_inference_steps=4, output_type="np").images)


# --- the shim ----------------------------------------------------------------------------------------------------

# Whoever loads imports diffusers alone: the first folder has a stock scheduler, the second one of ours without the
# file, the others have it.
FRESH = """
import logging, sys
from pathlib import Path
import diffusers, torch
folder, said, handler = Path(sys.argv[1]), [], logging.Handler()
handler.emit = said.append
logging.getLogger("diffusers").addHandler(handler)
pipe = diffusers.DiffusionPipeline.from_pretrained(folder / "portable")
pipe(num_inference_steps=2, output_type="np")
print(type(pipe.scheduler).__name__)
assert not said, said  # such as keys that the stock class does not know
try:
    diffusers.DiffusionPipeline.from_pretrained(folder / "bare", trust_remote_code=True)
    raise SystemExit("a folder without the file was loaded")
except ValueError as error:
    assert "has not been imported" in str(error), error
try:
    diffusers.DiffusionPipeline.from_pretrained(folder / "unipc")
    raise SystemExit("the file was run without trust_remote_code")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
assert not any(name.startswith("pathline") for name in sys.modules)
for name in ("unipc", "heun"):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder / name, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    print(type(pipe.scheduler).__module__, type(pipe.scheduler).__name__, pipe.scheduler.config.pathline["seed"])
    draw = torch.Generator().manual_seed(0)
    found = pipe(generator=draw, num_inference_steps=4, output_type="np").images
    torch.save(torch.tensor(found), folder / f"{name}.pt")
    pipe.save_pretrained(folder / "again" / name)
"""


def test_saved_pipelines_load_in_a_process_that_does_not_import_pathline(tmp_path: Path) -> None:
    config = diffusers.DDPMScheduler(clip_sample=False).config
    pipes = {
        "bare": small(),
        "unipc": small(),
        "heun": small(HeunScheduler.from_config(config, pathline={"seed": 7})),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
        if name != "bare":
            assert write_hub_shim(tmp_path / name) == [tmp_path / name / "scheduler" / SHIM]
    save_portable(small(), tmp_path / "portable")
    command = [sys.executable, "-c", FRESH, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "DDPMScheduler",
        "pathline.samplers.schedulers UniPCScheduler 7",
        "pathline.samplers.schedulers HeunScheduler 7",
    ]
    for name in ("unipc", "heun"):
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.pt"), images(pipes[name]), rtol=1e-5, atol=1e-5)
        index = json.loads((tmp_path / "again" / name / "model_index.json").read_text())
        assert index["scheduler"] == ["pathline.samplers.schedulers", type(pipes[name].scheduler).__name__]


def test_shim_passes_what_the_hub_checks(tmp_path: Path) -> None:
    """Before a download diffusers compares the index with the names of the repository's files."""
    from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders as check

    small().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())

    def names() -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]

    with pytest.raises(ValueError, match=r"scheduler/pathline\.samplers\.schedulers\.py as defined"):
        check("someone/model", index, names())
    write_hub_shim(tmp_path)
    assert check("someone/model", index, names())[0] == {"scheduler": "pathline.samplers.schedulers"}


def test_shim_is_written_twice_without_harm(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    (first,) = write_hub_shim(tmp_path)
    text = first.read_text()
    assert write_hub_shim(str(tmp_path)) == [first]
    assert first.read_text() == text
    assert sorted(path.name for path in (tmp_path / "scheduler").iterdir()) == [SHIM, "scheduler_config.json"]


def test_shim_refuses_what_it_cannot_help(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        write_hub_shim(tmp_path)
    small(diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no component of the pipeline"):
        write_hub_shim(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["scheduler"] = ["pathline.samplers.schedulers", "UniPcScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"did you mean .*'UniPCScheduler'"):
        write_hub_shim(tmp_path)
    assert not (tmp_path / "scheduler" / SHIM).exists()


# --- a stock scheduler with our config beside it -----------------------------------------------------------------


def test_portable_pipeline_comes_back(tmp_path: Path) -> None:
    pipe = small()
    scheduler = pipe.scheduler
    save_portable(pipe, tmp_path)
    assert pipe.scheduler is scheduler
    assert pipe.config["scheduler"] == ("pathline.samplers.schedulers", "UniPCScheduler")
    found = load_portable(tmp_path)
    assert type(found.scheduler) is UniPCScheduler
    assert found.scheduler.config.pathline == SETTINGS
    assert torch.equal(images(found), images(pipe))
    found.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["scheduler"] == ["pathline.samplers.schedulers", "UniPCScheduler"]


def settings(scheduler: Any) -> dict[str, Any]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_portable_text_pipelines(name: str, tmp_path: Path) -> None:
    tiny = TINY[name]
    pipe = tiny.make(UniPCScheduler.from_config(tiny.stock().config))
    save_portable(pipe, tmp_path)
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path, **absent(tiny))
    assert type(stock.scheduler) is type(tiny.stock())
    assert settings(stock.scheduler) == settings(tiny.stock())
    found = load_portable(tmp_path, **absent(tiny))
    assert torch.equal(drive(tiny, found, 3).result, drive(tiny, pipe, 3).result)


@pytest.mark.parametrize(
    ("scheduler", "stock"),
    [
        (PathlineScheduler(), "FlowMatchEulerDiscreteScheduler"),
        (PathlineScheduler(prediction_type="epsilon"), "DDIMScheduler"),
        (PathlineScheduler(use_flow_sigmas=True, flow_shift=5.0), "UniPCMultistepScheduler"),
    ],
)
def test_stock_scheduler_of_a_config_without_a_source(scheduler: Any, stock: str, tmp_path: Path) -> None:
    save_portable(small(scheduler), tmp_path)
    found = diffusers.DiffusionPipeline.from_pretrained(tmp_path).scheduler
    assert type(found).__name__ == stock
    for key in set(found.config) & {"prediction_type", "flow_shift", "shift", "use_flow_sigmas"}:
        assert found.config[key] == scheduler.config[key]
    assert load_portable(tmp_path).scheduler.config.pathline == scheduler.config.pathline


def test_stock_scheduler_of_ones_choice(tmp_path: Path) -> None:
    save_portable(small(), tmp_path, stock=diffusers.DPMSolverMultistepScheduler)
    found = diffusers.DiffusionPipeline.from_pretrained(tmp_path).scheduler
    assert type(found) is diffusers.DPMSolverMultistepScheduler
    with pytest.raises(ValueError, match=r"LCMScheduler.*DDIMScheduler"):
        save_portable(small(), tmp_path, stock=diffusers.LCMScheduler)


def test_options_reach_diffusers_and_the_hub_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_portable(small(), tmp_path / "a", safe_serialization=False)
    assert list((tmp_path / "a" / "unet").glob("*.bin"))
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "a")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    found = load_portable("someone/model", use_safetensors=False, torch_dtype=torch.float64)
    assert asked == [("someone/model", {"use_safetensors": False, "torch_dtype": torch.float64})]
    assert found.unet.dtype == torch.float64
    other = HeunScheduler.from_config(diffusers.DDPMScheduler().config)
    assert load_portable(tmp_path / "a", scheduler=other, use_safetensors=False).scheduler is other


def test_portable_refuses_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no scheduler of pathline.*its scheduler: DDPMScheduler"):
        save_portable(small(diffusers.DDPMScheduler()), tmp_path / "a")

    class Mine(PathlineScheduler):
        pass

    with pytest.raises(ValueError, match="Mine is not a class of pathline"):
        save_portable(small(Mine()), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        load_portable(tmp_path)
    small().save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="not saved by save_portable"):
        load_portable(tmp_path / "b")
    save_portable(small(), tmp_path / "c")
    beside = tmp_path / "c" / "scheduler" / "pathline_scheduler.json"
    beside.write_text(beside.read_text().replace('"UniPCScheduler"', '"UniPCSchedular"'))
    with pytest.raises(ValueError, match=r"did you mean .*'UniPCScheduler'"):
        load_portable(tmp_path / "c")


def test_a_failed_save_leaves_the_pipeline_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(pipe), "save_pretrained", full)
    with pytest.raises(OSError, match="disk full"):
        save_portable(pipe, tmp_path)
    assert type(pipe.scheduler) is UniPCScheduler
