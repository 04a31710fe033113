"""Compression: bit-exact, as small as the score says, and strict about model and damage."""

import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval import coding

pytest.importorskip("constriction", reason="the extra `eval` is not installed")

from data.shards import Shards
from data.tokenizers.registry import ByteTokenizer
from eval import compress
from eval.coding import SIZE, pack, unpack
from eval.eval_config import CodingConfig
from lm.inference.inference_config import LookupConfig, ScoringConfig
from lm.inference.loading import LoadedRun, load_run
from lm.inference.predictor import ModelPredictor
from lm.scoring import score
from tests.texts import split_of, vocabularies

FILE = Path("text")


def packed_of(loaded: LoadedRun, content: bytes, lanes: int | None, file: Path) -> bytes:
    model = coding.model_digest(loaded)
    return coding.compress(loaded.predictor, model, content, lanes, file)


def restored(loaded: LoadedRun, packed: bytes, file: Path) -> bytes:
    return coding.restore(loaded.predictor, coding.model_digest(loaded), packed, file)


@pytest.fixture(scope="module")
def loaded(trained_run: Path) -> LoadedRun:
    return load_run(trained_run)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 300])
@pytest.mark.parametrize("lanes", [1, 3, 50])
def test_every_byte_comes_back(loaded: LoadedRun, size: int, lanes: int) -> None:
    """Of text and of bytes that are no text, whatever the number of lanes."""
    content = random.Random(size).randbytes(size // 2) + b"the long book of memory "[: size // 2]
    packed = packed_of(loaded, content, lanes, FILE)
    assert restored(loaded, packed, FILE) == content
    assert packed_of(loaded, content, lanes, FILE) == packed


def test_the_size_is_what_the_score_says(loaded: LoadedRun, shards: Shards) -> None:
    split = shards.split("train")
    content = bytes(split.tokens[:12_000])
    packed = packed_of(loaded, content, 40, FILE)
    text = split_of(ByteTokenizer(), [content])
    result = score(loaded.predictor, text, ScoringConfig(lanes=40, warmup=0))
    assert 8 * (len(packed) - SIZE) / len(content) == pytest.approx(result.bits_per_byte, rel=5e-3)


def test_lanes_are_long_by_default(loaded: LoadedRun, monkeypatch) -> None:
    monkeypatch.setattr(coding, "LANE_TOKENS", 100)
    monkeypatch.setattr(coding, "MOST_LANES", 3)
    for size, lanes in ((50, 1), (250, 2), (1000, 3)):
        packed = packed_of(loaded, b"a" * size, None, FILE)
        assert unpack(packed, FILE)[0].lanes == lanes


def test_the_program_and_back(trained_run: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes(b"memory and time was read by one who wrote it down. " * 20)
    compress.main(trained_run, file, compare=True)
    shown = capsys.readouterr().out
    for name in ("this model", "xz -9e", "bzip2 -9", "zstd -22", "brotli -11"):
        assert name in shown
    packed = tmp_path / "book.txt.lm"
    assert packed.stat().st_size < file.stat().st_size
    compress.main(trained_run, packed, out=tmp_path / "again.txt", decompress=True)
    assert (tmp_path / "again.txt").read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match=r"book\.txt is there already: .*--overwrite true"):
        compress.main(trained_run, packed, decompress=True)
    file.write_bytes(b"")
    torch.set_num_threads(2)
    try:
        compress.main(trained_run, packed, decompress=True, overwrite=True)
        assert file.read_bytes() == (tmp_path / "again.txt").read_bytes()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    with pytest.raises(ValueError, match=r"does not end in \.lm"):
        compress.main(trained_run, file, decompress=True)


@pytest.mark.parametrize(
    "lookup",
    [
        LookupConfig("cache", capacity=40),
        LookupConfig("mbpa+knn", capacity=40, neighbours=5, rate=3.0),
        LookupConfig("mbpa", capacity=9, neighbours=4, rate=3.0, steps=3),
    ],
)
def test_what_is_looked_up_gives_every_byte_back(
    trained_run: Path, loaded: LoadedRun, tmp_path: Path, lookup: LookupConfig
) -> None:
    """A prediction that knew its future could not be decoded."""
    content = b"one who wrote it down read the long book of memory again. " * 4
    file, again, how = tmp_path / "book.txt", tmp_path / "again.txt", CodingConfig(adapt=lookup)
    file.write_bytes(content)
    compress.main(trained_run, file, coding=CodingConfig(2, lookup))
    packed = tmp_path / "book.txt.lm"
    compress.main(trained_run, packed, out=again, decompress=True, coding=how)
    assert again.read_bytes() == content
    plain = packed_of(loaded, content, 2, FILE)
    assert packed.stat().st_size <= len(plain)
    assert packed.read_bytes()[SIZE:] != plain[SIZE:]
    for other in (LookupConfig(), replace(lookup, capacity=41)):
        with pytest.raises(ValueError, match=r"looked up otherwise; give .* --adapt that"):
            compress.main(
                trained_run,
                packed,
                tmp_path / "c",
                decompress=True,
                coding=CodingConfig(adapt=other),
            )


def test_every_flipped_bit_is_found(loaded: LoadedRun) -> None:
    packed = packed_of(loaded, b"a long book of memory", 2, FILE)
    for place in range(len(packed)):
        broken = bytearray(packed)
        broken[place] ^= 1 << (place % 8)
        with pytest.raises(ValueError, match=r"damaged|not made by"):
            restored(loaded, bytes(broken), FILE)
    for size in (0, 3, 10, len(packed) - 1):
        with pytest.raises(ValueError, match=r"damaged|not made by"):
            restored(loaded, packed[:size], FILE)


def forged(packed: bytes, place: int, value: int) -> bytes:
    """The same file with another byte and the checksum that fits."""
    body = bytearray(packed[:-4])
    body[place] = value
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


def test_no_header_hangs_or_gives_another_text(loaded: LoadedRun) -> None:
    """Every byte of the header as it never was, with a checksum that fits: exact, or a sentence."""
    content = b"a long book of memory"
    packed = packed_of(loaded, content, 2, FILE)
    given, refused = set(), []
    for place in range(SIZE):
        for value in {0, 1, 2, 77, 255, packed[place] ^ 1} - {packed[place]}:
            try:
                given.add(restored(loaded, forged(packed, place, value), FILE))
            except ValueError as error:
                refused.append(str(error))
    assert given <= {content} and len(refused) > 200
    assert all(sentence.startswith("text ") for sentence in refused)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lanes", 0),
        ("lanes", 4_000_000_000),
        ("lanes", 22),
        ("threads", 0),
        ("threads", 65_535),
        ("tokens", 0),
        ("tokens", 22),
        ("tokens", 100_000),
        ("tokens", 1 << 40),
        ("tokens", (1 << 64) - 1),
    ],
)
def test_headers_that_no_file_has(loaded: LoadedRun, field: str, value: int) -> None:
    packed = packed_of(loaded, b"a long book of memory", 2, FILE)
    header, payload = unpack(packed, FILE)
    with pytest.raises(ValueError, match=r"text (is damaged|does not come back)"):
        restored(loaded, pack(replace(header, **{field: value}), payload), FILE)


