"""Pages and books give the words that a browser shows, whole, each in its place."""

import io

import pytest

from data.corpora.pages import epub_text, html_text
from tests.data.containers import epub, zipped

XHTML = '<html xmlns="http://www.w3.org/1999/xhtml"><body>{}</body></html>'
PAGES = {
    # Words stay whole, and blocks apart.
    '<p><span class="dropcap">O</span>nce upon a time</p>': "Once upon a time",
    "<p>foot<span>note</span>s, <i>inter</i><b>national</b>": "footnotes, international",
    '<p>He said <span>"no</span>".</p><div>x<div>y</div></div>': 'He said "no".\n\nx\ny',
    "<dl><dt>term</dt><dd>said</dd></dl>": "term\nsaid",
    "<details><summary>s</summary>d</details><center>c</center>x": "s\nd\nc\nx",
    "a<section>b</section><section>c</section>": "a\nb\nc",
    '<div style="display:flex">a</div>b<i style="display: none">no</i>': "a\nb",
    "<q>He <b>is</b> here</q> and <q>x</q>": '"He is here" and "x"',
    "<ul><li>a<li>b</ul><ol><li>c</ol>": "  * a\n  * b\n 1. c",
    "<p>verse<br>line two": "verse\nline two",
    "<p>a&#160;b \u2003 c\n d": "a b c d",
    # Preformatted text is as it is, whatever elements it has.
    "<pre><code>def f():\n    return 1\n</code></pre>": "def f():\n    return 1",
    "<pre>\n  a\n  <b>b\n  c</b> d</pre>x": "  a\n  b\n  c d\n\nx",
    '<div style="white-space: pre-wrap">a\n  b<i>c\n d</i></div>': "a\n  bc\n d",
    # Entities are decoded once.
    "<p>write &amp;lt; for &lt; &amp; so": "write &lt; for < & so",
    "<pre>&amp;amp;</pre>": "&amp;",
    # Whatever follows the end of a page.
    "<html><body><p>one</p></body></html>\n<p>two": "one\n\ntwo",
    "<html><body>one</body></html ><html><head><title>t</title></head><body><p>two</BODY>": (
        "one\n\ntwo"
    ),
    # Of control characters only their place is kept.
    "<p>a\x01b &amp; c\x0cd&#1;e": "a\ufffdb & c d\ufffde",
    "<ul.<li>a": "a",
    "<!-- no --><?php no ?><p>a<!-- no -->b<script>no</script><template>no</template>": "ab",
    "": "",
    "<p> ": "",
    # By the rules of XML.
    XHTML.format("<p>a<![CDATA[inside <b>]]>c</p><title/><p>d</p>"): "ainside <b>c\n\nd",
    '<?xml version="1.0" encoding="latin-1"?><!DOCTYPE html [<!ENTITY by "by Mü">]>'
    + XHTML.format("<p>&by; &amp;amp;<br/>x</p>"): "by Mü &amp;\nx",
    # And where they are broken.
    XHTML.format("<p>a&nbsp;b<br>c</p>"): "a b\nc",
}


@pytest.mark.parametrize("page", PAGES)
def test_pages(page: str) -> None:
    text = html_text(page.encode(), "a.html")
    assert text == (f"{PAGES[page]}\n" if PAGES[page] else "")


def test_no_other_file_is_read(tmp_path) -> None:
    (tmp_path / "secret").write_text("secret")
    page = f'<!DOCTYPE html [<!ENTITY a SYSTEM "{tmp_path / "secret"}">]>' + XHTML.format("b&a;c")
    assert "secret" not in html_text(page.encode(), "a.html").replace(str(tmp_path), "")


def chapters(*items: str, spine: str, **more: bytes) -> list[str]:
    """Texts of a book with these items in its list, as attributes of each."""
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        + "".join(f"<item {item}/>" for item in items)
        + "</manifest><spine>"
        + "".join(f'<itemref idref="{name}"/>' for name in spine)
        + "</spine></package>"
    )
    files = epub() | {"OPS/p.opf": package.encode()}
    files |= {f"OPS/{name}": data for name, data in more.items()}
    return list(epub_text(io.BytesIO(zipped(files)), "a.epub"))


A = 'id="a" href="t/a.xhtml" media-type="application/xhtml+xml"'


def test_each_chapter_of_a_book_is_read() -> None:
    """Older kinds too; pictures are passed over, and what stands for another is read."""
    found = chapters(
        A,
        'id="o" href="o" media-type="text/x-oeb1-document"',
        'id="d" href="d" media-type="application/x-dtbook+xml"',
        'id="p" href="p.png" media-type="image/png"',
        'id="f" href="f" media-type="application/x-other" fallback="g"',
        'id="g" href="g" media-type="text/html"',
        spine="opadf",
        o=b"<p>old",
        d=b"<dtbook><level1><p>spoken</p></level1></dtbook>",
        g=b"<p>instead",
    )
    assert found == ["old\n\n", "A\n\none\n\n", "spoken\n\n", "instead\n\n"]


@pytest.mark.bad_input("data.prepare")
def test_a_book_without_a_chapter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.epub is not a whole EPUB book: it lacks 'b' of its"):
        chapters(A, spine="ab")
    other = 'id="b" href="b" media-type="application/pdf" fallback="b"'
    with pytest.raises(ValueError, match=r"has a chapter of type 'application/pdf': convert it"):
        chapters(A, other, spine="ab")
