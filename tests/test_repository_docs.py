"""The examples, commands and tables of CONTRIBUTING.md and README.md do what they say."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.repository import ROOT

# Error after 20 and 40 steps against the exact flow of Gaussian data.
MEASURE = """
import torch
from pathline.interpolants import Gaussian, LinearPath
from pathline.samplers import build_table, list_methods, make_nodes, run

assert "ab2" in list_methods()
path, data = LinearPath(), Gaussian(torch.full((4,), 2.0), variance=0.25)
x = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(2, 4)
exact = data.flow_map(x, (0.0, 1.0), (1.0, 0.0))
for steps in (20, 40):
    table = build_table("ab2", make_nodes(path, "time", steps))
    print(float((run(table, data.as_model(path), x) - exact).abs().max()))
"""


def test_method_of_the_guide_has_the_order_it_declares() -> None:
    # In a process of its own, so that the registry of this one keeps to the built-in methods.
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    command = [sys.executable, "-W", "error", "-c", example + MEASURE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    coarse, fine = map(float, done.stdout.split())
    assert 3.4 < coarse / fine < 5.5  # 4 = 2² for second order


README = (ROOT / "README.md").read_text()


def test_library_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    example = next(b for b in blocks if "build_table" in b)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["x"].shape == (256, 2)


def test_shell_lines_of_the_readme_name_real_options() -> None:
    lines = re.findall(r"^    pathline (\w+)([^#\n]*)", README, flags=re.MULTILINE)
    assert {command for command, _ in lines} >= {"train", "sweep", "report", "inspect", "bench"}
    for command, rest in lines:
        shown = subprocess.run(
            [sys.executable, "-m", "pathline.evals", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown, f"README: pathline {command} has no {option}"


def test_the_table_of_methods_is_up_to_date() -> None:
    from pathline.evals import method_table

    begin, end = "<!-- methods:begin -->", "<!-- methods:end -->"
    table = README[README.index(begin) + len(begin) : README.index(end)].strip()
    assert table == method_table("markdown").strip(), "run make docs"
