"""Reports: what a person opens must be complete, self-contained and right."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathline.evals.images import enlarge, from_uint8, load_images, save_samples, tile, to_uint8
from pathline.evals.plots import COLOURS, draw_metric, png_bytes, style_of
from pathline.evals.previews import load_preview, preview_path, save_preview
from pathline.evals.records import RecordFile, make_record
from pathline.evals.report import write_report
from pathline.evals.summary import Line, sections
from pathline.evals.tables import plain_text, rich_table

METHODS = {"ddim": 1.0, "heun": 0.5, "dpm++": 0.2}


def make_records(path: Path, samples: int = 20, label: str = "FD (pixels)") -> list[dict[str, Any]]:
    file = RecordFile(path)
    written = []
    for runner in ("sample", "scheduler"):
        for method, scale in METHODS.items():
            for nfe in (4, 8, 16):
                config = {
                    "runner": runner,
                    "method": method,
                    "options": {},
                    "grid": "logsnr",
                    "grid_options": {},
                    "nfe": nfe,
                    "seed": 0,
                    "source": {"name": "toy <b>source</b>", "id": "0"},
                    "samples": samples,
                    "features": {"label": label, "space": "raw"},
                }
                spent = nfe - 1 if method == "heun" else nfe
                value = scale / spent
                facts = {"nfe": float(spent), "truth": "truth-0"}
                metrics = {"fd": value, "fd_floor": 0.01, "fd_converged": 0.02, "rmse": value / 10, "truth_gap": 1e-3}
                entry = make_record(config, facts, metrics, {"seconds": 1.0, "versions": {"torch": "2.0"}})
                file.append(entry)
                written.append(entry)
                save_preview(path, entry["id"], torch.zeros(8, 1, 6, 6), 8)
    return written


class Collector(HTMLParser):
    """Every attribute that could make a browser fetch something, and all visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "data", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make_records(folder / "r.jsonl")
    write_report([folder / "r.jsonl"], folder / "out", "A <title>")
    return folder / "out"


def test_page_needs_no_network_and_no_other_file(report_folder: Path) -> None:
    text = (report_folder / "report.html").read_text()
    page = Collector()
    page.feed(text)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "script" not in page.tags
    assert "link" not in page.tags
    without_images = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", without_images)
    assert "A <title>" in "".join(page.text)
    assert "toy <b>source</b>" in "".join(page.text)


def test_page_shows_every_number_and_marks_the_best(report_folder: Path) -> None:
    text = (report_folder / "report.html").read_text()
    cells = re.findall(r"<td([^>]*)>([^<]*)</td>", text)
    values = [value for _, value in cells]
    assert "0.250" in values  # ddim at 4
    assert "(15) 0.0333" in values  # Heun spends one evaluation less than it is allowed
    marked = {value for attributes, value in cells if "best" in attributes}
    assert {"0.0500", "0.0250", "0.0125"} <= marked
    assert "0.250" not in marked


def test_everything_is_written_beside_the_page(report_folder: Path) -> None:
    names = {path.name for path in report_folder.iterdir()}
    assert names == {"report.html", "report.txt", "fd-vs-nfe.png", "rmse-vs-nfe.png", "samples.png"}
    for name in ("fd-vs-nfe.png", "samples.png"):
        with Image.open(report_folder / name) as image:
            assert image.width > 400
            assert len(set(image.convert("L").tobytes())) > 10
    text = (report_folder / "report.txt").read_text()
    assert "0.0125" in text
    assert "a perfect generator scores about 0.0100" in text


