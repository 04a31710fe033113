"""Sections of a report on learning from a text while it is scored: weights that move, and what was
read and is looked up.
"""

from typing import Any

from eval import figures
from eval.figures import Results
from eval.pages import Section
from eval.results import digits, spoken


def dynamics(results: Results, split: str) -> list[Section]:
    """Dynamic evaluation beside fixed weights, a section a run."""
    sections = []
    for name, result in results.items():
        found = result["dynamic"]
        rows = []
        for each in found["passes"]:
            weights = "fixed weights" if each["lr"] is None else f"learning rate {each['lr']:g}"
            rows.append((weights, digits(found["unit"], each["value"])))
        text = f"{found['optimizer']}, a step every {found['every']} segments, each pass from the "
        text += f"trained weights, decay {found['decay']:g} towards them."
        title = f"Dynamic evaluation of {name} ({split})"
        figure = figures.svg(figures.dynamic(result, name))
        header = ("weights", spoken(found["unit"]))
        sections.append(Section(title, text, header, tuple(rows), figure))
    return sections


def ways(results: Results, split: str) -> list[Section]:
    """Ways to learn from a text beside each other, a section a run."""
    sections = []
    for name, result in results.items():
        found = result["adapt"]
        unit = found["unit"]
        header = ("way", spoken(unit), "beside fixed", "tokens/s", "bytes kept", "settings")
        fixed = found["ways"][0]["value"]
        rows = [
            (
                "fixed weights" if way["method"] == "fixed" else way["method"],
                digits(unit, way["value"]),
                "" if way["method"] == "fixed" else f"{way['value'] / fixed - 1:+.2%}",
                f"{way['tokens_per_second']:,.0f}",
                f"{way['bytes']:,}",
                settings(way),
            )
            for way in found["ways"]
        ]
        text = (
            "Each way at the settings that were best on validation text, where fixed weights cost "
            f"{digits(unit, found['validation'])}. These numbers stand beside the plain one and "
            "never in its place."
        )
        title = f"Learning from the text of {name} ({split})"
        sections.append(Section(title, text, header, tuple(rows)))
    return sections


def settings(way: dict[str, Any]) -> str:
    """The settings of a way but its name."""
    shown = {n: value for n, value in way["settings"].items() if n != "method"}
    return ", ".join(f"{spoken(name)} {value}" for name, value in shown.items())
