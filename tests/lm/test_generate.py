"""The generating program: what it writes where, and plain words about mistakes."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from data.common import command
from data.common.command import dump_config, load_config
from data.tokenizers.registry import MuLawTokenizer, SentencePieceTokenizer, WordTokenizer
from data.tokenizers.words import LINE_END
from lm import generate
from lm.inference.inference_config import GenerateConfig, Lengths
from lm.inference.loading import load_run
from lm.inference.sampling import Sampler
from lm.inference.session import Session, encode
from lm.inference.writing import tell_unknown
from lm.runs.run_config import RunConfig
from tests.streams import refusing

Capture = pytest.CaptureFixture[str]


def text_of(run: Path, capsys: Capture, **options: Any) -> str:
    files = {
        name: options.pop(name) for name in ("out", "load_memory", "save_memory") if name in options
    }
    generate.main(run, GenerateConfig(**options), **files)
    return capsys.readouterr().out


def test_a_seed_is_a_text(trained_run: Path, capsys: Capture, tmp_path: Path) -> None:
    first = text_of(trained_run, capsys, prompt="the ", tokens=80, seed=3, out=tmp_path / "a.txt")
    assert first == text_of(trained_run, capsys, prompt="the ", tokens=80, seed=3)
    assert first != text_of(trained_run, capsys, prompt="the ", tokens=80, seed=4)
    written = (tmp_path / "a.txt").read_bytes()
    assert written.startswith(b"the ") and len(written) == 84


def test_it_writes_with_what_it_looks_up(
    trained_run: Path, capsys: Capture, tmp_path: Path
) -> None:
    """Going on from memory on disk is going on; with the cache alone the text is copied."""
    file = tmp_path / "memory"
    lookup = {"method": "cache", "share": 0.999, "sharpness": 40.0}
    options = ["--adapt." + f"{name}={value}" for name, value in lookup.items()]
    prompt = "abcdefgh. " * 6

    def shown(*more: str) -> str:
        command.run(
            generate.main,
            section="sampling",
            argv=[f"--run={trained_run}", "--temperature=0", "--tokens=40", *options, *more],
        )
        return capsys.readouterr().out

    text = shown(f"--prompt={prompt}")
    assert text.startswith("abcdefgh. " * 4)
    shown(f"--prompt={prompt}", f"--save-memory={file}")
    assert shown(f"--load-memory={file}") == text


def test_greedy_does_not_depend_on_the_seed(trained_run: Path, capsys: Capture) -> None:
    texts = {text_of(trained_run, capsys, temperature=0, tokens=30, seed=seed) for seed in (0, 1)}
    assert len(texts) == 1


def test_several_texts_are_told_apart(trained_run: Path, capsys: Capture, tmp_path: Path) -> None:
    """Three samples of two prompts of different lengths; each is what its seed gives alone."""
    (tmp_path / "prompts.txt").write_text("the book\n\nlong memory of one who wrote it\n")
    out = text_of(
        trained_run, capsys, prompts_file=tmp_path / "prompts.txt", samples=3, tokens=20, seed=7,
        out=tmp_path / "out.jsonl",
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["sample"], row["seed"]) for row in rows] == [
        (0, 7), (1, 8), (2, 9), (0, 10), (1, 11), (2, 12)
    ]  # fmt: skip
    assert rows[5]["prompt"] == "long memory of one who wrote it"
    for number, row in enumerate(rows):
        head = f"=== prompt {number // 3 + 1}, sample {number % 3 + 1}, seed {row['seed']} ===\n"
        assert head + row["text"] + "\n" in out
        alone = text_of(trained_run, capsys, prompt=row["prompt"], tokens=20, seed=row["seed"])
        assert alone == row["text"] + "\n"


def test_a_book_is_read_once_for_many_continuations(
    trained_run: Path, capsys: Capture, tmp_path: Path
) -> None:
    book = "a long book of memory and time " * 9
    saved = tmp_path / "book.memory"
    assert text_of(trained_run, capsys, prompt=book, tokens=0, save_memory=saved) == ""
    expected = text_of(trained_run, capsys, prompt=book + "was", tokens=30, seed=2)
    on = text_of(trained_run, capsys, prompt="was", tokens=30, seed=2, load_memory=saved)
    assert on == expected
    on = text_of(trained_run, capsys, tokens=30, seed=2, load_memory=saved)
    assert on == text_of(trained_run, capsys, prompt=book, tokens=30, seed=2)


def test_a_conversation_is_one_text(
    trained_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"the book\nwas read\n"))
    monkeypatch.setattr("sys.stdin", lines)
    greedy = {"temperature": 0, "tokens": 25}
    saved = tmp_path / "talk"
    turns = text_of(trained_run, capsys, interactive=True, save_memory=saved, **greedy)
    first, second = turns[:25], turns[26:51]
    assert turns == f"{first}\n{second}\n"
    alone = text_of(trained_run, capsys, prompt="the book\n", **greedy)
    assert alone == first + "\n"
    whole = f"the book\n{first}was read\n"
    assert text_of(trained_run, capsys, prompt=whole, **greedy) == second + "\n"
    on = text_of(trained_run, capsys, load_memory=saved, **greedy)
    assert on == text_of(trained_run, capsys, prompt=whole + second, **greedy)


def test_only_whole_characters_are_written(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = iter("é→é".encode())
    monkeypatch.setattr(Sampler, "__call__", lambda *_: torch.tensor([next(wanted)]))
    pieces: list[str] = []
    monkeypatch.setattr("builtins.print", lambda text="", **_: pieces.append(text))
    generate.main(trained_run, GenerateConfig(tokens=len("é→é".encode())))
    assert [piece for piece in pieces if piece] == ["é", "→", "é"]


def test_other_lengths_are_used_and_impossible_ones_refused(trained_run: Path) -> None:
    model = load_run(trained_run, lengths=Lengths(segment=6, memory=20, compressed=2)).model
    assert (model.config.segment, model.config.memory, model.config.compressed) == (6, 20, 2)
    with pytest.raises(ValueError, match="segment must be at least 1"):
        load_run(trained_run, lengths=Lengths(segment=0))


def test_weights_of_another_model_are_refused(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained_run, copy)
    config = load_config(RunConfig, copy / "config.yaml")
    other = replace(config, model=replace(config.model, layers=3))
    (copy / "config.yaml").write_text(dump_config(other))
    with pytest.raises(ValueError, match="another model"):
        load_run(copy)
    (copy / "config.yaml").write_text(dump_config(config))
    weights = copy / "checkpoints" / "step-00000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_run(copy)


def test_texts_that_a_vocabulary_cannot_hold_are_refused(capsys: Capture) -> None:
    words = WordTokenizer([(b"the", 3), (LINE_END, 2), (b"<unk>", 1)], 1, 2)
    lines = SentencePieceTokenizer.train(iter(["the book of books", "a book"] * 20), 280, "bpe")
    for vocabulary in (words, lines):
        with pytest.raises(ValueError, match="the prompt is not UTF-8 at byte 4"):
            encode(vocabulary, b"the \xff", "the prompt")
    with pytest.raises(ValueError, match="even number"):
        encode(MuLawTokenizer(), b"abc", "the prompt")
    text = b"the <unk> cat the\n"
    tell_unknown(words, text, encode(words, text, "it"), "the prompt")
    assert capsys.readouterr().err.startswith("1 of 5 words of the prompt are not in")
    tell_unknown(words, b"the\n", np.array([0, 1]), "the prompt")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": -1}, "tokens must be at least 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"prompt": "a", "prompt_file": Path("b")}, "give one of"),
        ({"interactive": True, "samples": 2}, "one conversation"),
        ({"interactive": True, "tokens": 0}, "need --tokens"),
        ({"samples": 2, "tokens": 0}, "need --tokens"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GenerateConfig(**options)


def test_what_cannot_be_done_with_several_or_no_texts_is_refused(
    trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "blank").write_text("\n\n")
    two = GenerateConfig(prompts_file=tmp_path / "two")
    with pytest.raises(ValueError, match="memory of one text"):
        generate.main(trained_run, two, save_memory=tmp_path / "x")
    with pytest.raises(ValueError, match="no line with a text"):
        generate.main(trained_run, GenerateConfig(prompts_file=tmp_path / "blank"))
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="is empty"):
        generate.main(trained_run, GenerateConfig(prompt_file=tmp_path / "empty"))
    with pytest.raises(ValueError, match="cannot be read"):
        generate.main(trained_run, GenerateConfig(), load_memory=tmp_path / "empty")
    with pytest.raises(ValueError, match="there are: step-00000010, step-00000012"):
        generate.main(trained_run, GenerateConfig(), checkpoint="step-1")
    with pytest.raises(ValueError, match="--out has no effect"):
        generate.main(trained_run, GenerateConfig(interactive=True), out=tmp_path / "x")
    with pytest.raises(ValueError, match="writes nothing"):
        generate.main(trained_run, GenerateConfig(tokens=0))
    with pytest.raises(ValueError, match="must not be empty"):
        generate.main(trained_run, GenerateConfig(stop=("",)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--prompt-file", "missing.txt"], "missing.txt: No such file"),
        (["--top-p", "1.5"], "--top-p must be at most 1"),
        (["--samples", "1000000000000"], "texts side by side"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(trained_run: Path, options: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "lm.generate", "--run", str(trained_run), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not result.stdout


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO], ids=os.strerror)
def test_a_text_is_kept_whatever_becomes_of_what_is_shown(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def written(name: str) -> bytes:
        out = tmp_path / name
        arguments = f"--run {trained_run} --prompt the --tokens 20 --out"
        command.run(generate.main, section="sampling", argv=[*arguments.split(), str(out)])
        return out.read_bytes()

    whole = written("whole")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, refusing(number))
        assert written(f"without {name}") == whole


def test_a_text_that_is_only_shown_ends_with_its_reader(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", refusing(errno.EPIPE))
    arguments = f"--run {trained_run} --prompt the --tokens 1000000000"
    with pytest.raises(SystemExit) as end:
        command.run(generate.main, section="sampling", argv=arguments.split())
    assert end.value.code == 1


WIDE = "a long book of memory".encode("utf-16")


@pytest.mark.bad_input("lm.generate")
@pytest.mark.parametrize(
    ("options", "files", "sentence"),
    [
        ({"prompt_file": "x"}, {}, "No such file"),
        ({"prompt_file": "."}, {}, "Is a directory|directory"),
        ({"prompt_file": "/dev/zero"}, {}, "is a device"),
        (
            {"prompt_file": "wide"},
            {},
            "in .*wide is not valid UTF-8 and seems .* utf-16",
        ),
        ({"prompts_file": "/dev/urandom"}, {}, "is a device"),
        ({"prompt_file": "binary"}, {}, "binary data"),
        ({"samples": 10**12}, {}, "1,000,000,000,000 texts side by side .* needs at least"),
        ({"samples": 10**18}, {}, "texts side by side"),
        ({}, {"out": "missing/x"}, "make it first"),
        ({}, {"out": "."}, "is a folder"),
        ({}, {"out": "/dev/full"}, "no room"),
        ({}, {"save_memory": "missing/x"}, "make it first"),
        ({}, {"save_memory": "."}, "is a folder"),
        ({}, {"save_memory": "/dev/full"}, "no room"),
        ({}, {"save_memory": "same", "out": "./same"}, "name one file"),
        ({"prompt_file": "text"}, {"out": "text"}, "is what is read"),
        ({"prompt_file": "text"}, {"save_memory": "text"}, "is what is read"),
        ({}, {"load_memory": "text"}, "cannot be read"),
        ({}, {"load_memory": "x"}, "No such file"),
        ({"memory": 10**9}, {}, "memory"),
        ({"compressed": 10**9}, {}, "memory"),
        ({"segment": 10**9}, {}, "memory"),
    ],
)
def test_what_cannot_be_read_or_written_is_found_before_the_work(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    files: dict[str, str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Session, "write", lambda *_: pytest.fail("the work was begun"))
    (tmp_path / "text").write_text("the book")
    (tmp_path / "wide").write_bytes(WIDE)
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 9)
    before = sorted(tmp_path.iterdir())
    paths = {n: Path(v) if str(n).endswith("file") else v for n, v in options.items()}
    with pytest.raises((ValueError, OSError), match=sentence):
        generate.main(
            trained_run, GenerateConfig(**paths), **{n: Path(v) for n, v in files.items()}
        )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.bad_input("lm.generate")
def test_no_part_of_the_run_is_overwritten(trained_run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "vocabulary/vocabulary.json"):
        for option in ("out", "save_memory"):
            with pytest.raises(ValueError, match="is what is read"):
                generate.main(trained_run, GenerateConfig(), **{option: trained_run / name})


def test_memory_goes_through_a_pipe_and_follows_links(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    only_read = GenerateConfig(prompt="the book", tokens=0)
    generate.main(trained_run, only_read, save_memory=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    generate.main(trained_run, only_read, save_memory=pipe)
    reader.join(60)
    assert pipe.is_fifo()
    through, straight = load(read[0]), load((tmp_path / "file").read_bytes())
    assert through.keys() == straight.keys()
    assert all(torch.equal(tensor, straight[name]) for name, tensor in through.items())


def test_bytes_of_no_encoding_are_a_prompt_and_are_warned_of(
    trained_run: Path, capsys: Capture, tmp_path: Path
) -> None:
    """As a shell gives them; a vocabulary of bytes reads them as they are."""
    given = os.fsdecode(b"the caf\xe9 of one who wrote")
    out = tmp_path / "out"
    generate.main(trained_run, GenerateConfig(prompt=given, tokens=3, stop=(given,)), out=out)
    assert out.read_bytes().startswith(b"the caf\xe9 of one")
    assert "warning: the prompt is not valid UTF-8" in capsys.readouterr().err


def test_memory_is_saved_when_ctrl_c_ends_the_waiting_for_a_line(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Input:
        lines = iter([b"the book\n"])
        buffer = property(lambda self: self)

        def isatty(self) -> bool:
            return False

        def readline(self) -> bytes:
            for line in self.lines:
                return line
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Input())
    talk = GenerateConfig(interactive=True, tokens=4, temperature=0)
    with pytest.raises(KeyboardInterrupt):
        generate.main(trained_run, talk, save_memory=tmp_path / "talk")
    said = capsys.readouterr().out[:4]
    on = text_of(trained_run, capsys, load_memory=tmp_path / "talk", tokens=4, temperature=0)
    prompt = f"the book\n{said}"
    assert on == text_of(trained_run, capsys, prompt=prompt, tokens=4, temperature=0)


def test_several_texts_are_on_disk_before_they_are_shown(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(BrokenPipeError):
        generate.main(trained_run, GenerateConfig(samples=2, tokens=3), out=tmp_path / "out")
    assert len((tmp_path / "out").read_text().splitlines()) == 2