def test_unlike_protocols_get_their_own_tables(tmp_path: Path) -> None:
    make_records(tmp_path / "a.jsonl")
    make_records(tmp_path / "b.jsonl", samples=30)
    report = write_report([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out")
    assert len(report.sections) == 2
    html = report.page.read_text()
    assert html.count("<section>") == 2
    assert {p.name for p in report.files} >= {"fd-vs-nfe-1.png", "fd-vs-nfe-2.png"}
    assert "not comparable" in (tmp_path / "out" / "report.txt").read_text()


def test_damage_is_named_on_the_page_and_costs_nothing_else(tmp_path: Path) -> None:
    entries = make_records(tmp_path / "r.jsonl")
    with open(tmp_path / "r.jsonl", "a") as stream:
        stream.write("{broken\n")
    preview_path(tmp_path / "r.jsonl", entries[0]["id"]).write_bytes(b"no zip")
    assert load_preview([tmp_path / "r.jsonl"], entries[0]["id"], 4) is None
    report = write_report([tmp_path / "r.jsonl"], tmp_path / "out")
    assert len(report.warnings) == 1
    assert "line 19 is skipped" in report.warnings[0]
    assert "line 19 is skipped" in report.page.read_text()
    assert (report.folder / "samples.png").exists()
    assert "{broken" in (tmp_path / "r.jsonl").read_text(), "a report does not touch its records"


def test_only_inception_numbers_are_called_fid(tmp_path: Path) -> None:
    make_records(tmp_path / "a.jsonl")
    text = plain_text(sections(RecordFile(tmp_path / "a.jsonl").load().records))
    assert "FD (pixels)" in text
    assert "FID" not in text
    make_records(tmp_path / "b.jsonl", label="FID")
    assert "FID by evaluations" in plain_text(sections(RecordFile(tmp_path / "b.jsonl").load().records))


def test_axes_are_logarithmic_and_points_stand_at_counted_evaluations(tmp_path: Path) -> None:
    (section,) = sections(make_records(tmp_path / "r.jsonl"))
    figure = draw_metric(section, section.metrics[0])
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    drawn = {tuple(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) == 3}
    assert drawn == {(4, 8, 16), (3, 7, 15)}
    assert png_bytes(figure) == png_bytes(draw_metric(section, section.metrics[0]))


def test_samplers_are_told_apart_by_style(tmp_path: Path) -> None:
    (section,) = sections(make_records(tmp_path / "r.jsonl"))
    solid = [style_of(section, line) for line in section.lines if line.runner == "sample"]
    assert len({style["color"] for style in solid}) == len(METHODS)
    open_marker = style_of(section, Line("ddim", "logsnr", "scheduler"))
    assert open_marker["markerfacecolor"] == "none"
    assert open_marker["linestyle"] == "none"
    assert open_marker["color"] == COLOURS[0]


def test_tables_show_all_columns_on_a_narrow_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    (section,) = sections(make_records(tmp_path / "r.jsonl"))
    text = plain_text([section])
    assert all(len(line) < 200 for line in text.splitlines())
    assert "…" not in text
    console = Console(width=30, record=True, file=io.StringIO())
    console.print(rich_table(section, section.metrics[0]))
    assert "…" in console.export_text(), "the width of the console is what keeps tables whole"


def test_grey_levels_survive_a_round_trip_and_rounding_is_to_nearest() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (to_uint8(from_uint8(levels)) == levels).all()
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 1, 7)
    assert to_uint8(x).ravel().tolist() == [0, 0, 0, 128, 191, 255, 255]


def test_images_come_from_folders_and_arrays_and_errors_name_the_file(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 5, 4) * 2 - 1
    save_samples(tmp_path / "s.npz", images)
    folder = tmp_path / "pngs"
    folder.mkdir()
    for index, array in enumerate(to_uint8(images)):
        Image.fromarray(array).save(folder / f"{index}.png")
    loaded = load_images(tmp_path / "s.npz")
    assert torch.equal(loaded, load_images(folder))
    assert (loaded - images).abs().max() <= 1 / 255 + 1e-6
    (folder / "3.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"3\.png cannot be read"):
        load_images(folder)
    with pytest.raises(ValueError, match="neither a folder"):
        load_images(tmp_path / "absent")
    np.savez(tmp_path / "t.npz", other=1)
    with pytest.raises(ValueError, match="lacks 'arr_0'"):
        load_images(tmp_path / "t.npz")


def test_mosaics_keep_every_image_in_order() -> None:
    array = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
    sheet = tile(array, columns=3, pad=1)
    assert sheet.shape == (7, 10, 1)
    assert [sheet[1, 1, 0], sheet[1, 4, 0], sheet[1, 7, 0], sheet[4, 1, 0], sheet[4, 4, 0]] == [0, 1, 2, 3, 4]
    assert enlarge(array, 4).shape == (5, 4, 4, 1)
    assert enlarge(array, 2) is array
