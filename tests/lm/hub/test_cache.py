"""Generation that goes on from a cache: the whole text again, only what is new, or nothing new."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from lm.hub.cache import CACHE, CompressiveCache
from lm.hub.modeling import CompressiveTransformerForCausalLM
from tests.lm.hub.conftest import hub_model
from tests.lm.model.cases import TINY, VOCABULARY, stream

PAD = VOCABULARY
TEXT = stream(9, 2, TINY)
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 9}
Model = CompressiveTransformerForCausalLM


def read(model: Model, ids: Tensor, **options: Any) -> CompressiveCache:
    with torch.no_grad():
        cache: CompressiveCache = model(ids, use_cache=True, **options)[CACHE]
    return cache


def new_tokens(model: Model, ids: Tensor, **options: Any) -> Tensor:
    rows: Tensor = model.generate(ids, **GREEDY | options)
    return rows[:, ids.shape[1] :]


@pytest.mark.parametrize("seen", [1, 4, 11, 19, 35])
@pytest.mark.parametrize("mask", [False, True])
def test_new_text_after_a_cache_is_read_whether_longer_or_shorter(
    model: Model, seen: int, mask: bool
) -> None:
    """What generate() of transformers does with it depends on lengths, and drops what is new."""
    expected = new_tokens(model, TEXT)
    for given in (TEXT, TEXT[:, seen:]):
        options = {"attention_mask": torch.ones_like(given)} if mask else {}
        cache = read(model, TEXT[:, :seen])
        found = new_tokens(model, given, **options, **{CACHE: cache})
        assert torch.equal(found, expected)
        assert cache.columns == TEXT.shape[1] + 8
    whole = {"attention_mask": torch.ones_like(TEXT), CACHE: read(model, TEXT[:, :seen])}
    assert torch.equal(new_tokens(model, TEXT[:, seen:], **whole), expected)


def test_a_text_that_was_read_to_its_end_is_not_read_twice(model: Model) -> None:
    expected = new_tokens(model, TEXT)
    for options in ({}, {"attention_mask": torch.ones_like(TEXT)}):
        found = new_tokens(model, TEXT, **options, **{CACHE: read(model, TEXT)})
        assert torch.equal(found, expected)


def test_a_conversation_in_turns(model: Model) -> None:
    """Generated tokens are in the cache, all but the last, which the next turn brings."""
    turns, cache, said = (
        [TEXT[:1, :7], TEXT[:1, 7:9], TEXT[:1, 9:29]],
        CompressiveCache(),
        TEXT[:1, :0],
    )
    for turn in turns:
        last = said[:, -1:]
        given = torch.cat([last, turn], dim=1)
        said = torch.cat([said, turn], dim=1)
        answer = new_tokens(model, given, **{CACHE: cache})
        assert torch.equal(answer, new_tokens(model, said))
        said = torch.cat([said, answer], dim=1)


def test_a_prefix_is_read_once_for_several_questions(model: Model) -> None:
    """As transformers' own recipe has it: a copy of the cache for each."""
    prefix = read(model, TEXT[:, :11])
    for length in (13, 19):
        cache = copy.deepcopy(prefix)
        assert cache.reader is not None and cache.reader.model is model.model
        asked = new_tokens(model, TEXT[:, :length], **{CACHE: cache})
        assert torch.equal(asked, new_tokens(model, TEXT[:, :length]))
    assert prefix.columns == 11
    assert copy.deepcopy(CompressiveCache()).reader is None


def test_padded_new_text_of_several_lanes(model: Model) -> None:
    first, new = TEXT[:, :6].clone(), TEXT[:, 6:10].clone()
    first[0, :2], new[1, :3] = PAD, PAD
    whole = torch.cat([first, new], dim=1)
    expected = new_tokens(model, whole)
    for given in (new, whole):
        found = new_tokens(model, given, **{CACHE: read(model, first)})
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "options", [{"num_return_sequences": 3, "do_sample": True}, {"num_beams": 3}]
)
def test_several_continuations_go_on_from_one_cache(model: Model, options: dict[str, Any]) -> None:
    found = []
    for given in (TEXT[:, 11:], TEXT):
        cache = {CACHE: read(model, TEXT[:, :11])}
        torch.manual_seed(0)
        found.append(new_tokens(model, given, **options, **cache))
    torch.manual_seed(0)
    found.append(new_tokens(model, TEXT, **options))
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


