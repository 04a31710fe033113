"""Models of transformers as runs: equal logits in every way of reading, after save, export and
import; and the plain model again, bit for bit.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lm import adopt, export, import_folder
from lm.inference.inference_config import Lengths, Placement
from lm.inference.loading import load_run
from tests.lm.pretrained import (
    COVERING,
    SHAPES,
    SHORT,
    TOKENS,
    by_segments,
    same,
    saved,
    token_by_token,
    weights_of,
)


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_a_run_its_export_and_its_import_give_the_logits_of_transformers(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    ids = torch.randint(256, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    expected = AutoModelForCausalLM.from_pretrained(models[name])(ids).logits
    assert expected.std() > 0.3
    adopt.main(str(models[name]), tmp_path / "run", COVERING)
    export.main(tmp_path / "run", tmp_path / "out", max_shard_size="50KB")
    import_folder.main(tmp_path / "out", tmp_path / "again")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    padded = torch.cat([torch.full((2, 3), 7), ids], dim=1)
    mask = (torch.arange(TOKENS + 3) >= 3).expand(2, -1).clone()
    mask[1, 3] = False
    left = theirs(padded, attention_mask=mask.long()).logits[:, 3:]
    for run in ("run", "again"):
        loaded = load_run(tmp_path / run)
        for logits in (
            by_segments(loaded, ids, keep=False),
            by_segments(loaded, ids, keep=True),
            token_by_token(loaded, ids),
        ):
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(left[0], expected[0], rtol=0, atol=1e-4)
    shorter = AutoModelForCausalLM.from_pretrained(models[name])(ids[1:, 1:]).logits
    torch.testing.assert_close(left[1:, 1:], shorter, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_the_plain_model_comes_back_bit_for_bit(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    adopt.main(str(models[name]), tmp_path / "run", SHORT)
    export.main(tmp_path / "run", tmp_path / "plain", plain=True, max_shard_size="30KB")
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 1
    assert same(weights_of(tmp_path / "plain"), weights_of(models[name]))
    assert (tmp_path / "plain/config.json").read_bytes() != b""
    configs = [
        json.loads((f / "config.json").read_text()) for f in (tmp_path / "plain", models[name])
    ]
    assert configs[0] == configs[1]
    kind = type(AutoModelForCausalLM.from_pretrained(models[name]))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")) is kind
    # And from what an export carries along.
    export.main(tmp_path / "run", tmp_path / "out")
    import_folder.main(tmp_path / "out", tmp_path / "again")
    export.main(tmp_path / "again", tmp_path / "twice", plain=True)
    assert same(weights_of(tmp_path / "twice"), weights_of(models[name]))


@pytest.mark.parametrize("drawn", [True, False])
def test_an_export_is_sampled_as_its_base_says(
    models: dict[str, Path], tmp_path: Path, drawn: bool
) -> None:
    model = shutil.copytree(models["SmolLM"], tmp_path / "model")
    stated = {"do_sample": True, "temperature": 0.6, "top_p": 0.9} if drawn else {}
    stated["repetition_penalty"] = 1.1
    (model / "generation_config.json").write_text(json.dumps(stated | {"max_length": 9}))
    adopt.main(str(model), tmp_path / "run", SHORT)
    export.main(tmp_path / "run", tmp_path / "out")
    found = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert stated.items() <= found.items() and "max_length" not in found
    assert drawn or "do_sample" not in found


def test_a_base_that_has_changed_is_not_made_again(models: dict[str, Path], tmp_path: Path) -> None:
    """Other positions would be another model with the same weights."""
    adopt.main(str(models["SmolLM"]), tmp_path / "run", SHORT)
    file = tmp_path / "run/base/config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"rms_norm_eps": 0.5}))
    with pytest.raises(ValueError, match="does not match its hash; adopt the model again"):
        export.main(tmp_path / "run", tmp_path / "plain", plain=True)
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_types_of_weights(
    tmp_path: Path, dtype: torch.dtype, precision: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(SHAPES["SmolLM"], tmp_path / "model", dtype)
    adopt.main(str(model), tmp_path / "run", SHORT, precision=precision, check=True)
    assert "largest difference of logits" in capsys.readouterr().out
    stored = weights_of(tmp_path / "run/checkpoints/step-00000000")
    halved = precision == "bfloat16" or (precision is None and dtype == torch.bfloat16)
    wanted = torch.bfloat16 if halved else torch.float32
    ours = {t.dtype for n, t in stored.items() if "compression" not in n}
    assert ours == {wanted}
    export.main(tmp_path / "run", tmp_path / "plain", plain=True)
    back = {n: t.to(torch.bfloat16) for n, t in weights_of(model).items()} if halved else None
    assert same(weights_of(tmp_path / "plain"), back or weights_of(model))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain").dtype == (
        torch.bfloat16 if halved else dtype
    )
    export.main(tmp_path / "run", tmp_path / "out")
    assert {t.dtype for t in weights_of(tmp_path / "out").values()} == {wanted}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == str(wanted)[6:]


def test_an_export_in_other_numbers(models: dict[str, Path], tmp_path: Path) -> None:
    adopt.main(str(models["Llama"]), tmp_path / "run", SHORT)
    export.main(tmp_path / "run", tmp_path / "out", precision="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.dtype == torch.bfloat16
    ids = torch.randint(256, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    ours = load_run(tmp_path / "run", placement=Placement("cpu", "bfloat16"))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, by_segments(ours, ids, keep=False))
    with pytest.raises(ValueError, match="precision has no effect on a --plain model"):
        export.main(tmp_path / "run", tmp_path / "p", plain=True, precision="float32")


def test_check_says_how_far_a_run_is_from_transformers(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopt.main(str(models["Qwen2"]), tmp_path / "run", SHORT, check=True)
    said = capsys.readouterr().out
    assert "from transformers on 20 tokens in 4 segments of 5 is" in said
    assert float(said.split(" of 5 is ")[1].split(",")[0]) < 1e-4


def test_reads_with_other_sinks(models: dict[str, Path], tmp_path: Path) -> None:
    ids = torch.randint(256, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    read = {}
    for sinks in (0, 2):
        adopt.main(str(models["Llama"]), tmp_path / f"{sinks}", replace(SHORT, sinks=sinks))
    for name, run, lengths in (
        ("none", "0", None),
        ("two", "2", None),
        ("two of none", "0", Lengths(sinks=2)),
        ("none of two", "2", Lengths(sinks=0)),
    ):
        with torch.no_grad():
            read[name] = by_segments(load_run(tmp_path / run, lengths=lengths), ids, keep=True)
    assert torch.equal(read["two"], read["two of none"])
    assert torch.equal(read["none"], read["none of two"])
    assert (read["two"] - read["none"])[:, 32:].abs().max() > 1e-4
    with pytest.raises(ValueError, match="sinks must fit into"):
        load_run(tmp_path / "0", lengths=Lengths(sinks=100))


def test_reads_in_other_numbers_with_other_lengths(models: dict[str, Path], tmp_path: Path) -> None:
    adopt.main(str(models["Llama"]), tmp_path / "run", SHORT)
    ids = torch.randint(256, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = by_segments(load_run(tmp_path / "run"), ids, keep=False)
        coarse = load_run(tmp_path / "run", placement=Placement("cpu", "bfloat16"))
        assert {weight.dtype for weight in coarse.model.parameters()} == {torch.bfloat16}
        assert coarse.model.embedding.weight.data_ptr() != 0
        near = by_segments(coarse, ids, keep=True).float()
        none = load_run(tmp_path / "run", lengths=Lengths(compressed=0))
        near_none = by_segments(none, ids, keep=True)
    assert 0 < (near - exact).abs().mean() < 0.1
    torch.testing.assert_close(near_none[:, :24], exact[:, :24], rtol=0, atol=1e-5)
    assert (near_none[:, 32:] - exact[:, 32:]).abs().max() > 1e-4


def test_what_a_compressed_slot_weighs(models: dict[str, Path], tmp_path: Path) -> None:
    """As many tokens as it was merged from, unless one says otherwise; single slots as one."""
    weighed = {
        "merges": SHORT,
        "not": replace(SHORT, proportional=False),
        "keeps": replace(SHORT, function="most_used"),
    }
    for name, shape in weighed.items():
        adopt.main(str(models["Llama"]), tmp_path / name, shape)
    configs = {name: load_run(tmp_path / name).model.config for name in weighed}
    said = {name: config.proportional_attention for name, config in configs.items()}
    assert said == {"merges": True, "not": False, "keeps": False}
    with pytest.raises(ValueError, match="most_used keeps single ones"):
        adopt.main(
            str(models["Llama"]), tmp_path / "x", replace(weighed["keeps"], proportional=True)
        )
