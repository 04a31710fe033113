"""One report as Markdown and as a web page that needs no other file."""

from dataclasses import dataclass
from html import escape

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, a table and a figure, each of which may be absent."""

    title: str
    text: str = ""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    """SVG."""

    @property
    def file(self) -> str:
        """Name of the figure's file beside the Markdown."""
        kept = "".join(c if c.isalnum() else "-" for c in self.title.lower())
        return f"{kept}.svg"


def markdown(title: str, sections: list[Section]) -> str:
    """The report as Markdown that shows figures from files beside it."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        if section.rows:
            rule = ("---", *("---:",) * (len(section.header) - 1))
            table = [section.header, rule, *section.rows]
            cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in cells))
        if section.figure:
            parts.append(f"![{section.title}]({section.file})")
    return "\n\n".join(parts) + "\n"


def html(title: str, sections: list[Section]) -> str:
    """The report as one page with its figures inside."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{escape(section.text)}</p>")
        if section.rows:
            head = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
            body = [
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
                for row in section.rows
            ]
            parts.append("\n".join([f"<table>\n<tr>{head}</tr>", *body, "</table>"]))
        parts.append(section.figure)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        + "\n".join(part for part in parts if part)
        + "\n</html>\n"
    )
