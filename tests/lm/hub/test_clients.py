"""Programs that people already have, on an exported folder: what they ask of a model of
transformers works, or is refused in a sentence.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from lm import export, serve

TEXT = "the book of memory was read by one who had time for a long book and no memory. " * 4


@pytest.fixture(scope="module")
def folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in bytes."""
    folder = tmp_path_factory.mktemp("exported") / "bytes"
    export.main(trained_run, folder)
    return folder


@pytest.fixture(scope="module")
def hf_folder(hf_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with a tokenizer of the hub's kind, and a chat template."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export.main(hf_run, folder)
    return folder


def load(folder: Path, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    return kind.from_pretrained(folder, trust_remote_code=True, **options).eval()


def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def read(folder: Path, texts: Any = TEXT, **options: Any) -> Any:
    return tokenizer_of(folder)(texts, return_tensors="pt", **options)


def test_a_model_without_its_head(folder: Path) -> None:
    """Kept memory, whole texts and the base of the whole model give the same hidden states."""
    whole, bare, inputs = load(folder), load(folder, AutoModel), read(folder)
    with torch.no_grad():
        logits = whole(**inputs).logits
        for hidden in (
            bare(**inputs).last_hidden_state,
            bare(**inputs, use_cache=False, return_dict=False)[0],
            whole.base_model(**inputs).last_hidden_state,
        ):
            torch.testing.assert_close(whole.get_output_embeddings().logits(hidden), logits)
    with pytest.raises(ValueError, match="AutoModel has no head to write with"):
        bare.generate(**inputs)


def test_hidden_states_of_every_layer(folder: Path) -> None:
    """By a padded batch and by hand; the first are embeddings, the last make the logits."""
    model = load(folder, output_hidden_states=True)
    short = TEXT[:30]
    batch = read(folder, [TEXT, short], padding=True)
    with torch.no_grad():
        states = model(**batch)
        alone = model(**read(folder, short)).hidden_states
    assert len(states.hidden_states) == model.config.num_hidden_layers + 1
    for layer, own in zip(states.hidden_states, alone, strict=True):
        torch.testing.assert_close(layer[1, -own.shape[1] :], own[0])
    torch.testing.assert_close(
        states.hidden_states[0][0], model.model.embedding(batch.input_ids[0])
    )
    torch.testing.assert_close(model.model.head.logits(states.hidden_states[-1]), states.logits)
    middle = states.hidden_states[1][0, : model.config.segment]
    first = model.model.layers[0]
    seen: list[Any] = []
    hook = first.register_forward_hook(lambda _, __, made: seen.append(made.hidden_BTD))
    model(**read(folder), output_hidden_states=False, use_cache=False)
    hook.remove()
    torch.testing.assert_close(middle, seen[0][0])
    with pytest.raises(ValueError, match="hidden states of every layer come of whole texts"):
        model(**batch, use_cache=True)


def test_features_of_a_pipeline(folder: Path) -> None:
    made = pipeline(
        "feature-extraction", model=load(folder, AutoModel), tokenizer=tokenizer_of(folder)
    )
    (rows,) = made("a long book")
    assert len(rows) == len("a long book") + 1


def test_what_is_refused(folder: Path) -> None:
    model, inputs = load(folder), read(folder)
    for helper in ({"assistant_model": load(folder)}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(**inputs, max_new_tokens=4, do_sample=False, **helper)
    with pytest.raises(ValueError, match="quantization_config is not known here"):
        load(folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(ValueError, match="do not make 300 of them"):
        model.resize_token_embeddings(300)
    assert model.resize_token_embeddings(len(tokenizer_of(folder))) is model.model.embedding


def test_stop_strings(folder: Path) -> None:
    """generate hands the tokenizer that they need on to the model's forward."""
    model, tokenizer, inputs = load(folder), tokenizer_of(folder), read(folder)

    def written(**options: Any) -> str:
        torch.manual_seed(0)
        ids = model.generate(**inputs, max_new_tokens=40, do_sample=True, **options)
        return str(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :]))

    whole = written()
    stop = next(letter for letter in whole if letter.isascii() and letter != whole[0])
    end = written(tokenizer=tokenizer, stop_strings=[stop])
    assert end == whole[: whole.index(stop) + 1] != whole


@pytest.mark.slow
def test_a_compiled_model(folder: Path) -> None:
    """dynamo goes around what depends on the tokens; what becomes of its graphs is torch's."""
    model, inputs = load(folder), read(folder)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager")(**inputs).logits
        torch.testing.assert_close(compiled, model(**inputs).logits)


def test_trainer(folder: Path, tmp_path: Path) -> None:
    """transformers' own; compression learns with the rest, and its checkpoint loads."""
    model, tokenizer = load(folder).train(), tokenizer_of(folder)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2,
        use_cpu=True, report_to=[], logging_steps=1, save_steps=4, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[tokenizer(TEXT)] * 8,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0]
    moved = {name for name, weight in model.named_parameters() if not weight.equal(before[name])}
    assert moved == {*before}
    again, inputs = load(tmp_path / "checkpoint-4"), read(folder)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model.eval()(**inputs).logits)


