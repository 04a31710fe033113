"""The model inside transformers: generate in all its ways equals teacher forcing through many
compressions, padding never enters memory, and it trains.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from lm.hub import modeling
from lm.hub.cache import CACHE, CompressiveCache
from lm.hub.modeling import CompressiveTransformerForCausalLM
from lm.hub.padding import compacted, mean_loss
from lm.model.incremental import Reader
from lm.model.model_config import ModelConfig
from tests.lm.hub.conftest import hub_model
from tests.lm.model.cases import SHAPES, TINY, VOCABULARY, run, stream

PAD = VOCABULARY
NEW = 28
"""Tokens generated: seven compressions."""


def forced(model: CompressiveTransformerForCausalLM, text: Tensor) -> Tensor:
    """Logits of a text [L] by whole segments of the model's own forward."""
    segment = model.config.segment
    whole = torch.nn.functional.pad(text[None], (0, -len(text) % segment))
    with torch.no_grad():
        return run(model.model, whole)[0][0, : len(text)]


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts filled up on the left, and their mask."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), PAD)
    for row, text in zip(ids, texts, strict=True):
        row[longest - len(text) :] = text
    return ids, (ids != PAD).long()


TEXTS = [stream(5, 1, TINY, seed)[0, :length] for seed, length in enumerate((3, 17, 8, 1))]


@pytest.mark.parametrize(
    "name",
    [
        *("memory equals segment", "rotary", "most_used, memory longer", "attended zeros"),
        *("Llama's shape, low rank", "Llama's shape, most used", "filters"),
    ],
)
def test_greedy_equals_teacher_forcing_and_our_reader_through_compressions(name: str) -> None:
    model = hub_model(SHAPES[name])
    prompt = stream(2, 1, SHAPES[name])[:, :7]
    text = model.generate(prompt, max_new_tokens=NEW, do_sample=False)[0]
    assert torch.equal(forced(model, text).argmax(-1)[6:-1], text[7:])
    reader = Reader(model.model, model.model.empty_memory(1))
    reader.read(prompt)
    for token in text[7:]:
        assert reader.logits().argmax(-1) == token
        reader.read(token[None, None])
    slow = model.generate(prompt, max_new_tokens=NEW, do_sample=False, use_cache=False)
    assert torch.equal(slow[0], text)


def test_a_padded_batch_gives_what_each_text_gives_alone(
    model: CompressiveTransformerForCausalLM,
) -> None:
    ids, mask = padded(TEXTS)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    unmasked = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(together, unmasked)
    for text, row in zip(TEXTS, together, strict=True):
        alone = model.generate(text[None], max_new_tokens=NEW, do_sample=False)[0]
        assert torch.equal(row[-len(alone) :], alone)


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_padding_anywhere_changes_no_logits(
    model: CompressiveTransformerForCausalLM, side: str
) -> None:
    """In evaluation with and without a cache, whatever stands in the padding."""
    ids = torch.randint(VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(ids)
    for row, text in enumerate(TEXTS):
        place = torch.arange(len(text))
        if side == "left":
            place = place + 24 - len(text)
        elif side == "between":
            place = torch.randperm(24, generator=torch.Generator().manual_seed(row))
            place = place[: len(text)].sort().values
        ids[row, place], mask[row, place] = text, 1
    for use_cache in (True, False):
        with torch.no_grad():
            logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
        for row, text in enumerate(TEXTS):
            expected = forced(model, text)
            torch.testing.assert_close(
                logits[row, mask[row].bool()], expected, rtol=1e-9, atol=1e-11
            )


def test_a_text_may_come_in_parts_through_a_returned_cache(
    model: CompressiveTransformerForCausalLM,
) -> None:
    text = stream(9, 2, TINY)
    cache, logits = None, []
    with torch.no_grad():
        for part in text.split(5, dim=1):
            output = model(part, use_cache=True, **{CACHE: cache})
            cache = output[CACHE]
            logits.append(output.logits)
    expected, memory = run(model.model, text)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-9, atol=1e-11)
    assert cache is not None
    assert cache.get_seq_length() == text.shape[1]
    torch.testing.assert_close(cache.memory.memory, memory.memory, rtol=1e-9, atol=1e-11)
    assert cache.memory.memory[0].shape[1] == TINY.memory


