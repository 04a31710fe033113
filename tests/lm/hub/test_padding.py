"""Padded batches in training: whatever a collator makes of them, they cost what their texts do."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from lm.hub.byte_tokenizer import HubByteTokenizer
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM
from tests.lm.hub.conftest import hub_model
from tests.lm.model.cases import SHAPES, TINY, VOCABULARY, stream

PAD = VOCABULARY
TEXTS = [stream(9, 1, TINY, seed)[0, :length] for seed, length in enumerate((23, 1, 31, 8, 3))]


def cost(model: CompressiveTransformerForCausalLM, texts: list[Tensor]) -> Tensor:
    """Mean nats of all tokens but each text's first, and the mean of compression's loss, of every
    text by itself, over its whole segments.
    """
    inner, nats, total, count = model.model, [], 0.0, 0.0
    segment = inner.config.segment
    for text in texts:
        memory, states = inner.empty_memory(1), []
        whole = torch.nn.functional.pad(text[None], (0, -len(text) % segment))
        for at, part in enumerate(whole.split(segment, dim=1)):
            hidden, memory, losses, _ = inner.read_segment(part, memory)
            states.append(hidden)
            if (at + 1) * segment <= len(text) and losses:
                total += losses["reconstruction"].total
                count += losses["reconstruction"].elements
        logits = inner.head(torch.cat(states, dim=1))[0, : len(text)].log_softmax(-1)
        nats += [-logits[:-1].gather(1, text[1:, None])[:, 0]]
    return torch.cat(nats).mean() + total / max(float(count), 1.0)


def batch(texts: list[Tensor], side: str, labels: str, extra: int = 0) -> dict[str, Any]:
    """A padded batch as collators make it.

    labels: what stands there for padding: ignored, or the pad token itself ("copied").
    """
    width = max(map(len, texts)) + extra
    ids, mask = torch.full((len(texts), width), PAD), torch.zeros(len(texts), width).long()
    for row, text in enumerate(texts):
        first = width - len(text) if side == "left" else extra if side == "inside" else 0
        ids[row, first : first + len(text)], mask[row, first : first + len(text)] = text, 1
    copied = ids.clone() if labels == "copied" else ids.masked_fill(ids == PAD, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": copied}


@pytest.mark.parametrize("side", ["left", "right", "inside"])
@pytest.mark.parametrize("labels", ["ignored", "copied"])
@pytest.mark.parametrize(
    "shape", ["memory equals segment", "auto-encoding", "most_used, memory longer"]
)
def test_a_padded_batch_costs_what_its_texts_cost(side: str, labels: str, shape: str) -> None:
    """Likelihood and compression's loss, and every gradient of both."""
    model = hub_model(SHAPES[shape]).train()
    given = batch(TEXTS, side, labels, extra=5)
    loss = model(**given).loss
    expected = cost(model, TEXTS)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-11)
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for mine, theirs in zip(found, wanted, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("mask", [None, torch.bool, torch.int32, torch.float32])
def test_a_mask_of_any_type_or_none_gives_the_same(mask: torch.dtype | None) -> None:
    model = hub_model().train()
    given = batch(TEXTS, "left", "ignored")
    expected = model(**given).loss
    given["attention_mask"] = None if mask is None else given["attention_mask"].to(mask)
    assert torch.equal(model(**given).loss, expected)


def test_parts_of_a_padded_batch_weigh_what_the_trainer_counted() -> None:
    """Trainer counts the start of left-padded rows as an item, and a copied pad token too; the
    weights of the parts still add up to one.
    """
    model = hub_model().train()
    for labels in ("ignored", "copied"):
        given = batch(TEXTS, "left", labels)
        items = (given["labels"][:, 1:] != -100).sum()
        alone = model(**given).loss
        torch.testing.assert_close(model(**given, num_items_in_batch=items).loss, alone)
        twice = model(**given, num_items_in_batch=2 * items).loss
        torch.testing.assert_close(2 * twice, alone)


@pytest.mark.parametrize("grad", [True, False])
def test_rows_of_padding_alone_cost_nothing(grad: bool) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    for model in (hub_model().train(), hub_model().eval()):
        with torch.set_grad_enabled(grad):
            for side in ("left", "right"):
                some = model(**batch([TEXTS[0], empty], side, "ignored")).loss
                torch.testing.assert_close(some, model(**batch(TEXTS[:1], side, "ignored")).loss)
            nothing = model(**batch([empty, empty], "left", "ignored", extra=3))
            items = torch.tensor(0)
            again = model(**batch([empty], "left", "copied", extra=3), num_items_in_batch=items)
            assert nothing.loss == 0 == again.loss and nothing.logits.shape[:2] == (2, 3)


def test_every_weight_has_a_gradient_even_of_texts_too_short_to_compress() -> None:
    """As processes that train together must have, each with texts of its own."""
    model = hub_model().train()
    model(**batch([TEXTS[4]], "right", "ignored")).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_default_collators_of_transformers() -> None:
    """With the tokenizer of an export, which pads on the left."""
    tokenizer = HubByteTokenizer()
    config = CompressiveTransformerConfig.of(TINY, tokenizer.vocab_size)
    model = CompressiveTransformerForCausalLM(config).double().train()
    texts = ["the book of memory", "a", "", "was read by one"]
    rows = [tokenizer(text) for text in texts]
    expected = cost(model, [torch.tensor(row["input_ids"]) for row in rows])
    for multiple in (None, 8):
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=multiple)
        torch.testing.assert_close(model(**collate(list(rows))).loss, expected)
    given = DataCollatorWithPadding(tokenizer)(list(rows))
    given["labels"] = given["input_ids"]
    torch.testing.assert_close(model(**given).loss, expected)


