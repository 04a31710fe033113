"""Sweeps choose on validation text; reports join runs and need no other file."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data.common.files import write_json
from eval import adapt, breakdown, dynamic, figures, report, score
from eval.adapt_results import Adapted
from eval.eval_config import AdaptConfig, BreakdownConfig, DynamicConfig, ProgramConfig, SweepConfig
from eval.pages import Section, html, markdown
from eval.results import Breakdown, Distance, read_result
from eval.score_record import Score
from eval.tables import sweeps
from lm.inference.inference_config import Lengths


def test_a_sweep_chooses_on_validation_and_reports_on_test(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "score.json"
    lists = SweepConfig(memory=(8, 16), compressed=(0, 4, 12))
    score.main(trained_run, ProgramConfig(lanes=2, sweep=lists), json=file, compare=False)
    result = read_result(file)
    assert (tmp_path / "score.svg").read_text().startswith("<svg")
    swept = result["sweep"]
    assert [(p["memory"], p["compressed"]) for p in swept["points"]] == [
        (m, c) for m in (8, 16) for c in (0, 4, 12)
    ]
    assert {p["segment"] for p in swept["points"]} == {8}
    best = min(swept["points"], key=lambda p: p["value"])
    assert swept["points"][swept["best"]] == best
    shown = capsys.readouterr().out
    assert "<- chosen" in shown
    protocol = result["protocol"]
    assert protocol["split"] == "test"
    assert (protocol["memory"], protocol["compressed"]) == (best["memory"], best["compressed"])
    alone = ProgramConfig(lanes=2, memory=best["memory"], compressed=best["compressed"])
    for split, value in (("test", result["value"]), ("validation", best["value"])):
        score.main(trained_run, alone, split=split, json=file, compare=False)
        assert read_result(file)["value"] == value
    with pytest.raises(ValueError, match=r"--memory or --sweep\.memory"):
        lists.points(Lengths(memory=8))
    with pytest.raises(ValueError, match="keep has no effect on a sweep"):
        score.main(trained_run, ProgramConfig(sweep=lists), keep=tmp_path)


def test_a_sweep_over_sinks(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of them are not named in a protocol, as in files of models that cannot have any."""
    file = tmp_path / "score.json"
    lists = SweepConfig(sinks=(0, 2, 4))
    score.main(trained_run, ProgramConfig(lanes=2, sweep=lists), json=file, compare=False)
    swept = read_result(file)["sweep"]
    assert [point.get("sinks") for point in swept["points"]] == [None, 2, 4]
    assert len({point["value"] for point in swept["points"]}) == 3
    (section,) = sweeps({"run": read_result(file)})
    assert section.header[:4] == ("segment", "memory", "compressed", "sinks")
    assert [row[3] for row in section.rows] == ["0", "2", "4"]
    assert "sinks" in capsys.readouterr().out
    assert (tmp_path / "score.svg").read_text().startswith("<svg")
    score.main(trained_run, ProgramConfig(lanes=2, sinks=4), json=file, compare=False)
    assert read_result(file)["protocol"]["sinks"] == 4
    assert "sinks 4" in capsys.readouterr().out


