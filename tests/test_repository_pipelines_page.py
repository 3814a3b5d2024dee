"""docs/pipelines.md: its snippets run, its tables are complete, and what they name exists."""

import copy
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pathline.samplers import list_methods
from pathline.samplers import schedulers as module
from pathline.samplers.schedulers import PathlineScheduler
from support.pipelines import TINY, Tiny, absent, draw, quiet
from support.repository import ROOT

PAGE = (ROOT / "docs" / "pipelines.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
SNIPPETS = {title: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for title, text in SECTIONS.items()}
HUB = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3",
    "black-forest-labs/FLUX.1-dev": "flux",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
}
CLASSES = {
    name: cls for name, cls in vars(module).items() if isinstance(cls, type) and issubclass(cls, PathlineScheduler)
}
# stock schedulers of the multistep kind hand tensors to numpy in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def rows(title: str) -> list[list[str]]:
    """Cells of the section's last table."""
    lines = [line for line in SECTIONS[title].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


# --- the snippets ------------------------------------------------------------------------------------------------


def texts(count: int, *more: Any) -> Any:
    """An `encode_prompt` that needs no text encoder."""

    def encode_prompt(self: Any, *_: Any, **__: Any) -> Any:
        network = getattr(self, "unet", None) or self.transformer
        found = [draw(1, 5, 8, seed=1), draw(1, 5, 8, seed=2), draw(1, 8, seed=3), draw(1, 8, seed=4)][:count]
        return tuple(item.to(network.dtype) for item in (*found, *more))

    return encode_prompt


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny pipelines under the hub names of the page, which take prompts; folders load as they are."""
    real = diffusers.DiffusionPipeline.from_pretrained
    folders: list[Tiny] = []

    def from_pretrained(name: Any, **options: Any) -> Any:
        if str(name) not in HUB:
            return quiet(real(name, **options, **absent(folders[-1])))
        tiny = TINY[HUB[str(name)]]
        folders.append(tiny)
        with torch.no_grad():
            pipe = quiet(tiny.make(tiny.stock()))
        if hasattr(pipe, "default_sample_size"):
            pipe.default_sample_size = 8
        dtype = options.pop("torch_dtype", None)
        assert not options
        return pipe if dtype is None else half(pipe, dtype)

    for cls in ("", "Img2Img", "Inpaint"):
        monkeypatch.setattr(getattr(diffusers, f"StableDiffusion{cls}Pipeline"), "encode_prompt", texts(2))
    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "encode_prompt", texts(4))
    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "encode_prompt", texts(4))
    flux = texts(4, torch.zeros(5, 3))
    monkeypatch.setattr(diffusers.FluxPipeline, "encode_prompt", lambda self, *_, **__: flux(self)[::2])
    monkeypatch.setattr(diffusers.WanPipeline, "encode_prompt", texts(2))
    run = diffusers.WanPipeline.__call__
    sizes = {"height": 32, "width": 32, "num_frames": 5}
    monkeypatch.setattr(diffusers.WanPipeline, "__call__", lambda self, *a, **k: run(self, *a, **{**sizes, **k}))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
    monkeypatch.chdir(tmp_path)


def half(pipe: Any, dtype: torch.dtype) -> Any:
    """Copies in another precision: the tests share the networks."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    pipe.register_modules(**{name: copy.deepcopy(part).to(dtype) for name, part in parts.items()})
    return pipe


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("title", [title for title, found in SNIPPETS.items() if found])
def test_snippets_run(title: str) -> None:
    space: dict[str, Any] = {}
    for snippet in SNIPPETS[title]:
        exec(snippet, space)
    assert isinstance(space["pipe"].scheduler if "pipe" in space else space["scheduler"], PathlineScheduler)
    if "image" in space:
        assert space["image"].size == (16, 16)
        assert np.asarray(space["image"]).std() > 0


# --- the tables --------------------------------------------------------------------------------------------------


def test_every_scheduler_of_ours_is_described() -> None:
    listed = {names(cells[0])[0]: cells for cells in rows("Which scheduler for what")}
    assert set(listed) == set(CLASSES)
    for name, (_, method, calls, good_for) in listed.items():
        scheduler = CLASSES[name]()
        scheduler.set_timesteps(10)
        assert names(method)[0] == scheduler.table.method
        assert int(calls) == len(scheduler.timesteps)
        assert good_for


def test_every_scheduler_of_diffusers_is_listed() -> None:
    listed = [names(cells[0])[0] for cells in rows("From a diffusers class to pathline")]
    exported = {
        name for name in dir(diffusers) if name.endswith("Scheduler") and isinstance(getattr(diffusers, name), type)
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == exported


def test_what_the_table_names_exists() -> None:
    for _, ours, remark in rows("From a diffusers class to pathline"):
        for name in names(ours) + names(remark):
            if method := re.search(r'method="([^"]*)"', name):
                assert method[1] in list_methods()
            elif name.endswith("Scheduler"):
                assert name in CLASSES
    text = " ".join(SECTIONS.values())
    for name in re.findall(r"`(\w+Pipeline\w*)`", text):
        assert hasattr(diffusers, name), name
    settings = re.findall(r'"(\w+)"', re.search(r"`pathline=\{(.*?)\}`", PAGE, flags=re.DOTALL)[1])  # type: ignore[index]
    for key in settings:
        PathlineScheduler(pathline={key: {"method": "ddim", "grid": "time"}.get(key)})


def test_links_to_the_agreement_page_have_their_anchors() -> None:
    agreement = (ROOT / "docs" / "diffusers.md").read_text()
    anchors = set(re.findall(r'<a id="([\w-]+)">', agreement))
    assert set(re.findall(r"diffusers\.md#([\w-]+)", PAGE)) <= anchors
    assert "docs/pipelines.md" in (ROOT / "README.md").read_text()


def test_a_row_that_says_the_same_was_measured() -> None:
    """The agreement page has every class whose row begins so."""
    agreement = (ROOT / "docs" / "diffusers.md").read_text()
    measured = set(re.findall(r"^\| (\w+Scheduler) \|.*\| the same \|$", agreement, flags=re.MULTILINE))
    claimed = {
        names(stock)[0]
        for stock, _, remark in rows("From a diffusers class to pathline")
        if remark.startswith("The same")
    }
    assert claimed <= measured