def test_chunks_of_a_prompt_after_a_cache(model: Model) -> None:
    expected = new_tokens(model, TEXT)
    for given in (TEXT, TEXT[:, 11:]):
        cache = read(model, TEXT[:, :11])
        found = new_tokens(model, given, prefill_chunk_size=5, **{CACHE: cache})
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="leave out prefill_chunk_size"):
        new_tokens(model, TEXT, prefill_chunk_size=50, **{CACHE: read(model, TEXT)})


@pytest.mark.bad_input("exported model")
def test_a_cache_of_something_else_is_refused(model: Model) -> None:
    cache = {CACHE: read(model, TEXT)}
    with pytest.raises(ValueError, match="holds 2 texts, not the 1"):
        model.generate(TEXT[:1], **GREEDY, **cache)
    with pytest.raises(ValueError, match="holds 2 texts, not the 3"):
        read(model, TEXT[[0, 1, 1]], **cache)
    with pytest.raises(ValueError, match="other texts than some rows"):
        model.generate(torch.cat([TEXT[[0, 0]], TEXT[:, :3]], dim=1), **GREEDY, **cache)
    with pytest.raises(ValueError, match="belongs to another model"):
        read(hub_model(), TEXT, **cache)
    with pytest.raises(ValueError, match="a DynamicCache cannot hold memory"):
        model.generate(TEXT, **GREEDY, **{CACHE: DynamicCache()})
    with pytest.raises(ValueError, match="not with use_cache False"):
        model(TEXT, use_cache=False, **cache)
    with torch.inference_mode():
        fixed = {CACHE: model(TEXT, use_cache=True)[CACHE]}
        model(TEXT[:, :1], **fixed)
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode\(\), outside of which"):
        read(model, TEXT[:, :1], **fixed)
    with pytest.raises(ValueError, match="moved or cast"):
        read(model.float(), TEXT, **cache)


@pytest.mark.bad_input("exported model")
def test_texts_without_a_token_are_refused(model: Model) -> None:
    empty = TEXT.clone()
    empty[1] = PAD
    with pytest.raises(ValueError, match="row 1 of input_ids has no token"):
        model.generate(empty, **GREEDY)
    with pytest.raises(ValueError, match="row 0 of input_ids has no token"):
        model.generate(TEXT, attention_mask=torch.zeros_like(TEXT), **GREEDY)
    with pytest.raises(ValueError, match="row 0 of input_ids has no token"):
        model.generate(TEXT[:, :0], **GREEDY)


@pytest.mark.bad_input("exported model")
def test_no_gradient_is_lost_in_a_cache(model: Model) -> None:
    with pytest.raises(ValueError, match="no gradient passes through a cache"):
        model(TEXT, labels=TEXT, use_cache=True)


def test_the_vocabulary_keeps_its_size(model: Model) -> None:
    for size in (None, VOCABULARY, VOCABULARY + 1):
        assert model.resize_token_embeddings(size) is model.get_input_embeddings()
    with pytest.raises(ValueError, match="do not make 40 of them"):
        model.resize_token_embeddings(40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_writes_and_trains(dtype: torch.dtype) -> None:
    model = hub_model().to(dtype)
    rows = model.generate(TEXT, **GREEDY)
    assert rows.shape == (2, TEXT.shape[1] + 9) and int(rows.max()) < VOCABULARY
    slow = model.generate(TEXT, use_cache=False, **GREEDY)
    assert slow.shape == rows.shape
    loss = model.train()(TEXT, labels=TEXT).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.parameters())
