"""From a data set to options that train on its kinetic-optimal path."""

from pathlib import Path

import pytest

from pathline.evals.kinetic_paths import main
from pathline.interpolants import KineticOptimalPath, path_by_name
from pathline.training import read_config, resolve_options


def test_options_for_the_digits_train_on_a_path_of_less_energy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kinetic.json"
    main(["--images", "300", "--draws", "64", "--pieces", "16", "--out", str(out)])
    energies = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[:3]]
    assert energies[0] < energies[1] < energies[2]
    options = resolve_options(read_config(out))
    path = path_by_name(str(options.path), **options.path_config)
    assert isinstance(path, KineticOptimalPath)
    assert path.pieces == 16
    assert path.energy == pytest.approx(energies[0], rel=0.02)
