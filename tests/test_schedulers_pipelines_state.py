"""One scheduler in several pipelines, runs that alternate, copies in mid-run, and pipelines saved and loaded."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pathline.samplers.schedulers import PathlineScheduler, UniPCScheduler
from support.pipeline_runs import drive, guided
from support.pipelines import BATCH, TINY, Tiny, draw, quiet
from support.repository import ROOT

METHODS = ("dpm++", "unipc", "heun", "dpm++-sde")


def scheduler_of(tiny: Tiny, method: str = "unipc", **pathline: Any) -> PathlineScheduler:
    settings = {"method": method, "seed": 3, **pathline}
    scheduler: PathlineScheduler = PathlineScheduler.from_config(tiny.stock().config, pathline=settings)
    return scheduler


@pytest.mark.parametrize("method", METHODS)
def test_one_scheduler_in_two_pipelines(method: str) -> None:
    """As `from_pipe` shares it: each run is what it would be with a scheduler of its own."""
    tiny = TINY["sd"]
    shared = scheduler_of(tiny, method)
    text = tiny.make(shared)
    image = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(text, requires_safety_checker=False)
    assert image.scheduler is shared
    expected = drive(tiny, tiny.make(scheduler_of(tiny, method)), 5).result

    assert torch.equal(drive(tiny, text, 5).result, expected)
    start = {"image": draw(BATCH, 4, 8, 8, seed=9), "strength": 0.6, "num_inference_steps": 7}
    given = {key: value for key, value in tiny.arguments().items() if key not in ("height", "width")}
    first = quiet(image)(**given, **start, generator=torch.Generator().manual_seed(1)).images
    assert torch.equal(drive(tiny, text, 5).result, expected)
    assert torch.equal(image(**given, **start, generator=torch.Generator().manual_seed(1)).images, first)


def runner(scheduler: PathlineScheduler, network: Callable[..., Tensor], x: Tensor, steps: int) -> Iterator[Tensor]:
    """A pipeline's loop, one step each time it is asked."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = network(x.double(), t.double().reshape(1)).float()
        x = scheduler.step(output, t, x, return_dict=False)[0]
        yield x


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_that_take_turns(method: str) -> None:
    networks, alone = {}, {}
    for name in ("sd", "wan"):
        tiny = TINY[name]
        pipe = tiny.make(scheduler_of(tiny, method))
        log = drive(tiny, pipe, 6)
        networks[name], alone[name] = guided(tiny, pipe, log), log.result
    runs = {name: runner(scheduler_of(TINY[name], method), networks[name], TINY[name].start(), 6) for name in networks}
    ends: dict[str, Tensor] = {}
    with torch.no_grad():
        while runs:
            for name in list(runs):
                try:
                    ends[name] = next(runs[name])
                except StopIteration:
                    del runs[name]
    for name, end in ends.items():
        torch.testing.assert_close(end, alone[name], rtol=1e-5, atol=1e-5 * float(end.abs().max()))


@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize("method", METHODS)
def test_copy_in_mid_run_goes_on_alone(name: str, method: str) -> None:
    """A callback copies the scheduler; the copy finishes the run to the same latents, and disturbs nothing."""
    tiny = TINY[name]
    expected = drive(tiny, tiny.make(scheduler_of(tiny, method)), 5)
    pipe = tiny.make(scheduler_of(tiny, method))
    network = guided(tiny, pipe, expected)
    found: dict[str, Tensor] = {}

    def fork(_: Any, index: int, time: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            twin, x = copy.deepcopy(pipe.scheduler), values["latents"].clone()
            for t in pipe.scheduler.timesteps[2:]:
                x = twin.step(network(x.double(), t.double().reshape(1)).float(), t, x, return_dict=False)[0]
            found["end"] = x
        return {}

    quiet(pipe)
    result = pipe(**tiny.arguments(), **tiny.start_arguments(), num_inference_steps=5, callback_on_step_end=fork)[0]
    assert torch.equal(result, expected.result)
    torch.testing.assert_close(found["end"], result, rtol=1e-5, atol=1e-5 * float(result.abs().max()))


def test_latents_edited_by_a_callback_are_folded_in() -> None:
    """Shifting the latents of a linear problem shifts its result: here the pipeline goes on from the edit."""
    tiny = TINY["flux"]
    pipe = quiet(tiny.make(scheduler_of(tiny, "unipc")))

    def edit(_: Any, index: int, time: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(values["latents"])} if index == 3 else {}

    found = []
    for seed in (4, 5):
        given = {**tiny.arguments(), **tiny.start_arguments(seed), "num_inference_steps": 5}
        found.append(pipe(**given, callback_on_step_end=edit)[0])
    # the last step ends at its data prediction at zero latents, whatever came before
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_run_leaves_nothing_behind(method: str) -> None:
    tiny = TINY["sd3"]
    pipe = quiet(tiny.make(scheduler_of(tiny, method)))
    expected = drive(tiny, pipe, 5).result

    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    given = {**tiny.arguments(), **tiny.start_arguments(), "num_inference_steps": 7, "callback_on_step_end": stop}
    with pytest.raises(KeyboardInterrupt):
        pipe(**given)

    def interrupt(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = index == 2
        return {}

    pipe(**{**given, "callback_on_step_end": interrupt})
    assert torch.equal(drive(tiny, pipe, 5).result, expected)


# --- saved and loaded --------------------------------------------------------------------------------------------

LOAD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import pathline.samplers.schedulers
import diffusers, torch
from support.pipelines import TINY, absent
from support.pipeline_runs import drive
for name in sys.argv[3:]:
    tiny, folder = TINY[name], Path(sys.argv[1], name)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **absent(tiny))
    print(type(pipe.scheduler).__module__, type(pipe.scheduler).__name__, pipe.scheduler.config.pathline)
    torch.save(drive(tiny, pipe, 4).result, folder / "result.pt")
"""


@pytest.mark.slow
def test_saved_pipelines_run_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    names, expected = ("sd", "flux"), {}
    for name in names:
        tiny = TINY[name]
        scheduler = UniPCScheduler.from_config(tiny.stock().config, pathline={"options": {"order": 2}})
        pipe = tiny.make(scheduler)
        pipe.save_pretrained(tmp_path / name)
        expected[name] = drive(tiny, pipe, 4).result
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        assert index["scheduler"] == ["pathline.samplers.schedulers", "UniPCScheduler"]
    command = [sys.executable, "-c", LOAD, str(tmp_path), str(ROOT / "tests"), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["pathline.samplers.schedulers UniPCScheduler {'options': {'order': 2}}"] * 2
    for name in names:
        torch.testing.assert_close(torch.load(tmp_path / name / "result.pt"), expected[name], rtol=1e-5, atol=1e-5)
