"""Small tokenizers of each kind that the Hugging Face hub has, trained on a few lines."""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

LINES = [
    f"The {word} of line {i}, and 'tis more: don't! naïve  Жук\n\n\tx = {i}\n"
    for i in range(120)
    for word in ("cat", "dog", "house")
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SIZE = 600
EXACT = ("gpt2", "llama3", "qwen", "llama2", "unigram")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level(pattern: str | None, normalizer: Any = None, ignore: bool = False) -> Tokenizer:
    """Byte-level BPE; pattern: of Llama 3 and the like, else GPT-2's own."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore))
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        initial_alphabet=alphabet,
        show_progress=False,
        special_tokens=["<|start|>"],
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, rstrip=True)])
    return tokenizer


def llama2() -> Tokenizer:
    """BPE as SentencePiece has it: a mark for a space, bytes for what no piece covers."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*pieces, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *BYTES]
    )
    # Words are trained on one by one, so that no piece spans two.
    words = (f"▁{word}" for line in LINES for word in line.split())
    tokenizer.train_from_iterator(words, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(spec))


def unigram() -> Tokenizer:
    """Unigram with the mark of a space and bytes, as T5 and others have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
    )
    tokenizer.train_from_iterator(LINES, trainer)
    spec = json.loads(tokenizer.to_str())
    # Bytes score 0, as converted models have them: the model itself would match their names.
    spec["model"]["vocab"][3:3] = [[name, 0.0] for name in BYTES]
    spec["model"] |= {"byte_fallback": True}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    """Lower-cased words and their parts, as BERT has them."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


MAKERS = {
    "gpt2": lambda: byte_level(None),
    "llama3": lambda: byte_level(LLAMA3, ignore=True),
    "qwen": lambda: byte_level(LLAMA3, normalizers.NFC()),
    "llama2": llama2,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
SPECIAL = {
    "llama2": ("<s>", "</s>", None),
    "unigram": ("<s>", "</s>", None),
    "wordpiece": ("[CLS]", "[SEP]", "[PAD]"),
}


def write_tokenizer(kind: str, folder: Path, template: bool = False) -> Path:
    """A folder as transformers saves it, made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    MAKERS[kind]().save(str(folder / "tokenizer.json"))
    bos, eos, pad = SPECIAL.get(kind, ("<|start|>", "<|end|>", None))
    settings = {
        "bos_token": bos,
        "eos_token": {"__type": "AddedToken", "content": eos},
        "pad_token": pad,
    }
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if template:
        settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
