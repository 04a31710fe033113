"""Exported folders that are damaged, foreign or contradict themselves; two at once; kills."""

import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data.common import files, outputs, tensors
from data.common.integrity import SUMS
from lm import export, import_folder
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM
from lm.inference.loading import load_run
from lm.model.model_config import ModelConfig
from lm.model.ranges import JOINED_IN_TURN
from tests.damage import flips


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests must not change it."""
    target = tmp_path_factory.mktemp("exported") / "model"
    export.main(trained_run, target)
    return target


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, without the list of hashes that would tell of it."""
    target = tmp_path / "model"
    shutil.copytree(exported, target)
    (target / SUMS).unlink()
    return target


def refused(folder: Path, sentence: str) -> None:
    """The import says so and leaves nothing."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(ValueError, match=sentence) as error:
        import_folder.main(folder, folder.parent / "run")
    assert "\n" not in str(error.value)
    assert sorted(folder.parent.iterdir()) == before


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


FIELDS = list(ModelConfig().shape())
WRONG: list[tuple[str, Any, str]] = [
    ("model_type", "llama", "model_type"),
    ("vocab_size", "256", "vocab_size"),
    ("vocab_size", 0, "vocab_size"),
    ("vocab_size", 10**9, "knows 1000000000 tokens, but"),
    ("vocab_size", 2.5, "vocab_size"),
    ("run", [], "run"),
    ("run", {}, "must be given"),
    ("run", {"optim": 3}, "optim must be a section"),
    ("run", {"unknown": 3}, "unknown key unknown"),
    ("layers", 10**9, "too few for the 1000000000 layers"),
    ("layers", 10**30, "layers"),
    ("layers", 1, "of another model"),
    ("layers", 3, "lacks the weight"),
    ("layers", -1, "layers must be"),
    ("layers", True, "layers must be"),
    ("width", 10**9, "larger than any machine"),
    ("width", 32, "holds .* not as"),
    ("feedforward", 10**9, "holds .* not as"),
    ("cutoffs", [1, "x"], "cutoffs must be"),
    ("cutoffs", {"a": 1}, "cutoffs must be"),
    ("dropout", "nan", "dropout must be"),
    ("quantization_config", {"quant_method": "bitsandbytes"}, "quantization_config"),
    ("attn_implementation", "kernels-somebody/attention", "attn_implementation"),
    ("_attn_implementation", "flash_attention_2", "_attn_implementation"),
    ("experts_implementation", "grouped_mm", "experts_implementation"),
]


@pytest.mark.bad_input("lm.import_folder")
@pytest.mark.parametrize(("key", "value", "sentence"), WRONG)
def test_a_wrong_field_of_the_config_is_named(
    folder: Path, key: str, value: Any, sentence: str
) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | {key: value}))
    refused(folder, sentence)


@pytest.mark.bad_input("lm.import_folder")
@pytest.mark.parametrize("key", ["model_type", "vocab_size", "run", *FIELDS])
def test_a_missing_or_mistyped_field_of_the_config_is_named(folder: Path, key: str) -> None:
    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
    refused(folder, rf"config\.json: {key} is missing")
    (folder / "config.json").write_text(json.dumps(config | {key: {"no": ["such", "thing"]}}))
    refused(folder, "unknown key no" if key == "run" else key)


@pytest.mark.bad_input("lm.import_folder")
@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"run": NaN}', "\0\xff"])
def test_a_config_that_is_no_record_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, r"config\.json")


def without(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if n != name}, path)


def replaced(folder: Path, tensor: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.norm.bias": tensor}, path)


def flipped(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 4
    (folder / "model.safetensors").write_bytes(content)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def indexed(folder: Path, index: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight is missing": (lambda f: without(f, "model.norm.bias"), "lacks the weight model.norm"),
    "a weight too many": (
        lambda f: save_file({"x": torch.zeros(1)} | load_file(f / "model.safetensors"),
                            f / "model.safetensors"), "has x of another model"),
    "another size": (lambda f: replaced(f, torch.zeros(3)), r"float32 \[3\], not as numbers"),
    "whole numbers": (lambda f: replaced(f, torch.zeros(16).int()), "int32"),
    "empty": (lambda f: cut(f, 0), "cannot be read"),
    "half": (lambda f: cut(f, 5000), "cannot be read"),
    "a header alone": (lambda f: cut(f, 9), "cannot be read"),
    "a flipped bit": (flipped, "has changed since it was written"),
    "a pickle": (pickled, "may hold code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "may hold code"),
    "an index of nothing": (lambda f: indexed(f, {}), "lacks weight_map"),
    "an index that is a list": (lambda f: indexed(f, []), "lacks weight_map"),
    "an index to elsewhere": (lambda f: indexed(f, {"weight_map": {"a": "../a"}}), "is no file"),
    "an index of numbers": (lambda f: indexed(f, {"weight_map": {"a": 3}}), "is no file"),
    "a file of the index": (lambda f: indexed(f, {"weight_map": {"a": "b"}}), "cannot be read"),
    "no vocabulary": (lambda f: (f / "vocabulary.json").unlink(), "holds no vocabulary"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no model"),
}  # fmt: skip


@pytest.mark.bad_input("lm.import_folder")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused(folder: Path, name: str) -> None:
    damage, sentence = DAMAGES[name]
    damage(folder)
    refused(folder, sentence)


@pytest.mark.bad_input("exported model")
@pytest.mark.parametrize("name", ["a weight is missing", "a flipped bit", "half", "another size"])
def test_transformers_refuses_what_is_damaged_too(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the code in the folder, which would fill what lacks with random numbers."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    DAMAGES[name][0](folder)
    with pytest.raises(ValueError, match=r"model\.norm\.bias|has changed|cannot be read"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.bad_input("exported model")
def test_a_config_of_transformers_refuses_foreign_code(folder: Path) -> None:
    for key, value in (("quantization_config", {"bits": 4}), ("attn_implementation", "a/b")):
        with pytest.raises(ValueError, match=f"{key} .* is not known here"):
            CompressiveTransformerConfig(**{key: value})
    (folder / "config.json").write_text(json.dumps(config_of(folder) | {"layers": "two"}))
    with pytest.raises(ValueError, match="wrong type"):
        CompressiveTransformerForCausalLM.from_pretrained(folder)


@pytest.mark.bad_input("lm.export")
@pytest.mark.parametrize("size", ["", "5", "-5GB", "0MB", "five", "1.5GB", "5 GB"])
def test_a_shard_size_that_means_nothing_is_refused(
    trained_run: Path, tmp_path: Path, size: str
) -> None:
    with pytest.raises(ValueError, match="such as 500MB"):
        export.main(trained_run, tmp_path / "out", max_shard_size=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_of_an_export_and_of_an_import_follows_the_umask(
    trained_run: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        export.main(trained_run, tmp_path / "out" / "model", max_shard_size="20KB")
        import_folder.main(tmp_path / "out" / "model", tmp_path / "out" / "run")
        model: Any = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out" / "model", trust_remote_code=True
        )
        model.save_pretrained(tmp_path / "out" / "again")
    finally:
        os.umask(before)
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert sum(path.suffix == ".safetensors" for path in paths) > 2
    for path in paths:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.bad_input("lm.export")
def test_two_at_once_into_one_folder_get_one_folder_and_one_sentence(
    exported: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun, go_on = files.publish_folder, os.pipe(), os.pipe()

    def slow(temporary: Path, final: Path) -> None:
        os.write(begun[1], b".")
        os.read(go_on[0], 1)
        original(temporary, final)

    for name, work in {
        "model": lambda: export.main(trained_run, tmp_path / "model"),
        "run": lambda: import_folder.main(exported, tmp_path / "run"),
    }.items():
        monkeypatch.setattr(outputs, "publish_folder", slow)
        first = forked(work)
        os.read(begun[0], 1)
        with pytest.raises(ValueError, match=r"another process writes .*: wait until it ends"):
            work()
        os.write(go_on[1], b".")
        assert os.waitpid(first, 0)[1] == 0
        with pytest.raises(ValueError, match="exists"):
            work()
        assert (tmp_path / name).is_dir() and not list(tmp_path.glob(".*"))


def forked(work: Callable[[], object]) -> int:
    """Do a work in a process of its own; returns its number."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.slow
