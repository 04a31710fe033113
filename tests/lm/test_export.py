"""Export and import: the same weights to the bit, and what a stranger does with the folder in a
process that knows nothing of this repository.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data.common.command import dump_config
from data.common.files import hash_file
from data.shards import Shards
from data.tokenizers.registry import (
    MuLawTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
)
from data.tokenizers.words import split_words
from lm import export, import_folder
from lm.hub import exporting
from lm.hub.card import model_card
from lm.hub.exporting import TOKENIZERS, code_files, tokenizer_of
from lm.hub.modeling import CompressiveTransformerForCausalLM
from lm.hub.tokenization import HubTokenizer
from lm.inference.loading import load_run
from lm.runs.run_config import RunConfig
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.training import dist
from lm.training.loop import Loop
from lm.training.trainer import Trainer

STRANGER = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("lm", "data", "sentencepiece", "deepspeed", "jsonargparse"):
    sys.modules[name] = None
import threading
import torch
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, TrainingArguments, Trainer, pipeline
)
folder, scratch = sys.argv[1:]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__

text = "the book of memory, é→\\n and time"
ids = tokenizer(text, return_tensors="pt")
assert tokenizer.decode(ids["input_ids"][0, 1:]) == text
with torch.no_grad():
    torch.save((ids["input_ids"], model(**ids).logits), scratch + "/logits.pt")

batch = tokenizer(["a", "a long book of memory"], return_tensors="pt", padding=True)
options = dict(max_new_tokens=40, do_sample=False)
rows = model.generate(**batch, **options)
alone = model.generate(**tokenizer("a", return_tensors="pt"), **options)
assert rows[0, -40:].tolist() == alone[0, -40:].tolist()

streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
thread = threading.Thread(target=model.generate, kwargs=dict(ids, streamer=streamer, **options))
thread.start()
streamed = "".join(streamer)
thread.join()
whole = model.generate(**ids, **options)[0, ids["input_ids"].shape[1]:]
assert streamed == tokenizer.decode(whole), (streamed, tokenizer.decode(whole))

write = pipeline("text-generation", model=model, tokenizer=tokenizer)
(answer,) = write(text, **options)
assert answer["generated_text"] == text + tokenizer.decode(whole), answer

told = [tokenizer("the book of memory and time was read by one who wrote it down. " * 2)] * 64
arguments = TrainingArguments(
    output_dir=scratch + "/trainer", per_device_train_batch_size=8, max_steps=12,
    learning_rate=3e-3, lr_scheduler_type="constant", logging_steps=1, report_to=[],
    save_strategy="no", use_cpu=True, gradient_checkpointing=True,
)
data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in told]
trainer = Trainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
assert losses[-1] < losses[0] - 0.5, losses
on_map = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, device_map="auto")
placed = on_map.generate(**ids.to(on_map.device), **options)[0].cpu()
assert torch.equal(placed[-len(whole):], whole)

trainer.save_model(scratch + "/tuned")
tuned = AutoModelForCausalLM.from_pretrained(scratch + "/tuned", trust_remote_code=True)
model.eval()
with torch.no_grad():
    logits = model(**ids).logits
    assert torch.equal(tuned(**ids).logits, logits)
    torch.save((ids["input_ids"], logits), scratch + "/tuned.pt")
print("done", losses[0], losses[-1])
"""


@pytest.fixture(scope="module")
def folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "new" / "model"
    export.main(trained_run, target, max_shard_size="20KB")
    return target


def logits_of(run: Path, ids: torch.Tensor) -> torch.Tensor:
    """By the model's own forward, segment by segment."""
    model = load_run(run).model
    whole = torch.nn.functional.pad(ids, (0, -ids.shape[1] % model.config.segment))
    memory, logits = model.empty_memory(1), []
    with torch.no_grad():
        for part in whole.split(model.config.segment, dim=1):
            output = model(part, memory)
            memory = output.memory
            logits.append(output.predictions)
    return torch.cat(logits, dim=1)[:, : ids.shape[1]]


