"""The commands of docs/training.md name real options with values that are accepted."""

import re
import shlex
from typing import Any

import pytest

from pathline.training import resolve_options
from pathline.training.cli import _from_command_line
from pathline.training.options import option_fields, option_type
from support.repository import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text()
COMMANDS = re.findall(r"^    pathline train (.*)$", PAGE, flags=re.MULTILINE)


def given(line: str) -> dict[str, Any]:
    words, values = iter(shlex.split(line)), {}
    for word in words:
        name = word.removeprefix("--")
        if name in ("config", "recipe"):
            next(words)
            continue
        kind = option_type(name)[0]
        values[name] = True if kind is bool else (next(words) if kind in (str, dict) else kind(next(words)))
    return _from_command_line(values)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line: str) -> None:
    resolve_options(given(line))


def test_every_option_named_on_the_page_exists() -> None:
    assert len(COMMANDS) >= 10
    known = {
        *option_fields(),
        "config",
        "recipe",
        "multi_gpu",
        "num_processes",
        "no_robust",
        "help",
        "std",
        "out",
        "step",
    }
    named = set(re.findall(r"--([a-z_]+)", PAGE))
    assert named <= known, sorted(named - known)
    expected = {"coupling", "ema", "reflow_from", "image_condition", "latents", "skip_scale", "direction_weight"}
    assert expected | {"antithetic", "time_density"} <= named
