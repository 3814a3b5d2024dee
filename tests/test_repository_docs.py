"""The worked example of CONTRIBUTING.md does what it says."""

import re
import subprocess
import sys

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
