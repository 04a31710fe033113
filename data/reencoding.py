"""A split in the tokens of another vocabulary: the same text, documents and denominators."""

from dataclasses import replace

import numpy as np

from data.common.progress import Progress
from data.common.say import plain
from data.shards import Split
from data.tokenizers.registry import Tokenizer


def reencoded(split: Split, vocabulary: Tokenizer, progress: bool = True) -> Split:
    """A split whose text, document by document, is encoded with another vocabulary, in memory.

    Bytes and words stay those of the source; whether the new tokens give the text back is found by
    decoding them. Where they do not, the unit is word perplexity, as in shards of such a
    vocabulary.

    Args:
        split: tokens that give their text back.
        vocabulary: any; an equal one gives the split itself.
        progress: show progress.

    Raises:
        ValueError: the split's tokens do not give the text back, or the vocabulary cannot hold it.
    """
    own = split.vocabulary
    if (own.hash, own.size) == (vocabulary.hash, vocabulary.size):
        return split
    if not split.exact:
        raise ValueError(
            f"the tokens in {split.folder} ({own.name}) do not give their text back, so no other "
            "vocabulary can read it: prepare the text with --vocabulary bytes"
        )
    documents, ids, exact = np.array(split.documents), [], True
    bar = Progress(f"encode {split.name}", split.bytes, "B", True, progress)
    with bar:
        for number, (offset, count) in enumerate(
            zip(split.documents["offset"], split.documents["tokens"], strict=True)
        ):
            text = own.decode(split.tokens[offset : offset + count])
            ids.append(_encoded(vocabulary, text, split, number))
            exact = exact and vocabulary.decode(ids[-1]) == text
            bar.update(len(text))
    documents["tokens"] = [len(each) for each in ids]
    documents["offset"] = np.cumsum(documents["tokens"]) - documents["tokens"]
    unit = split.unit if exact else "word_perplexity"
    made = replace(split, vocabulary=vocabulary, facts=None, lossless=exact, unit=unit)
    # What a split on disk reads when it is first asked for.
    vars(made).update(tokens=np.concatenate(ids), documents=documents, details=split.details)
    return made


def _encoded(vocabulary: Tokenizer, text: bytes, split: Split, number: int) -> np.ndarray:
    try:
        return vocabulary.encode(text)
    except ValueError as error:
        name = plain(split.names[number])
        raise ValueError(
            f"the document {name} of {split.folder} cannot be written in {vocabulary.name} "
            f"({error}): leave it out, or convert it to UTF-8"
        ) from None