def test_a_long_text_is_read_in_parts_for_its_last_logits(
    model: CompressiveTransformerForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling, "PART", 5)
    ids, mask = padded(TEXTS)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        last = model(ids, attention_mask=mask, logits_to_keep=1).logits
        two = model(ids, attention_mask=mask, logits_to_keep=2).logits
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(two, whole[:, -2:])


def test_generate_goes_on_from_a_cache(model: CompressiveTransformerForCausalLM) -> None:
    text = stream(4, 1, TINY)
    whole = model.generate(text, max_new_tokens=NEW, do_sample=False)
    cache = CompressiveCache()
    first = model.generate(text, max_new_tokens=9, do_sample=False, **{CACHE: cache})
    rest = model.generate(first, max_new_tokens=NEW - 9, do_sample=False, **{CACHE: cache})
    assert torch.equal(rest, whole)


def test_chunks_of_a_prompt_change_nothing(model: CompressiveTransformerForCausalLM) -> None:
    text = stream(8, 2, TINY)
    config = GenerationConfig(max_new_tokens=9, do_sample=False, prefill_chunk_size=7)
    config.pad_token_id = PAD
    expected = model.generate(text, max_new_tokens=9, do_sample=False)
    assert torch.equal(model.generate(text, generation_config=config), expected)


def test_beams_carry_their_own_memory(model: CompressiveTransformerForCausalLM) -> None:
    """The cache follows the beams: the same as reading every beam anew, and the score is true."""
    ids, mask = padded(TEXTS)
    options: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": 14,
        "num_beams": 3,
        "do_sample": False,
        "num_return_sequences": 2,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    fast, slow = model.generate(ids, **options), model.generate(ids, use_cache=False, **options)
    assert torch.equal(fast.sequences, slow.sequences)
    torch.testing.assert_close(fast.sequences_scores, slow.sequences_scores)
    for row, score in zip(fast.sequences, fast.sequences_scores, strict=True):
        text = row[row != PAD]
        chosen = forced(model, text).log_softmax(-1)[:-1].gather(1, text[1:, None])[-14:]
        torch.testing.assert_close(chosen.mean(), score.double(), rtol=1e-5, atol=1e-6)


def test_samples_are_reproducible_and_differ(model: CompressiveTransformerForCausalLM) -> None:
    options: dict[str, Any] = {
        "do_sample": True,
        "max_new_tokens": NEW,
        "num_return_sequences": 3,
        "top_k": 8,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.95,
        "temperature": 0.9,
        "repetition_penalty": 1.1,
    }
    torch.manual_seed(1)
    first = model.generate(TEXTS[1][None], **options)
    torch.manual_seed(1)
    assert torch.equal(first, model.generate(TEXTS[1][None], use_cache=False, **options))
    assert len({tuple(row.tolist()) for row in first}) == 3


def test_finished_lanes_are_filled_up_and_disturb_nobody(
    model: CompressiveTransformerForCausalLM,
) -> None:
    ids, mask = padded(TEXTS)
    options = {"max_new_tokens": NEW, "do_sample": False}
    whole = model.generate(ids, attention_mask=mask, **options)
    end = int(whole[0, -20])
    stopped = model.generate(ids, attention_mask=mask, eos_token_id=end, **options)
    for row, full in zip(stopped, whole, strict=True):
        new = full[ids.shape[1] :].tolist()
        length = new.index(end) + 1 if end in new else len(new)
        assert row[ids.shape[1] :][:length].tolist() == new[:length]
        assert set(row[ids.shape[1] + length :].tolist()) <= {PAD}
    assert (stopped == PAD).sum() > (ids == PAD).sum()