@pytest.mark.slow
def test_a_stranger_loads_it_writes_with_it_and_trains_it(
    folder: Path, trained_run: Path, tmp_path: Path
) -> None:
    """In a process where neither this repository nor what only it needs can be imported; what the
    stranger has trained comes back as a run.
    """
    program = tmp_path / "stranger.py"
    program.write_text(STRANGER)
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-I", str(program), str(folder), str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0 and result.stdout.splitlines()[-1].startswith("done"), result
    ids, logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, logits_of(trained_run, ids), rtol=1e-5, atol=1e-5)
    import_folder.main(tmp_path / "tuned", tmp_path / "run")
    ids, logits = torch.load(tmp_path / "tuned.pt", weights_only=True)
    torch.testing.assert_close(logits, logits_of(tmp_path / "run", ids), rtol=1e-5, atol=1e-5)


def test_export_and_import_keep_every_bit(folder: Path, trained_run: Path, tmp_path: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 1
    back = tmp_path / "back"
    import_folder.main(folder, back)
    files = [load_run(run).checkpoint / "model.safetensors" for run in (trained_run, back)]
    (mine, theirs) = map(load_file, files)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    old, new = load_run(trained_run), load_run(back)
    assert old.config.model == new.config.model and old.vocabulary.hash == new.vocabulary.hash
    ids = torch.arange(30)[None]
    assert torch.equal(logits_of(trained_run, ids), logits_of(back, ids))
    export.main(back, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[f"model.{name}"], mine[name]) for name in mine)


def test_sparse_checkpoints_leave_as_dense_ones_and_come_back(
    run_config: RunConfig, shards: Shards, tmp_path: Path
) -> None:
    run = tmp_path / "sparse"
    run.mkdir()
    (run / "vocabulary").mkdir()
    shards.vocabulary.save(run / "vocabulary")
    config = replace(
        run_config,
        sparse=SparseConfig(0.3, 0.3, refresh=2),
        power=PowerConfig(1.5),
        training=replace(run_config.training, steps=4, save_every=4, validate_every=4),
    )
    (run / "config.yaml").write_text(dump_config(config))
    Loop(Trainer(config, shards, dist.join()), run).train()
    model = load_run(run).model
    matrix = model.layers[0].attention.query_key_value.matrix()
    assert 0.6 < (matrix == 0).float().mean() < 0.75
    export.main(run, tmp_path / "out")
    hub = CompressiveTransformerForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(hub.model.layers[0].attention.query_key_value.matrix(), matrix)
    import_folder.main(tmp_path / "out", tmp_path / "back")
    ids = torch.arange(40)[None]
    assert torch.equal(logits_of(tmp_path / "back", ids), logits_of(run, ids))


