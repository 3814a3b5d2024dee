"""The pages on guidance, editing and likelihood run as they stand."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest

from support.pipelines import TINY, quiet
from support.repository import ROOT

PAGES = ("guidance", "editing", "likelihood")


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TINY["sd"]
    pipe = quiet(tiny.make(tiny.stock()))
    whole = type(pipe).__call__

    def called(self: Any, prompt: str, **given: Any) -> Any:
        return whole(self, **{**tiny.arguments(), **given, "num_inference_steps": 3})

    monkeypatch.setattr(type(pipe), "__call__", called)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *a, **k: pipe)
    text = (ROOT / "docs" / f"{page}.md").read_text()
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_in_its_tables_exists(page: str) -> None:
    import pathline.samplers as samplers
    from pathline.samplers import editing, guidance, likelihood, smc

    text = (ROOT / "docs" / f"{page}.md").read_text()
    for name in re.findall(r"`([A-Za-z_]{4,})\(", text):
        places = (samplers, guidance, editing, likelihood, smc)
        known = any(hasattr(place, name) for place in places)
        known |= hasattr(likelihood.LogDensity, name) or name in ("statistics", "dequantised")
        assert known or name in ("Inversion",), name