IDS = stream(2, 2, TINY)


@pytest.mark.bad_input("exported model")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attention_mask": torch.ones(2, 3)}, r"must have the shape \[2, 8\]"),
        ({"attention_mask": torch.ones(1, 8)}, r"must have the shape \[2, 8\]"),
        ({"attention_mask": torch.ones(2, 1, 8, 8)}, "must have the shape"),
        ({"attention_mask": torch.zeros(2, 8) - 1e9}, "neither additive"),
        ({"attention_mask": torch.ones(2, 8).long() * 2}, "nor numbered by text"),
        ({"attention_mask": torch.full((2, 8), float("nan"))}, "1 for tokens"),
        ({"labels": IDS[:, :4]}, "labels must have the shape"),
        ({"labels": IDS[:1]}, "labels must have the shape"),
        ({"labels": IDS + VOCABULARY}, "labels other than -100 must be from 0 to 10"),
        ({"labels": IDS * 0 - 1}, "labels other than -100 must be from 0 to 10, not -1"),
        ({"input_ids": IDS[0]}, "shape .texts, columns."),
        ({"input_ids": IDS.float()}, "whole numbers"),
        ({"input_ids": IDS + VOCABULARY + 1}, "input_ids must be from 0 to 10"),
        ({"input_ids": -IDS - 1}, "input_ids must be from 0 to 10, not -"),
        ({"position_ids": torch.arange(8).remainder(4)[None]}, "a row of its own"),
        ({"position_ids": torch.arange(4)[None]}, "position_ids are of 4 columns"),
        ({"position_ids": torch.arange(8)}, "position_ids must be"),
        ({"inputs_embeds": torch.zeros(2, 8, 8)}, "inputs_embeds are not read"),
        ({"output_attentions": True}, "weights of attention are not kept"),
        ({"cu_seq_lens_q": torch.tensor([0, 4])}, "knows no cu_seq_lens_q"),
        ({"shift_labels": IDS}, "knows no shift_labels"),
        ({"num_logits_to_keep": 1}, "knows no num_logits_to_keep"),
        ({"logits_to_keep": -1}, "at least 0"),
        ({"labels": IDS, "logits_to_keep": torch.tensor([0])}, "every column"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        hub_model()(**({"input_ids": IDS} | change))


def test_what_follows_from_the_tokens_may_be_given() -> None:
    model = hub_model()
    expected = model(IDS).logits
    for places in (torch.arange(8)[None], torch.arange(5, 13).expand(2, 8)):
        assert torch.equal(model(IDS, position_ids=places).logits, expected)
    given = batch(TEXTS, "left", "ignored")
    places = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert torch.equal(model(**given, position_ids=places).logits, model(**given).logits)
    loss, logits = model(IDS, labels=IDS, return_dict=False)[:2]
    assert torch.equal(logits, expected) and loss.dim() == 0
    some = model(IDS, logits_to_keep=torch.tensor([1, 6])).logits
    torch.testing.assert_close(some, expected[:, [1, 6]])
