"""The vocabulary of a build: fixed, somebody's, or learnt from the training split."""

from collections import Counter
from collections.abc import Iterator

from data.common.progress import Progress
from data.common.say import say
from data.documents import Block, Part, Source
from data.encode import naming_text, whole_lines
from data.options import DataConfig
from data.pool import work_in_pool
from data.tokenizers.registry import (
    ByteTokenizer,
    MuLawTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from data.tokenizers.words import split_words


def make_tokenizer(config: DataConfig, source: Source, workers: int) -> Tokenizer:
    """The vocabulary that a config asks for; ValueError if other shards have another kind."""
    if config.vocabulary_from is not None:
        vocabulary = load_tokenizer(config.vocabulary_from / "vocabulary")
        if vocabulary.kind != config.kind:
            raise ValueError(
                f"{config.vocabulary_from} has the vocabulary {vocabulary.kind}, not {config.kind}"
            )
        return vocabulary
    match config.kind:
        case "words":
            return WordTokenizer.build(count_words(source, workers))
        case "sentencepiece":
            lines = sample_lines(source, config.sample)
            return SentencePieceTokenizer.train(lines, config.size, config.method)
        case "mulaw":
            return MuLawTokenizer()
        case "hf":
            return config.tokenizer()
        case _:
            return ByteTokenizer()


def count_words(source: Source, workers: int) -> Counter[bytes]:
    """How often each word occurs in the training split; ValueError if it has none."""
    counts: Counter[bytes] = Counter()
    with Progress("count words", len(source.parts), "part") as progress:
        for part_counts in work_in_pool(workers, count_part, None, enumerate(source.parts)):
            counts.update(part_counts)
            progress.update()
    if not counts:
        raise ValueError("the training split holds no words to make a vocabulary of")
    return counts


def count_part(_: None, index: int, part: Part) -> Counter[bytes]:  # noqa: ARG001
    """How often each word occurs in a part's training documents."""
    counts: Counter[bytes] = Counter()
    for block in train_blocks(part):
        counts.update(split_words(block.data))
    return counts


def train_blocks(part: Part) -> Iterator[Block]:
    """A part's training documents in blocks of whole lines; ValueError if they are not UTF-8."""
    position = 0
    for block in whole_lines(part.read()):
        position = 0 if block.begins else position
        if block.document.split == "train":
            with naming_text(part, block.document, position):
                block.data.decode()
            yield block
        position += len(block.data)


def sample_lines(source: Source, size: int) -> Iterator[str]:
    """About `size` bytes of training text, evenly spread over the corpus, a line at a time.

    The corpus is read once, and how long it is need not be known. The sample depends on corpus and
    size alone. ValueError for text that is not UTF-8, before anything is learnt.
    """
    say("learn a vocabulary from a sample of the text (about a minute for each 50 MB)")
    sample: list[bytes] = []
    held, share = 0, Share(1.0)
    with Progress("sample text for the vocabulary", None, "B", scale=True) as progress:
        for part in source.parts:
            for block in train_blocks(part):
                sample.append(share.take(block.data))
                held += len(sample[-1])
                progress.update(len(block.data))
                if held > 2 * size:
                    share = Share(share.part / 2)
                    sample = thinned(sample, 0.5)
                    held = sum(map(len, sample))
    for text in thinned(sample, min(1.0, size / max(held, 1))):
        lines = text.decode().split("\n")
        yield from filter(None, (line.removesuffix("\r") for line in lines))


class Share:
    """Takes its part of a text that comes in blocks: whole lines from the beginning of each."""

    def __init__(self, part: float) -> None:
        self.part, self._owed = part, 0.0

    def take(self, text: bytes) -> bytes:
        """The block's share; the line in which it ends is whole, and the next gives less."""
        self._owed += self.part * len(text)
        if self._owed < 1:
            return b""
        end = text.find(b"\n", int(self._owed) - 1) + 1 or len(text)
        self._owed -= end
        return text[:end]


def thinned(texts: list[bytes], part: float) -> list[bytes]:
    """A share of each text, without those of which it is nothing."""
    share = Share(part)
    return [taken for text in texts if (taken := share.take(text))]
