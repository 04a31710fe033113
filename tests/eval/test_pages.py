"""Whatever a corpus, a document or a run is called, tables, pages and figures show it."""

import csv
import io
import os
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import pyplot as plt

from data.common.say import marked, plain
from data.split_files import DocumentDetails
from data.tokenizers.registry import ByteTokenizer
from eval import figures
from eval.figures import drawn, short
from eval.pages import Section, html, markdown, with_files
from eval.parts import COLUMNS, write_documents
from tests.texts import split_of
from tools import drawings

NAMES = [
    "caf\udce9.txt",
    "two\nlines",
    "tab\tand\rreturn",
    "\x00\x07\x1b[31mred",
    "$x_1$",
    "$\\frac{1}",
    "one $ sign",
    "\\$ before",
    "_hidden",
    "a^b_c\\d",
    "a|b",
    "<script>",
    "& amp;",
    "\u202eright to left",
    "\ufffe\uffff",
    "\ud800 lone",
    "书籍",
    "wide\u3000space",
    "x" * 400,
    "",
    " ",
    "nolegend_",
    "{braces} %s",
    "`code` *bold* [link](x)",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_one_line_that_every_file_can_hold(name: str) -> None:
    for shown in (plain(name), short(name), drawn(name), marked(name)):
        assert len(shown.splitlines()) <= 1 and "\x00" not in shown and "\x1b" not in shown
        shown.encode()
    assert len(short(name)) <= 80
    assert plain(plain(name)) == plain(name)


def test_bytes_of_a_name_that_are_not_utf8_are_told() -> None:
    assert plain(os.fsdecode(b"caf\xe9.txt")) == "caf\\xe9.txt"
    assert plain("café, 书籍") == "café, 书籍"
    assert plain("a\nb\tc") == "a\\nb\\tc"


def curves(name: str) -> plt.Figure:
    return figures.training_curves(
        {name: [{"step": 1, "loss": 2.0}], "other": [{"step": 2, "loss": 1.0}]}
    )


def test_a_curve_is_in_one_unit_with_validation_and_compressors_where_losses_are_in_bytes() -> None:
    steps = range(10, 1000, 10)
    log = [{"step": s, "loss": 2.0, "bits_per_byte": 1.5 + 400 / s**2} for s in steps]
    log += [{"step": s, "validation_bits_per_byte": 1.6} for s in (500, 1000)]
    axes = figures.training_curves({"training": log}, {"xz -9": 1.7}).axes[0]
    assert axes.get_ylabel() == "bits per byte"
    training, validation, xz = axes.get_lines()
    assert training.get_ydata()[-1] == pytest.approx(1.5, abs=0.01)
    assert validation.get_color() != training.get_color()
    assert list(xz.get_ydata()) == [1.7, 1.7]
    # The steep beginning is cut off, not what it is compared with.
    low, high = axes.get_ylim()
    assert 1.3 < low < 1.5 and 1.7 < high < 2
    for record in log:
        record.pop("bits_per_byte", None)
    axes = figures.training_curves({"training": log}, {"xz -9": 1.7}).axes[0]
    assert axes.get_ylabel().startswith("bits per token (training)")
    assert len(axes.get_lines()) == 2
    plt.close("all")


def swept(name: str) -> plt.Figure:
    point = {"segment": 8, "memory": 8, "compressed": 4, "value": 2.0, "unit": name}
    return figures.sweep({"split": name, "points": [point], "best": 0})


BUCKET = {"words": 2, "nats": 1.0}
FIGURES = {
    "curves": curves,
    "sweep": swept,
    "frequency": lambda name: figures.frequency(
        {name: {"frequency": [BUCKET | {"name": name, "perplexity": 3.0}]}}
    ),
    "position": lambda name: figures.position(
        {name: {"position": [{"to": 8, "bits_per_byte": 2.0}, {"to": 16, "bits_per_byte": 1.0}]}}
    ),
    "attention": lambda name: figures.attention({"attention": {"ages": {name: [[0.5]]}}}, name),
    "reconstruction": lambda name: figures.reconstruction({name: {"reconstruction": [0.1, 0.2]}}),
    "ablation": lambda name: figures.ablation(
        {
            name: {
                "ablation": {"intact": 1.0, "absent": 2.0},
                "position": [{"bits_per_byte": 1.0}],
            }
        }
    ),
    "dynamic": lambda name: figures.dynamic(
        {"dynamic": {"passes": [{"curve": [], "lr": None}, {"curve": [], "lr": 0.1}]}}, name
    ),
    "distance": lambda name: figures.distance(
        {name: {"distance": {"reach": {"memory": 8}, "buckets": [{"from": 8, "accuracy": 1.0}]}}}
    ),
    "regret": lambda name: figures.regret(
        {
            name: {
                "bayes": {
                    "reach": {"segment": 8},
                    "places": [
                        {"from": 0, "to": 8, "regret": 0.2, "segment": 0.0},
                        {"from": 8, "to": 16, "regret": 0.1, "segment": 0.3},
                    ],
                }
            }
        }
    ),
    "pruning": lambda name: drawings.pruning(
        {name: {"pruning": [{"zero": 0.5, "value": 2.0}], "alpha": 1.0, "unit": name}}
    ),
    "experiment": lambda name: drawings.experiment(
        [{"variant": name, "bits_per_byte": 2.0, "deviation": None}]
    ),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_every_figure_is_drawn_of_every_name(kind: str) -> None:
    for name in NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if kind == "dynamic":
                warnings.simplefilter("ignore")
            text = figures.svg(FIGURES[kind](name))
        ElementTree.fromstring(text.encode())


def test_signs_of_tex_stand_as_they_are_and_no_run_is_left_out() -> None:
    for name in ("$x_1$", "_hidden", "one $ sign"):
        text = figures.svg(curves(name))
        shown = [each for each in ElementTree.fromstring(text).itertext() if each.strip()]
        assert name in [each.strip() for each in shown]
        plt.close("all")


def test_a_png_is_drawn_too(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        path = tmp_path / f"{number}.png"
        figures.save(curves(name), path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_pages_hold_every_name(tmp_path: Path) -> None:
    for name in NAMES:
        section = Section(name, name, (name, "y"), ((name, name),), "<svg/>")
        page, text = html(name, [section]), markdown(name, [section])
        page.encode()
        assert len([line for line in text.splitlines() if line.startswith("| ")]) == 3
        assert "<script>" not in page.replace("<style>", "") and "<script>" not in text
        assert text.isprintable() or "\n" in text
    assert "\\$x\\_1\\$" in markdown("$x_1$", [])


def test_figures_whose_titles_differ_in_signs_alone_have_files_of_their_own() -> None:
    titles = ["Attention of a_b", "Attention of a-b", "Attention of a b", "书", "籍", "x" * 400]
    files = [file for file, _ in with_files([Section(title) for title in titles])]
    assert len(set(files)) == len(titles)
    assert all(len(file.encode()) < 100 and file.isascii() for file in files)


def test_the_list_of_documents_holds_every_name(tmp_path: Path) -> None:
    split = split_of(ByteTokenizer(), [b"a text\n"] * len(NAMES))
    split.__dict__["details"] = [DocumentDetails(name=name, title=name) for name in NAMES]
    write_documents(tmp_path / "d.csv", split, np.ones(len(NAMES)))
    text = (tmp_path / "d.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == COLUMNS
    assert [row["name"] for row in rows] == [plain(name) for name in NAMES]
    assert len(text.splitlines()) == len(NAMES) + 1


def test_a_word_beyond_all_numbers_stops_no_table(tmp_path: Path) -> None:
    split = split_of(ByteTokenizer(), [b"a" * 5])
    split.__dict__["details"] = [DocumentDetails(name="a")]
    write_documents(tmp_path / "d.csv", split, np.array([5000.0]))
    assert (tmp_path / "d.csv").read_text().splitlines()[1].endswith(",")
