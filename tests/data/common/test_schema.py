"""Records are checked whole, and what is wrong with one is a sentence that names the field."""

import json

import pytest

from data.common.schema import Count, Record, Sha256, read_lines, read_record


class Entry(Record):
    name: str
    tokens: Count
    score: float | None = None
    sha256: Sha256 | None = None


class Folder(Record):
    entries: dict[str, Entry]


def write(path, text):
    path.write_text(text)
    return path


def test_a_record_comes_back_as_it_was(tmp_path):
    path = write(
        tmp_path / "a.json", '{"entries": {"x": {"name": "n", "tokens": 3, "score": 1.5}}}'
    )
    assert read_record(Folder, path, "mend").entries["x"] == Entry(name="n", tokens=3, score=1.5)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"name": "n"}, "entries.x.tokens is missing"),
        ({"name": "n", "tokens": "3"}, "entries.x.tokens should be a valid integer, not '3'"),
        ({"name": "n", "tokens": -1}, "entries.x.tokens should be greater than or equal to 0"),
        ({"name": "n", "tokens": True}, "entries.x.tokens should be a valid integer, not True"),
        ({"name": "n", "tokens": 1, "size": 2}, "entries.x.size is not known"),
        ({"name": "n", "tokens": 1, "sha256": "ab"}, "entries.x.sha256"),
        ({"name": ["n"] * 1000, "tokens": 1}, "entries.x.name should be a valid string"),
        (None, "entries.x should be a valid dictionary"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, entry, complaint):
    path = write(tmp_path / "a.json", json.dumps({"entries": {"x": entry}}))
    with pytest.raises(ValueError, match=r"make it again$") as caught:
        read_record(Folder, path, "make it again")
    assert str(caught.value).startswith(f"{path}: {complaint}")
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"entries": NaN}',
        '{"entries": {}, "entries": {}}',
        "\ufeff{}",
        "[]",
    ],
)
def test_what_is_no_json_object_is_a_sentence(tmp_path, text):
    path = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=r"make it again$"):
        read_record(Folder, path, "make it again")


def test_lines_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"name": "n", "tokens": 1}\n\n{"name": "n"}\n')
    with pytest.raises(ValueError, match=r"line 3: tokens is missing; mend"):
        list(read_lines(Entry, path, "mend"))