def test_adapters_of_peft(folder: Path, tmp_path: Path) -> None:
    """On every linear map, memory's projections included: the merged model is the same."""
    peft = pytest.importorskip("peft", reason="needs peft")
    options = peft.LoraConfig(target_modules="all-linear", r=4, init_lora_weights="gaussian")
    model, inputs = peft.get_peft_model(load(folder).double(), options), read(folder)
    for module in model.modules():
        for second in getattr(module, "lora_B", {}).values():
            torch.nn.init.normal_(second.weight, std=0.05)
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    model.train()
    model(**inputs, labels=inputs.input_ids).loss.backward()
    assert learning and all(weight.grad is not None for weight in learning.values())
    assert any("query_key_value" in name for name in learning)
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load(folder).double(), tmp_path)
    with torch.no_grad():
        plain, adapted = load(folder).double()(**inputs).logits, model(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, adapted)
        kept = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(kept, adapted)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, adapted)
    assert (adapted - plain).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "hf"])
def test_supervised_fine_tuning_of_trl(
    kind: str, folder: Path, hf_folder: Path, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl", reason="needs trl")
    from datasets import Dataset

    place = folder if kind == "bytes" else hf_folder
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2,
        use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", max_length=256,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        load(place),
        args=arguments,
        train_dataset=Dataset.from_list([{"text": TEXT}] * 12),
        processing_class=tokenizer_of(place),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_distillation_of_trl(hf_folder: Path, tmp_path: Path) -> None:
    """GKD with an exported teacher, on text that the student writes and on text that is given."""
    pytest.importorskip("trl", reason="needs trl")
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student = load(hf_folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.05 * torch.randn_like(weight)
    turns = [
        {"role": "user", "content": "The cat of line 3"},
        {"role": "assistant", "content": TEXT[:60]},
    ]
    for share in (0.0, 1.0):
        arguments = GKDConfig(
            str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2,
            use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", max_length=256,
            max_new_tokens=12, lmbda=share,
        )  # fmt: skip
        trainer = GKDTrainer(
            model=student,
            teacher_model=load(hf_folder),
            args=arguments,
            train_dataset=Dataset.from_list([{"messages": turns}] * 8),
            processing_class=tokenizer_of(hf_folder),
        )
        trainer.train()
        losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_server_of_transformers(hf_folder: Path, tmp_path: Path) -> None:
    """A client of OpenAI's interface gets what generate writes, whole and in pieces."""
    openai = pytest.importorskip("openai", reason="needs the extra serve")
    port = free_port()
    # Its name is what one types, from where one types it.
    name, place = hf_folder.name, hf_folder.parent
    command = [sys.executable, "-m", "lm.serve", "--folder", name, "--port", str(port)]
    server = subprocess.Popen(
        command,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        client = openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none")
        answers(port)
        asked: Any = {
            "model": name,
            "messages": [{"role": "user", "content": "The cat of line 3"}],
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = client.chat.completions.create(**asked).choices[0].message.content
        pieces = client.chat.completions.create(**asked, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
        assert [model.id for model in client.models.list()] == [name]
        drawn = [
            client.chat.completions.create(**asked | {"temperature": 2, "seed": seed})
            for seed in (1, 2, 1)
        ]
        first, second, again = (each.choices[0].message.content for each in drawn)
        assert first == again and len({whole, first, second}) == 3
        told = chatted(name, port, tmp_path, asked["messages"][0]["content"])
        # It shows what it gets as Markdown, in lines.
        assert letters(whole) and letters(whole) in letters(told)
    finally:
        server.kill()
        server.communicate()
    tokenizer = tokenizer_of(hf_folder)
    inputs = tokenizer.apply_chat_template(
        asked["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = load(hf_folder).generate(**inputs, max_new_tokens=12, do_sample=False)
    new = written[0, inputs["input_ids"].shape[1] :]
    assert len(new) == 12 and whole == tokenizer.decode(new, skip_special_tokens=True)


def chatted(model: str, port: int, place: Path, said: str) -> str:
    """What `transformers chat` shows of a conversation of one turn."""
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "chat", model, f"http://localhost:{port}"]
    command += ["max_new_tokens=12", "do_sample=False"]
    # It asks whether to go on where the limit of tokens is reached.
    typed = f"{said}\nn\n!exit\n"
    # Offline it asks nobody, not this machine either.
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "0"}
    told = subprocess.run(
        command, input=typed, capture_output=True, text=True, cwd=place, env=surroundings,
        check=False, timeout=240,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return told.stdout


def letters(text: str) -> str:
    """Letters and digits of a text, in their order."""
    return "".join(filter(str.isalnum, text))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


def answers(port: int) -> None:
    """Wait until a server does."""
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://localhost:{port}/health").close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError


@pytest.mark.bad_input("lm.serve")
def test_what_cannot_be_served(folder: Path, hf_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model; write one with python -m lm\.export"):
        serve.main(tmp_path)
    with pytest.raises(ValueError, match="is our own, and transformers' server writes with"):
        serve.main(folder)
    pytest.importorskip("openai", reason="needs the extra serve")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            serve.main(hf_folder, device="cuda")
    (tmp_path / "a@b").symlink_to(hf_folder)
    with pytest.raises(ValueError, match=r"takes what follows the @ of .* for a version"):
        serve.main(tmp_path / "a@b", port=free_port())
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"nothing can listen at localhost:{port}: Address"):
            serve.main(hf_folder, port=port)