def test_the_loss_is_the_likelihood_of_the_labels(
    model: CompressiveTransformerForCausalLM,
) -> None:
    text = stream(5, 2, TINY)[:, :18]
    labels = text.clone()
    labels[0, :7] = -100
    with torch.no_grad():
        loss = model(text, labels=labels).loss
    nats = [-forced(model, row).log_softmax(-1)[:-1].gather(1, row[1:, None])[:, 0] for row in text]
    counted = torch.cat([nats[0][6:], nats[1]])
    torch.testing.assert_close(loss, counted.mean(), rtol=1e-9, atol=0)
    with torch.no_grad():
        shared = model(text, labels=labels, num_items_in_batch=40).loss
    torch.testing.assert_close(shared, counted.sum() / 40, rtol=1e-9, atol=0)
    nothing = torch.full((1, 3), -100)
    assert mean_loss(torch.zeros(1, 3, 5), nothing, nothing < 0, torch.tensor(1.0), None) == 0


def test_parts_of_a_batch_add_up_to_its_loss_auxiliary_included(
    model: CompressiveTransformerForCausalLM,
) -> None:
    """As Trainer accumulates gradients: each part's loss is told the labels of the whole batch."""
    text = stream(5, 4, TINY)
    items = text[:, 1:].numel()
    model.train()
    whole = model(text, labels=text).loss
    parts = [model(part, labels=part, num_items_in_batch=items).loss for part in text.split(2)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-9, atol=0)
    bare = model.eval()(text, labels=text, use_cache=False).loss
    assert whole - bare > 0.01


@pytest.mark.parametrize(
    "name", ["memory equals segment", "auto-encoding", "gelu, untied, one head"]
)
def test_checkpointing_changes_no_gradient_and_compression_learns(name: str) -> None:
    model, text = hub_model(SHAPES[name]).train(), stream(5, 2, SHAPES[name])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(text, labels=text).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient)
        assert gradient.abs().max() > 0, parameter


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, tied=False),
        replace(TINY, cutoffs=(4, 8), cluster_divisor=2),
        SHAPES["memory in one layer"],
        SHAPES["Llama's shape, low rank"],
    ],
    ids=["tied", "untied", "adaptive", "memory in one layer", "low rank"],
)
def test_saved_and_loaded_it_is_the_same_model(config: ModelConfig, tmp_path: Path) -> None:
    """Shared matrices once in the file, in several shards, and shared again when loaded."""
    model = hub_model(config)
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = CompressiveTransformerForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.sizes() == config and loaded.dtype == torch.float64
    for (name, mine), (other, theirs) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(mine, theirs)
    text = stream(3, 2, config)
    with torch.no_grad():
        # transformers leaves weights where the file has them, in which order sums may go otherwise.
        close = {"rtol": 1e-13, "atol": 1e-13}
        torch.testing.assert_close(loaded(text).logits, model(text).logits, **close)


def test_a_new_model_is_initialised_as_ours_is(model: CompressiveTransformerForCausalLM) -> None:
    torch.manual_seed(0)
    new = CompressiveTransformerForCausalLM(model.config)
    weight = new.model.blocks[0].feedforward.state_dict()
    (matrix, *_) = [value for name, value in weight.items() if value.dim() == 2]
    expected = (2 / 2**0.5 / matrix.shape[1]) ** 0.5
    assert 0.7 * expected < matrix.std() < 1.2 * expected
    assert new.model.head.bias.abs().max() == 0
    around_mean = hub_model(replace(TINY, compression_initial="mean")).config
    for block in CompressiveTransformerForCausalLM(around_mean).model.layers:
        assert not block.compression.projection.weight.any()


