"""The vocabulary of a build: fixed, taken from other shards, or learnt from the training split."""

from collections import Counter
from collections.abc import Iterator

from data.documents import PART_BYTES, Part, Source
from data.encode import whole_lines
from data.options import DataConfig
from data.pool import Pool
from data.progress import Progress
from data.vocab import (
    ByteVocabulary,
    MuLawVocabulary,
    SubwordVocabulary,
    Vocabulary,
    WordVocabulary,
    load_vocabulary,
)
from data.vocabularies.words import count_words_of


def make_vocabulary(config: DataConfig, source: Source, workers: int) -> Vocabulary:
    """The vocabulary that a config asks for; ValueError if other shards have another kind."""
    if config.vocabulary_from is not None:
        vocabulary = load_vocabulary(config.vocabulary_from / "vocabulary")
        if vocabulary.kind != config.kind:
            raise ValueError(
                f"{config.vocabulary_from} has the vocabulary {vocabulary.kind}, not {config.kind}"
            )
        return vocabulary
    match config.kind:
        case "words":
            return WordVocabulary.build(count_words(source, workers))
        case "sentencepiece":
            lines = sample_lines(source, config.sample)
            return SubwordVocabulary.train(lines, config.size, config.method)
        case "mulaw":
            return MuLawVocabulary()
        case _:
            return ByteVocabulary()


def count_words(source: Source, workers: int) -> Counter[bytes]:
    """How often each word occurs in the training split; ValueError if it has none."""
    counts: Counter[bytes] = Counter()
    with Progress("count words", len(source.parts), "part") as progress:
        for part_counts in Pool(workers, count_part, None).map(enumerate(source.parts)):
            counts += part_counts
            progress.update()
    if not counts:
        raise ValueError("the training split holds no words to make a vocabulary of")
    return counts


def count_part(_: None, index: int, part: Part) -> Counter[bytes]:  # noqa: ARG001
    """How often each word occurs in a part's training documents."""
    return count_words_of(train_text(part))


def train_text(part: Part) -> Iterator[bytes]:
    """Blocks of whole lines of a part's training documents."""
    for block in whole_lines(part.read()):
        if block.document.split == "train":
            yield block.data


def sample_lines(source: Source, size: int) -> Iterator[str]:
    """About `size` bytes of training text, evenly spread over the corpus, a line at a time.

    Every block gives the same share of whole lines from its beginning, so that the sample depends
    on corpus and size alone. Bytes that are not UTF-8 are left to the encoder to complain of.
    """
    total = sum(PART_BYTES if part.size is None else part.size for part in source.parts)
    share = min(1.0, size / max(total, 1))
    with Progress("sample text for the vocabulary", None, "B", scale=True) as progress:
        for part in source.parts:
            for block in train_text(part):
                end = len(block)
                if share < 1:
                    end = block.find(b"\n", int(share * len(block))) + 1 or len(block)
                progress.update(end)
                for line in block[:end].decode("utf-8", "replace").split("\n"):
                    if text := line.removesuffix("\r"):
                        yield text
