"""Embeddings and heads: adaptive vocabularies against loops, chunks against the whole."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lm.model.adaptive import AdaptiveEmbedding, AdaptiveHead
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from tests.lm.model.cases import TINY, VOCABULARY, build, run, stream

ADAPTIVE = replace(TINY, cutoffs=(3, 7), cluster_divisor=2)


def cluster_of(token: int) -> tuple[int, int]:
    """Cluster and place in it."""
    return (0, token) if token < 3 else (1, token - 3) if token < 7 else (2, token - 7)


def naive_vector(embedding: AdaptiveEmbedding, token: int) -> Tensor:
    cluster, place = cluster_of(token)
    vector = embedding.clusters[cluster][place]
    if cluster:
        vector = embedding.projections[cluster - 1].weight @ vector
    return vector * math.sqrt(TINY.width)


def naive_log_probability(head: AdaptiveHead, hidden_D: Tensor, token: int) -> Tensor:
    cluster, place = cluster_of(token)
    scores = [head.clusters[0][w] @ hidden_D + head.bias[w] for w in range(3)]
    scores += list(head.choice.weight @ hidden_D + head.choice.bias)
    first = torch.stack(scores) - torch.stack(scores).logsumexp(0)
    if cluster == 0:
        return first[place]
    projected = head.projections[cluster - 1].weight @ hidden_D
    low = (0, 3, 7)[cluster]
    words = head.clusters[cluster]
    inner = torch.stack([words[w] @ projected + head.bias[low + w] for w in range(len(words))])
    return first[2 + cluster] + inner[place] - inner.logsumexp(0)


@pytest.mark.parametrize("tied", [True, False])
def test_adaptive_vocabulary_equals_loops(tied: bool) -> None:
    """Vectors, log-probabilities, likelihoods and every gradient of both."""
    model = build(replace(ADAPTIVE, tied=tied))
    embedding, head = model.embedding, model.head
    assert isinstance(embedding, AdaptiveEmbedding) and isinstance(head, AdaptiveHead)
    tokens = torch.arange(VOCABULARY)[None]
    torch.manual_seed(3)
    hidden = torch.randn(1, VOCABULARY, TINY.width, dtype=torch.float64, requires_grad=True)
    targets = torch.randperm(VOCABULARY)[None]
    vectors = torch.stack([naive_vector(embedding, t) for t in range(VOCABULARY)])
    table = torch.stack(
        [
            torch.stack([naive_log_probability(head, h, t) for t in range(VOCABULARY)])
            for h in hidden[0]
        ]
    )
    torch.testing.assert_close(embedding(tokens)[0], vectors)
    torch.testing.assert_close(head(hidden)[0], table)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(VOCABULARY, dtype=torch.float64))
    nats = -table.gather(1, targets[0][:, None])[:, 0]
    torch.testing.assert_close(head(hidden, targets)[0], nats)
    wanted = [hidden, *{*embedding.parameters(), *head.parameters()}]
    weights = torch.arange(1.0, VOCABULARY + 1, dtype=torch.float64)
    ours = (embedding(tokens)[0].square().sum(-1) + head(hidden, targets)[0]) @ weights
    theirs = (vectors.square().sum(-1) + nats) @ weights
    for mine, naive in zip(
        torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True
    ):
        torch.testing.assert_close(mine, naive)


def test_one_cluster_equals_the_plain_vocabulary() -> None:
    plain, adaptive = build(TINY), build(replace(TINY, cutoffs=()))
    names = {"embedding.weight": "embedding.clusters.0", "head.weight": "head.clusters.0"}
    state = {names.get(name, name): value for name, value in plain.state_dict().items()}
    adaptive.load_state_dict(state)
    tokens, targets = stream(1, 2, TINY), stream(1, 2, TINY, seed=5)
    memory = plain.empty_memory(2)
    torch.testing.assert_close(
        adaptive(tokens, memory, targets).predictions, plain(tokens, memory, targets).predictions
    )


@pytest.mark.parametrize("config", [TINY, ADAPTIVE], ids=["plain", "adaptive"])
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("own", [False, True])
def test_chunks_equal_the_whole(
    config: ModelConfig, chunk: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own:
        monkeypatch.setattr("lm.model.components.OPTIONS", None)
    whole, parts = build(config), build(replace(config, head_chunk=chunk))
    tokens, targets = stream(1, 2, config), stream(1, 2, config, seed=5)
    results = []
    for model in (whole, parts):
        nats = model(tokens, model.empty_memory(2), targets).predictions
        weights = torch.arange(8.0, dtype=torch.float64).view(2, 4)
        gradients = torch.autograd.grad(
            (nats * weights).sum(), list(model.parameters()), allow_unused=True
        )
        results.append([nats, *(g for g in gradients if g is not None)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        nats = parts(tokens, parts.empty_memory(2), targets).predictions
    torch.testing.assert_close(nats, results[0][0])


def test_chunks_never_hold_all_logits() -> None:
    """No tensor that the backward pass keeps has a row for every token and a column for every
    word.
    """
    model = build(replace(TINY, head_chunk=2))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        model.head(
            torch.randn(5, 4, 8, dtype=torch.float64, requires_grad=True), stream(1, 5, TINY)
        )
    assert max(sizes) < 5 * 4 * VOCABULARY


def test_an_adaptive_model_reads_a_stream() -> None:
    model = build(ADAPTIVE).eval()
    logits, _ = run(model, stream(5, 2, ADAPTIVE))
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 20, dtype=torch.float64))


def test_cutoffs_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="inside the vocabulary of 11 words"):
        CompressiveTransformer(replace(TINY, cutoffs=(3, 11), cluster_divisor=2), VOCABULARY)
