"""One report as Markdown and as a web page of its own."""

import html as markup
import re
from collections.abc import Iterator
from dataclasses import dataclass

from data.common.say import marked, plain

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }
pre { white-space: pre-wrap; }
"""


def escape(text: str) -> str:
    """A text as it stands in a page, whatever it holds."""
    return markup.escape(plain(text))


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, lines as they are, a table and a figure, each of which may be
    absent.
    """

    title: str
    text: str = ""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    """SVG."""
    code: str = ""
    """Lines that are shown as they are."""


def with_files(sections: list[Section]) -> Iterator[tuple[str, Section]]:
    """Each section with the name of its figure's file beside the Markdown: numbered, because names
    may differ in nothing that a file's name can hold.
    """
    for number, section in enumerate(sections, 1):
        words = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        yield f"figure-{number:02}-{words[:60].rstrip('-')}.svg", section


def markdown(title: str, sections: list[Section]) -> str:
    """The report as Markdown that shows figures from files beside it."""
    parts = [f"# {marked(title)}"]
    for file, section in with_files(sections):
        parts.append(f"## {marked(section.title)}")
        if section.text:
            parts.append(marked(section.text))
        if section.code:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", section.code)), default=0))
            parts.append(f"{fence}\n{in_plain_lines(section.code)}\n{fence}")
        if section.rows:
            rule = ("---", *("---:",) * (len(section.header) - 1))
            head, *rows = [list(map(marked, row)) for row in (section.header, *section.rows)]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows)))
        if section.figure:
            parts.append(f"![{marked(section.title)}]({file})")
    return "\n\n".join(parts) + "\n"


def in_plain_lines(text: str) -> str:
    """Lines of a text, each without what a page or terminal cannot show."""
    return "\n".join(map(plain, text.splitlines()))


def in_lines(section: Section) -> str:
    """A section for a terminal: one block for each row, an entry a line."""
    _, *columns = section.header
    width = max(map(len, columns), default=0)
    lines = [section.title]
    for name, *cells in section.rows:
        lines.append(f"  {name}")
        entries = zip(columns, cells, strict=True)
        lines += [f"    {column:<{width}}  {cell}" for column, cell in entries if cell]
    return "\n".join(lines)


def html(title: str, sections: list[Section]) -> str:
    """The report as one page with its figures inside."""
    parts = [f"<h1>{escape(title)}</h1>"]
    links = [
        f'<li><a href="#part-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections, 1)
    ]
    if len(sections) > 1:
        parts.append("\n".join(["<nav>\n<ol>", *links, "</ol>\n</nav>"]))
    for number, section in enumerate(sections, 1):
        parts.append(f'<a id="part-{number}"></a>')
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{escape(section.text)}</p>")
        if section.code:
            parts.append(f"<pre>{markup.escape(in_plain_lines(section.code))}</pre>")
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