def test_the_card_carries_scores_of_these_weights_with_their_protocol(
    trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.symlink_to(trained_run)
    weights = hash_file(load_run(run).checkpoint / "model.safetensors")
    protocol = {
        "corpus": "a|*text*",
        "split": "test",
        "unit": "bits_per_byte",
        "memory": 8,
        "text": "a1" * 32,
    }
    score = {"value": 2.345678, "protocol": protocol, "checkpoint": {"sha256": weights}}
    path = trained_run / "score-test.json"
    try:
        path.write_text(json.dumps(score))
        (other := trained_run / "score-validation.json").write_text(
            json.dumps(score | {"value": 1.5, "checkpoint": {"sha256": "else"}})
        )
        export.main(run, tmp_path / "out", title="A <small> one", license="apache-2.0")
    finally:
        path.unlink()
        other.unlink()
    card = (tmp_path / "out" / "README.md").read_text()
    assert r"| a\|\*text\*, test | 2.3457 | bits per byte | memory 8; text a1a1a1a1a1a1 |" in card
    assert "1.5000" not in card and r"# A \<small\> one" in card and weights in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    # As the hub reads it.
    about = ModelCard.load(tmp_path / "out" / "README.md").data
    assert about.license == "apache-2.0" and about.pipeline_tag == "text-generation"
    (result,) = about.eval_results
    assert (result.metric_type, result.metric_value) == ("bits_per_byte", 2.345678)
    assert (result.dataset_name, result.dataset_split) == ("a|*text*", "test")


def vocabularies() -> dict[str, Tokenizer]:
    lines = ["the book of memory\n", "was read by one <unk> who wrote it\n"] * 20
    # Words may be spelt like the end of a line, or like padding.
    words = "".join([*lines, "a <pad> b <eos> c\n"]).encode()
    return {
        "words": WordTokenizer.build(Counter(split_words(words))),
        "sentencepiece": SentencePieceTokenizer.train(iter(lines), 290, "bpe"),
    }


@pytest.mark.parametrize("kind", ["words", "sentencepiece"])
def test_tokenizers_make_what_the_pipeline_makes(
    kind: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through an exported folder and AutoTokenizer, and saved once more by it."""
    vocabulary = vocabularies()[kind]
    loaded = load_run(trained_run)
    model = type(loaded.model)(loaded.config.model, vocabulary.size)
    exporting.write_folder(replace(loaded, model=model, vocabulary=vocabulary), tmp_path, "5GB")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    first = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    first.save_pretrained(tmp_path / "again")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert type(tokenizer).__module__.startswith("transformers_modules.")
    texts = [" the book of memory \n was <unk> read \n"]
    if kind == "words":
        texts.append(" the <eos> book \n of <pad> \n \n")
    if kind == "sentencepiece":
        texts += ["<s> the <pad> é → ▁ \r\n\n", "", "bookbook  two spaces <unk>"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == [vocabulary.start, *vocabulary.encode(text.encode()).tolist()]
        assert tokenizer.decode(ids[1:]) == text
        assert tokenizer.decode([*ids[1:], vocabulary.size], skip_special_tokens=True) == text
    batch = tokenizer(["book", " the book of memory"], padding=True)
    assert batch["input_ids"][0][0] == vocabulary.size == tokenizer.pad_token_id
    assert batch["attention_mask"][0][0] == 0 and len(tokenizer) == vocabulary.size + 1
    assert tokenizer.get_vocab()["<pad>"] == vocabulary.size


def test_sound_has_no_tokenizer_and_the_card_says_how_to_go_without(
    trained_run: Path, tmp_path: Path
) -> None:
    loaded = replace(load_run(trained_run), vocabulary=MuLawTokenizer())
    exporting.write_folder(loaded, tmp_path, "5GB")
    assert not list(tmp_path.glob("*token*")) and (tmp_path / "vocabulary.json").exists()
    tokenizer = loaded.vocabulary.kind in TOKENIZERS
    assert "AutoTokenizer" not in model_card(loaded, trained_run, "sound", tokenizer)


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path, trained_run: Path) -> None:
    vocabulary = load_run(trained_run).vocabulary
    tokenizer: HubTokenizer = tokenizer_of(vocabulary, tmp_path)
    assert tokenizer.decode([97, 0xC3, 98]) == "a\N{REPLACEMENT CHARACTER}b"
    assert len(tokenizer.get_vocab()) == 257
    with pytest.raises(ValueError, match="filename_prefix"):
        tokenizer.save_vocabulary(str(tmp_path), "x")


def test_exported_code_imports_nothing_of_ours() -> None:
    files = code_files(["lm.hub.modeling", "lm.hub.subword_tokenizer"])
    assert {"lm_model_layer.py", "lm_model_incremental.py", "data_common_files.py"} <= files.keys()
    for text in files.values():
        assert not re.search(r"(from|import) (lm|data)\b", text)
    assert not any(name.startswith("data_tok") for name in code_files(["lm.hub.modeling"]))


def test_mistakes_get_one_sentence(folder: Path, trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        export.main(trained_run, tmp_path)
    with pytest.raises(ValueError, match="exists"):
        import_folder.main(folder, tmp_path)
    with pytest.raises(ValueError, match="holds no model"):
        import_folder.main(tmp_path, tmp_path / "x")
    words = vocabularies()["words"]
    words.save(tmp_path)
    with pytest.raises(ValueError, match="knows 256 tokens"):
        import_folder.main(folder, tmp_path / "x", tmp_path)
    assert not (tmp_path / "x").exists()