def test_what_cannot_be_read_is_refused(model: CompressiveTransformerForCausalLM) -> None:
    text = stream(2, 1, TINY)
    with pytest.raises(ValueError, match="from 0 to 10, not 12"):
        model(torch.tensor([[3, 12]]))
    with torch.no_grad():
        cache = model(text)[CACHE]
    with pytest.raises(ValueError, match="newest tokens"):
        cache.crop(1)
    with pytest.raises(ValueError, match="every column"):
        model(text, labels=text, logits_to_keep=1)
    with pytest.raises(ValueError, match="input_ids"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 8), max_new_tokens=2)
    with pytest.raises(ValueError, match="weights of attention are not kept"):
        model(text, output_attentions=True)
    with pytest.raises(ValueError, match="one kind"):
        model.generate(text, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="stateful"):
        model.generate(text, assistant_model=model, max_new_tokens=2)
    with pytest.raises(ValueError, match="evaluation only"):
        model.train()(text, use_cache=True, **{CACHE: cache})
    assert model.generate(text, max_new_tokens=2).shape == (1, 10) and model.training


def test_accelerate_places_the_whole_model_or_is_refused(
    model: CompressiveTransformerForCausalLM, tmp_path: Path
) -> None:
    """Sharded weights go through a device map; one that leaves weights on the disk is named."""
    model.save_pretrained(tmp_path / "model", max_shard_size="3KB")
    text, kind = stream(3, 1, TINY), CompressiveTransformerForCausalLM
    for device_map in ("auto", {"": "cpu"}):
        placed = kind.from_pretrained(tmp_path / "model", device_map=device_map)
        with torch.no_grad():
            assert torch.equal(placed(text).logits.cpu(), model(text).logits)
    split = {"model.embedding": "cpu", "model.head": "cpu", "model.norm": "cpu"}
    split["model.blocks"] = "disk"
    placed = kind.from_pretrained(
        tmp_path / "model", device_map=split, offload_folder=str(tmp_path / "disk")
    )
    with pytest.raises(ValueError, match="on one device"):
        placed(text)


def test_columns_of_tokens_are_found_again() -> None:
    ids = torch.tensor([[9, 1, 9, 2], [9, 9, 9, 9]])
    tokens, counts, column = compacted(ids, ids != 9)
    assert tokens.tolist() == [[1, 2], [0, 0]] and counts == [2, 0]
    assert column[0, [1, 3]].tolist() == [0, 1]


@pytest.mark.bad_input("exported model")
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_do_not_fit_are_refused_by_name(sharded: bool, tmp_path: Path) -> None:
    """transformers itself fills what is missing with random numbers, and says so in a warning."""
    model, kind = hub_model(), CompressiveTransformerForCausalLM
    model.save_pretrained(tmp_path, max_shard_size="3KB" if sharded else "5GB")
    (path, *_) = [p for p in tmp_path.glob("*.safetensors") if "model.norm.bias" in load_file(p)]
    whole = load_file(path)
    without = {name: tensor for name, tensor in whole.items() if name != "model.norm.bias"}
    changes = {
        r"model\.norm\.bias is missing": without,
        "model.other belongs to another model": whole | {"model.other": torch.zeros(2)},
        r"model\.norm\.bias has another size": whole | {"model.norm.bias": torch.zeros(5)},
    }
    for sentence, tensors in changes.items():
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(ValueError, match=sentence):
            kind.from_pretrained(tmp_path)
    save_file(whole, path, {"format": "pt"})
    loaded, found = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert torch.equal(loaded.model.norm.bias, model.model.norm.bias)


@pytest.mark.bad_input("exported model")
def test_pickles_quantisation_and_kernels_are_refused(
    model: CompressiveTransformerForCausalLM, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    kind = CompressiveTransformerForCausalLM
    for option in ({"quantization_config": {"load_in_8bit": True}}, {"use_kernels": True}):
        with pytest.raises(ValueError, match=f"{min(option)} is not known"):
            kind.from_pretrained(tmp_path, **option)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for options in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match=r"model\.safetensors"):
            kind.from_pretrained(tmp_path, **options)