WAYS = AdaptConfig(
    lanes=2,
    methods=("cache", "dynamic"),
    capacity=(20,),
    sharpness=(4.0,),
    share=(0.1,),
    lrs=(1e-3,),
    limit=4,
)


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture(scope="module")
def two_runs(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with every kind of result; the second differs in its sweep."""
    place = tmp_path_factory.mktemp("runs")
    folders = [place / "first", place / "second"]
    for folder in folders:
        shutil.copytree(trained_run, folder)
    for folder, lists in zip(folders, (SweepConfig(), SweepConfig(memory=(8,))), strict=True):
        score.main(folder, ProgramConfig(lanes=2, sweep=lists), json=folder / "score-test.json")
        breakdown.main(
            folder, BreakdownConfig(lanes=2, edges=(100,), ablations=("intact", "exchanged"))
        )
        dynamic.main(folder, DynamicConfig(lanes=2, limit=6, lrs=(0.0, 1e-3)), split="validation")
        adapt.main(folder, WAYS)
        add_distance(folder)
    return folders


def add_distance(folder: Path) -> None:
    """As eval.distance writes it."""
    result = read_result(folder / "breakdown-validation.json", Breakdown)
    rows = [
        {"from": first, "to": 2 * first, "answers": 2, "tokens": 9, "accuracy": share, "whole": 0.0}
        for first, share in ((16, 1.0), (32, 0.04))
    ]
    for key in Breakdown.model_fields.keys() - Score.model_fields.keys():
        result.pop(key, None)
    result["distance"] = {"reach": {"segment": 8, "memory": 16}, "buckets": rows}
    write_json(folder / "distance-test.json", result)


def test_a_report_joins_runs_in_markdown_and_one_page(two_runs: list[Path], tmp_path: Path) -> None:
    first, second = two_runs
    out = tmp_path / "report"
    report.main(first, [second], out=out)
    text = (out / "report.md").read_text()
    value = json.loads((first / "score-test.json").read_text())["value"]
    assert text.count(f"{value:.4f}") >= 2
    for title in (
        "Scores",
        "Training",
        "Lengths of second",
        "Words by frequency (validation)",
        "Place in the document (validation)",
        "What reading on is worth (validation)",
        "Attention of first (validation)",
        "Attention of second (validation)",
        "Reconstruction by layer (validation)",
        "Compressed memory changed (validation)",
        "Dynamic evaluation of first (validation)",
        "Learning from the text of first (test)",
        "Learning from the text of second (test)",
        "Recall (test)",
    ):
        assert f"## {title}\n" in text
    shown = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if "![" in line]
    assert len(shown) == 12
    for name in shown:
        assert (out / name).read_text().startswith("<svg")
    gains = read_result(first / "breakdown-validation.json", Breakdown)["context"]
    assert f"{gains[-1]['gain']:+.4f}" in text and len(gains) > 1
    for way in read_result(first / "adapt-test.json", Adapted)["adapt"]["ways"][1:]:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {way['method']} |")][:1]
        assert f"{way['value']:.4f}" in row and f"{way['bytes']:,}" in row
    page = Page((out / "report.html").read_text())
    assert page.tags.count("svg") == 12 and page.tags.count("h2") == 19
    # Nothing is fetched: links inside figures point into the page.
    assert all(link.startswith("#") for link in page.links)
    before = (out / "report.html").read_bytes()
    report.main(first, [second], out=out)
    assert (out / "report.html").read_bytes() == before


def test_runs_that_cannot_be_compared(two_runs: list[Path], tmp_path: Path, capsys) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in two_runs)
    score.main(second, ProgramConfig(lanes=4), json=second / "score-test.json", compare=False)
    capsys.readouterr()
    with pytest.raises(ValueError, match="lanes 2 and 4"):
        report.main(first, [second])
    report.main(first, [second], anyway=True)
    assert capsys.readouterr().out.count("bits per byte") >= 2
    with pytest.raises(ValueError, match="different names"):
        report.main(first, [first])
    (first / "breakdown-validation.json").write_text("{")
    with pytest.raises(ValueError, match=r"breakdown-validation\.json is not valid JSON"):
        report.main(first, [second], out=tmp_path / "r", anyway=True)


def test_a_page_says_what_it_is_made_of(two_runs: list[Path], tmp_path: Path) -> None:
    first, second = two_runs
    (first / "samples").mkdir(exist_ok=True)
    (first / "samples" / "step-99999999.txt").write_text("Once <b> upon\n``` a time\n")
    report.main(first, [second], out=tmp_path / "page", anyway=True)
    (first / "samples" / "step-99999999.txt").unlink()
    text = (tmp_path / "page/report.md").read_text()
    page = (tmp_path / "page/report.html").read_text()
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert page.count('<li><a href="#part-') == len(titles) == page.count('<a id="part-')
    assert titles[-1] == "Command" and f"--beside '[{second}]'" in text
    assert "--anyway true" in text and f"longrange report --run {first}" in text
    assert text.count("feedforward: 32") == 2 and page.count("feedforward: 32") == 2
    assert "````\nOnce <b> upon\n``` a time\n````" in text and "Once &lt;b&gt; upon" in page
    assert "svg { width: 100%" in page


def test_attention_has_ages_and_reaches_are_named_beside_the_axes(two_runs: list[Path]) -> None:
    result = read_result(two_runs[0] / "breakdown-validation.json", Breakdown)
    spans = result["attention"]["spans"]
    assert spans == {"segment": [0, 8], "memory": [8, 16], "compressed": [16, 24]}
    (axes,) = figures.attention(result, "a").axes
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks[0] == "24" and "16" in ticks and "8" in ticks and axes.get_xlabel() == "tokens ago"
    figure = figures.distance({"a": read_result(two_runs[0] / "distance-test.json", Distance)})
    figure.canvas.draw()
    legend = figure.axes[0].get_legend()
    assert [each.get_text() for each in legend.get_texts()] == [
        "a",
        "reach: segment (8)",
        "reach: memory (16)",
    ]
    assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1


def test_results_of_earlier_versions_are_read(two_runs: list[Path], tmp_path: Path) -> None:
    """Answers had their tokens under another name."""
    result = json.loads((two_runs[0] / "distance-test.json").read_text())
    for row in result["distance"]["buckets"]:
        row["bytes"] = row.pop("tokens")
    write_json(tmp_path / "old.json", result)
    assert len(read_result(tmp_path / "old.json", Distance)["distance"]["buckets"]) == 2


def test_pages_escape_what_would_be_markup() -> None:
    section = Section("<Title>", "a & b", ("x", "y"), (("a|b", "<c>"),))
    assert "| a\\|b | \\<c\\> |" in markdown("T", [section])
    page = html("T", [section])
    assert "<h2>&lt;Title&gt;</h2>" in page and "<td>&lt;c&gt;</td>" in page and "a &amp; b" in page
