"""WikiText-103's reader, on real text where there is some and on full-format miniatures."""

import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.corpora import wikitext
from data.documents import Official
from data.prepare import DataConfig, prepare
from data.shards import Shards
from tests.data.containers import PACK, parquet, tarred, zipped

Write = Callable[[dict[str, bytes]], Path]


def build(tmp_path: Path, corpus: str, source: Path | str | None, **options: Any) -> Shards:
    place = tmp_path / f"shards{len(list(tmp_path.iterdir()))}"
    given = None if source is None else str(source)
    return prepare(DataConfig(corpus, place, given, **options), workers=1)


TRAIN = (
    b" \n = One = \n \n a <unk> b \n = = Part = = \n \n c d \n \n"
    b" = Wins ; L = \n \n e f \n \n = Two = \n \n a b a \n \n"
)
VALID = b" \n = One = \n \n a b \n \n"
TEST = b" \n = Two = \n \n c <unk> \n \n"


@pytest.fixture
def small_wikitext(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A stand-in for the whole of WikiText-103."""
    texts = {"train": TRAIN, "valid": VALID, "test": TEST}
    words = {
        name: len(text.split()) + text.count(b"\n")
        for name, text in zip(("train", "validation", "test"), texts.values(), strict=True)
    }
    types = len(set(TRAIN.split())) + 1
    monkeypatch.setattr(wikitext, "OFFICIAL", Official(words, vocabulary=types))
    return texts


def test_wikitext_is_the_same_from_files_zip_parquet_and_hub(
    tmp_path: Path, write: Write, small_wikitext: dict[str, bytes]
) -> None:
    files = {f"wiki.{name}.tokens": text for name, text in small_wikitext.items()}
    source = write(files)
    with zipfile.ZipFile(tmp_path / "wikitext-103-v1.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(f"wikitext-103/{name}", text)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, text in small_wikitext.items():
        split = "validation" if name == "valid" else name
        rows = [line + "\n" if line.strip() else "" for line in text.decode().split("\n")[:-1]]
        pyarrow.parquet.write_table(
            pyarrow.table({"text": rows}), mirror / f"{split}-00000-of-00001.parquet"
        )
    sources = [source, tmp_path / "wikitext-103-v1.zip", mirror, f"hub:{mirror}"]
    built = [build(tmp_path, "wikitext", place) for place in sources]
    assert len({shards.hash for shards in built}) == 1
    shards = built[0]
    assert (shards.corpus, shards.unit) == ("wikitext-103", "word_perplexity")
    for split, text in zip(shards.splits, small_wikitext.values(), strict=True):
        found = shards.split(split)
        assert shards.vocabulary.decode(found.tokens) == text
        assert found.denominator_words == found.words == len(found.tokens)
    # The legend "Wins ; L" has text around it; the first article begins with the first line.
    assert shards.split("train").names == ["One", "Wins ; L", "Two"]


def test_word_perplexity_has_the_same_denominator_for_subwords(
    tmp_path: Path, write: Write, small_wikitext: dict[str, bytes]
) -> None:
    source = write({f"wiki.{name}.raw": text * 9 for name, text in small_wikitext.items()})
    shards = build(tmp_path, "wikitext", source, vocabulary="sentencepiece", vocabulary_size=281)
    assert shards.corpus == "wikitext-103-raw-part"
    assert shards.split("train").words == 9 * (len(TRAIN.split()) + TRAIN.count(b"\n"))
    assert shards.split("train").denominator_words is None
    assert shards.vocabulary.decode(shards.split("test").tokens) == TEST * 9


def test_real_wikitext_has_the_published_counts(
    tmp_path: Path, real_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "wikitext"
    source.mkdir()
    for name in ("wiki.valid.tokens.xz", "wiki.train.prefix.tokens.xz"):
        (source / name).symlink_to(real_text / name)
    shards = build(tmp_path, "wikitext", source)
    validation, train = shards.split("validation"), shards.split("train")
    assert len(validation.tokens) == validation.denominator_words == 217_646
    assert (len(validation.documents), len(train.documents)) == (60, 154)
    assert (len(train.tokens), train.denominator_words) == (548_410, None)
    # 34,064 types and <eos>.
    assert shards.vocabulary.size == 34_065
    assert shards.corpus == "wikitext-103-part"
    assert "train has 548,410 words, not 103,227,021" in capsys.readouterr().err
    text = lzma.decompress((real_text / "wiki.train.prefix.tokens.xz").read_bytes())
    assert shards.vocabulary.decode(train.tokens) == text


def test_a_folder_without_wikitext_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match=r"holds no WikiText.*wiki\.train\.tokens"):
        build(tmp_path, "wikitext", write({"a.txt": b"x"}))
    source = write({"wiki.valid.tokens": b" a \n", "wiki.valid.raw": b" a \n"})
    with pytest.raises(ValueError, match="several files for one split"):
        build(tmp_path, "wikitext", source)


ROWS = {
    split: text.decode().split("\n")[:-1]
    for split, text in {"train": TRAIN, "validation": VALID, "test": TEST}.items()
}
ENDINGS: dict[str, Callable[[str], str]] = {
    "as the hub has them": lambda line: line + "\n" if line.strip() else "",
    "with every line end": lambda line: line + "\n",
    "without line ends": lambda line: line,
    "stripped": str.strip,
    "stripped on the right": str.rstrip,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_row_is_a_line_whatever_its_end(
    tmp_path: Path, write: Write, small_wikitext: dict[str, bytes], ending: str
) -> None:
    source = write(
        {
            f"{split}-0.Parquet": parquet(text=list(map(ENDINGS[ending], rows)))
            for split, rows in ROWS.items()
        }
    )
    shards = build(tmp_path, "wikitext", source)
    assert shards.corpus == "wikitext-103"
    assert shards.split("train").names == ["One", "Wins ; L", "Two"]
    for split, text in zip(shards.splits, small_wikitext.values(), strict=True):
        assert shards.vocabulary.decode(shards.split(split).tokens) == text


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("how", ["folder", "zip", "tar"])
def test_wikitext_is_read_however_it_is_packed(
    tmp_path: Path, write: Write, small_wikitext: dict[str, bytes], packing: str, how: str
) -> None:
    files = {
        f"a/Wiki.{name}.TOKENS{packing}": PACK[packing](text)
        for name, text in small_wikitext.items()
    }
    files |= {
        "a/._wiki.train.tokens": b"\0",
        "__MACOSX/wiki.train.tokens": b"\0",
        "a/.ipynb_checkpoints/wiki.train.tokens": b"no",
    }
    if how == "zip":
        source = write({"w.ZIP": zipped(files)}) / "w.ZIP"
    elif how == "tar":
        source = write({f"w.tar{packing}": PACK[packing](tarred(files))}) / f"w.tar{packing}"
    else:
        source = write(files)
    shards = build(tmp_path, "wikitext", source)
    assert shards.corpus == "wikitext-103"
    assert shards.vocabulary.decode(shards.split("train").tokens) == TRAIN


AMBIGUOUS: dict[str, tuple[dict[str, bytes], str]] = {
    "two folders": (
        {"x/wiki.train.tokens": TRAIN, "y/wiki.train.tokens": VALID},
        r"x/wiki\.train\.tokens and .*y/wiki\.train\.tokens",
    ),
    "packed beside plain": (
        {"wiki.train.tokens": TRAIN, "wiki.train.tokens.gz": gzip.compress(VALID)},
        r"wiki\.train\.tokens and .*wiki\.train\.tokens\.gz",
    ),
    "capitals": (
        {"wiki.train.tokens": TRAIN, "WIKI.TRAIN.TOKENS": VALID},
        r"several files for one split",
    ),
    "raw beside tokens": (
        {"wiki.train.tokens": TRAIN, "wiki.valid.raw": VALID},
        r"wiki\.train\.tokens and .*wiki\.valid\.raw",
    ),
}


@pytest.mark.parametrize("how", ["folder", "zip", "tar"])
@pytest.mark.parametrize("case", AMBIGUOUS)
def test_two_files_for_one_split_are_refused_by_name(
    tmp_path: Path, write: Write, case: str, how: str
) -> None:
    files, message = AMBIGUOUS[case]
    if how == "zip":
        source = write({"w.zip": zipped(files)}) / "w.zip"
    elif how == "tar":
        source = write({"w.tar": tarred(files)}) / "w.tar"
    else:
        source = write(files)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, "wikitext", source)


BAD_TABLES: dict[str, tuple[bytes, str]] = {
    "null": (
        parquet(text=[" a \n", None]),
        r"row 1 \(from 0\) of train is null in column 'text'",
    ),
    "numbers": (parquet(text=[1, 2]), "has no text in column 'text'"),
    "another column": (parquet(txt=["a"]), "no column 'text'; its columns are txt"),
    "no parquet": (b"PAR1", "is not a parquet file"),
    "cut short": (parquet(text=["a"])[:-10], "is not a parquet file"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
@pytest.mark.parametrize("hub", [False, True])
def test_bad_rows_of_wikitext_are_refused(
    tmp_path: Path, write: Write, case: str, hub: bool
) -> None:
    data, message = BAD_TABLES[case]
    source = write({"train-0.parquet": data})
    if hub:
        message += "|has no text in column 'text'|has a file that cannot be read"
    with pytest.raises(ValueError, match=message) as refusal:
        build(tmp_path, "wikitext", f"hub:{source}" if hub else source)
    assert "\n" not in str(refusal.value)