def test_after_a_kill_at_any_moment_the_same_command_works(
    exported: Path, trained_run: Path, tmp_path: Path
) -> None:
    """The folder is whole or not there; what the killed process left goes with the next."""
    works = {
        "model": lambda: export.main(trained_run, tmp_path / "model"),
        "run": lambda: import_folder.main(exported, tmp_path / "run"),
    }
    for name, work in works.items():
        begun = time.monotonic()
        work()
        lasts = time.monotonic() - begun
        shutil.rmtree(tmp_path / name)
        for part in range(8):
            child = forked(work)
            time.sleep(lasts * (0.3 + 0.12 * part))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if not (tmp_path / name).exists():
                work()
            assert len(list((tmp_path / name).iterdir())) >= 3
            assert not list(tmp_path.glob(".*partial")), part
            shutil.rmtree(tmp_path / name)


def test_a_full_disk_leaves_nothing(
    exported: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise tensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        import_folder.main(exported, tmp_path / "run")
    with pytest.raises(OSError, match="No space left"):
        export.main(trained_run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_transformers_saved_in_half_precision_becomes_a_run(
    folder: Path, tmp_path: Path
) -> None:
    model = CompressiveTransformerForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    import_folder.main(folder, tmp_path / "run")
    loaded = load_run(tmp_path / "run").model
    for mine, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs.float())


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "vocabulary.json", "lm_model_layer.py", SUMS],
)
def test_a_flipped_bit_of_any_file_of_an_export_is_found(
    exported: Path, tmp_path: Path, name: str
) -> None:
    """By our import and by transformers, which asks this model's class."""
    shutil.copytree(exported, tmp_path / "model")
    for _ in flips(tmp_path / "model" / name, 4):
        with pytest.raises(ValueError, match="take all files of one export"):
            import_folder.main(tmp_path / "model", tmp_path / "run")
        with pytest.raises(ValueError, match="take all files of one export"):
            CompressiveTransformerForCausalLM.from_pretrained(tmp_path / "model")
    assert not (tmp_path / "run").exists()
    model = CompressiveTransformerForCausalLM.from_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / SUMS).exists()
    import_folder.main(tmp_path / "model", tmp_path / "run")


@pytest.mark.parametrize("had", range(len(JOINED_IN_TURN)))
def test_an_export_of_an_earlier_version_becomes_a_run(
    trained_run: Path, folder: Path, had: int
) -> None:
    """Its config.json has not the settings that joined since, and nothing of it has hashes."""
    since = {name for names in JOINED_IN_TURN[had:] for name in names}
    config = {name: value for name, value in config_of(folder).items() if name not in since}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    import_folder.main(folder, folder.parent / "run")
    assert load_run(folder.parent / "run").model.config == load_run(trained_run).model.config
