"""What every test gets: one thread, no network, and torch's global state as it was when the test began."""

import os
import sys

# Before anything imports torch, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def torch_settings() -> tuple[torch.dtype, bool, bool]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.get_default_dtype(), torch.is_grad_enabled(), deterministic


@pytest.fixture(autouse=True)
def torch_globals() -> Iterator[None]:
    """Seed torch alike before every test, and fail the test that leaves a global setting changed.

    The seed makes a test's result independent of the tests that ran before it in the same worker. Code under
    test still must not depend on it: what is random takes a seed or a generator.
    """
    before = torch_settings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    after = torch_settings()
    torch.set_default_dtype(before[0])
    torch.set_grad_enabled(before[1])
    torch.use_deterministic_algorithms(before[2])
    assert after == before, f"the test changed torch's (dtype, grad, deterministic) from {before} to {after}"


@pytest.fixture
def pathline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process, inside a folder of its own: (code, stdout, stderr)."""
    from pathline.evals import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pathline", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