@pytest.mark.parametrize("more", [b"\0", b"\0\0\0\0", b"more", b"more words behind the end"])
def test_bytes_behind_the_end_are_found(loaded: LoadedRun, more: bytes) -> None:
    packed = packed_of(loaded, b"a long book of memory", 2, FILE)
    header, payload = unpack(packed, FILE)
    for broken in (packed + more, pack(header, payload + more)):
        with pytest.raises(ValueError, match=r"text (is damaged|does not come back)"):
            restored(loaded, broken, FILE)
    for size in range(len(payload)):
        with pytest.raises(ValueError, match=r"text (is damaged|does not come back)"):
            restored(loaded, pack(header, payload[:size]), FILE)


def test_what_is_read_is_never_replaced(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever name, said to overwrite or not, and nothing else unless it is said."""
    monkeypatch.chdir(tmp_path)
    source, packed = Path("book.txt"), Path("book.txt.lm")
    source.write_bytes(b"a long book of memory")
    compress.main(trained_run, source)
    Path("link").symlink_to(source)
    Path("hard").hardlink_to(source)
    before = source.read_bytes(), packed.read_bytes()
    weights = trained_run / "checkpoints/step-00000012/model.safetensors"
    for out in (source, tmp_path / source, Path("link"), Path("hard"), Path("./book.txt"), weights):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="is what is read"):
                compress.main(trained_run, source, out=out, overwrite=overwrite)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is what is read"):
            compress.main(trained_run, packed, out=packed, decompress=True, overwrite=overwrite)
    for file, decompress in ((source, False), (packed, True)):
        with pytest.raises(ValueError, match="is there already"):
            compress.main(trained_run, file, decompress=decompress)
    for out in ("missing/x", ".", "/dev/full", "book.txt/x"):
        with pytest.raises(ValueError, match=r"make it|choose|name a file"):
            compress.main(trained_run, source, out=Path(out))
    assert before == (source.read_bytes(), packed.read_bytes())
    compress.main(trained_run, source, out=Path("/dev/null"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "book.txt",
        "book.txt.lm",
        "hard",
        "link",
    ]


def test_predictions_that_are_no_numbers_are_a_sentence(loaded: LoadedRun, monkeypatch) -> None:
    packed = packed_of(loaded, b"a long book of memory", 2, FILE)
    logits, nan = ModelPredictor.logits, float("nan")
    monkeypatch.setattr(ModelPredictor, "logits", lambda self, hidden: logits(self, hidden) * nan)
    with pytest.raises(ValueError, match="not finite numbers"):
        packed_of(loaded, b"a long book", 2, FILE)
    with pytest.raises(ValueError, match="not finite numbers"):
        restored(loaded, packed, FILE)


def test_another_model_is_refused(loaded: LoadedRun, trained_run: Path) -> None:
    packed = packed_of(loaded, b"a long book of memory", 2, FILE)
    other = load_run(trained_run, "step-00000010")
    with pytest.raises(ValueError, match="compressed with another model"):
        restored(other, packed, FILE)
    longer = replace(loaded, model=type(loaded.model)(replace(loaded.model.config, memory=9), 256))
    with pytest.raises(ValueError, match="compressed with another model"):
        restored(longer, packed, FILE)


def test_a_machine_that_rounds_otherwise_is_noticed(loaded: LoadedRun, monkeypatch) -> None:
    """The file is whole and the model right, but the decoder's probabilities differ."""
    packed = packed_of(loaded, b"a long book of memory" * 9, 2, FILE)
    logits = ModelPredictor.logits
    factor = 1.01
    monkeypatch.setattr(ModelPredictor, "logits", lambda self, x: logits(self, x) * factor)
    with pytest.raises(ValueError, match="rounds otherwise"):
        restored(loaded, packed, FILE)
    # So far off that the coder's words fit nothing.
    factor = 1000.0
    with pytest.raises(ValueError, match="rounds otherwise"):
        restored(loaded, packed, FILE)


@pytest.mark.parametrize("kind", ["words", "sentencepiece"])
def test_text_that_the_vocabulary_cannot_write_is_refused(loaded: LoadedRun, kind: str) -> None:
    vocabulary = vocabularies()[kind]
    model = type(loaded.model)(loaded.model.config, vocabulary.size)
    other = replace(loaded, model=model.eval(), vocabulary=vocabulary)
    content = b" the book \n a word \n"
    packed = packed_of(other, content, 1, FILE)
    assert restored(other, packed, FILE) == content
    for strange in (b"\xff\xfe", b" the   book \n") if kind == "words" else (b"\xff\xfe",):
        with pytest.raises(ValueError, match="cannot be written exactly"):
            packed_of(other, strange, 1, FILE)
