"""Generation: time and memory a token against history length, beside a GPT-2 whose cache grows.

Both models are new, of equal layers, width and number of parameters, and write greedily through
transformers' `generate`, each from its cache of the history; lm's own loop, without transformers
around it, is timed too.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from data.common.outputs import check_output
from data.common.schema import Size
from lm.hub.cache import CACHE, CompressiveCache
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM
from lm.model.incremental import Reader
from lm.model.model_config import ModelConfig
from tools.benchmarks.building import BYTES, SMALL
from tools.benchmarks.timing import machine, pick_device, report, take_turns

mpl.use("Agg")

from matplotlib import pyplot as plt

MEBIBYTE = 1 << 20
MEMORIES = replace(SMALL, compressed=128)


def main(
    model: ModelConfig = MEMORIES,
    histories: tuple[Size, ...] = (64, 256, 1024, 2048, 4096),
    batches: tuple[Size, ...] = (1, 16),
    tokens: Size = 16,
    rounds: Size = 5,
    device: str = "auto",
    figure: Path | None = None,
    json: Path | None = None,
) -> None:
    """Time the writing of tokens after histories of several lengths.

    Args:
        model: shape of the model; GPT-2 has its layers, width and heads, and as many feed-forward
            units as make up as many parameters.
        histories: tokens read before.
        batches: texts side by side.
        tokens: written at a time, from the end of the history.
        rounds: how often each is timed; the median counts.
        device: cpu, cuda, or auto for the GPU where there is one.
        figure: file for a plot.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    torch.manual_seed(0)
    ours = CompressiveTransformerForCausalLM(CompressiveTransformerConfig.of(model, BYTES))
    theirs = gpt2(model, max(histories) + tokens + 1, count(ours))
    models: dict[str, Any] = {"ours": ours, "gpt2": theirs}
    for each in models.values():
        each.to(place).eval()
    rows = [row for batch in batches for row in measure(models, batch, histories, tokens, rounds)]
    sizes = {name: count(each) for name, each in models.items()}
    crossing = {str(batch): crossing_point(rows, batch) for batch in batches}
    result = {"parameters": sizes, "crossing": crossing, "rows": rows}
    report(result | machine(place), json)
    if figure is not None:
        draw(rows, figure)


def gpt2(model: ModelConfig, positions: int, parameters: int) -> GPT2LMHeadModel:
    """A GPT-2 of the same layers, width and heads, and of about so many parameters."""

    def build(units: int) -> GPT2LMHeadModel:
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=BYTES,
                n_positions=positions,
                n_embd=model.width,
                n_layer=model.layers,
                n_head=model.heads,
                n_inner=units,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    missing = parameters - count(build(model.feedforward))
    return build(max(1, model.feedforward + missing // (model.layers * (2 * model.width + 1))))


def count(model: PreTrainedModel) -> int:
    """Parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure(
    models: dict[str, Any], batch: int, histories: tuple[int, ...], tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """Tokens per second and MiB of cache of both after each history, which take turns."""
    place = models["ours"].device
    writers: dict[str, Callable[[], object]] = {}
    held = {}
    for history in histories:
        ids = torch.randint(BYTES, (batch, history + 1), device=place)
        kept: dict[str, Any] = {
            "ours": ours_after(models["ours"], ids),
            "gpt2": grown(models["gpt2"], batch, history),
        }
        for name, model in models.items():
            writers[f"{name} {history}"] = writer(model, ids, kept[name], tokens)
        reader = kept["ours"].reader
        writers[f"ours, own loop {history}"] = own_loop(reader, ids[:, -1:], tokens)
        held[history] = {
            "ours": sum(map(size, reader_tensors(reader))),
            "gpt2": sum(size(tensor) for pair in growing(kept["gpt2"]) for tensor in pair),
        }
    taken = take_turns(writers, place, rounds, warmup=1)
    return [
        {
            "batch": batch,
            "history": history,
            "tokens_per_second": {
                name: round(batch * tokens / taken[f"{name} {history}"], 1)
                for name in (*models, "ours, own loop")
            },
            "cache_mib": {name: round(of / MEBIBYTE, 2) for name, of in held[history].items()},
        }
        for history in histories
    ]


def ours_after(model: CompressiveTransformerForCausalLM, ids: Tensor) -> CompressiveCache:
    """Memory of all but the last token, really read."""
    with torch.no_grad():
        output = model(ids[:, :-1], use_cache=True, logits_to_keep=1)
    cache: CompressiveCache = output[CACHE]
    return cache


def grown(model: GPT2LMHeadModel, batch: int, history: int) -> DynamicCache:
    """A cache of this length, filled at random, because time does not depend on what is in it."""
    config, cache = model.config, DynamicCache()
    shape = (batch, config.n_head, history, config.n_embd // config.n_head)
    for layer in range(config.n_layer):
        keys, values = torch.randn(2, *shape, device=model.device)
        cache.update(keys, values, layer)
    return cache


def writer(
    model: PreTrainedModel, ids: Tensor, cache: CompressiveCache | DynamicCache, tokens: int
) -> Callable[[], object]:
    """A function that writes tokens from a cache and leaves it as it was."""

    def write() -> None:
        held = snapshot(cache)
        generate: Any = model.generate
        generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            **{CACHE: cache},
        )
        restore(cache, held)

    return write


def snapshot(cache: CompressiveCache | DynamicCache) -> Any:
    """What `restore` needs; a growing cache never writes to its tensors, so they are kept."""
    if isinstance(cache, CompressiveCache):
        assert cache.reader is not None
        held = cache.reader, cache.columns
        cache.reader = cache.reader.repeat(1)
        return held
    return growing(cache)


def restore(cache: CompressiveCache | DynamicCache, held: Any) -> None:
    """Make a cache what it was."""
    if isinstance(cache, CompressiveCache):
        cache.reader, cache.columns = held
        return
    for layer, (keys, values) in zip(cache.layers, held, strict=True):
        vars(layer).update(keys=keys, values=values)


def growing(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer."""
    return [(vars(layer)["keys"], vars(layer)["values"]) for layer in cache.layers]


def own_loop(reader: Reader, last: Tensor, tokens: int) -> Callable[[], object]:
    """A function that writes the same tokens without transformers."""

    def write() -> None:
        own, token = reader.repeat(1), last
        for _ in range(tokens):
            own.read(token)
            token = own.logits().argmax(-1, keepdim=True)

    return write


def reader_tensors(reader: Reader) -> Iterator[Tensor]:
    """Everything that a reader holds of its texts."""
    for memory in reader.memory.layers:
        yield from memory.values()
    for layer in reader.layers:
        yield from (*layer.segment, layer.inputs_BTD)


def size(tensor: Tensor | None) -> int:
    """Bytes of a tensor."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def crossing_point(rows: list[dict[str, Any]], batch: int) -> int | None:
    """The first history after which ours is the faster through `generate`; None if never."""
    for row in rows:
        speed = row["tokens_per_second"]
        if row["batch"] == batch and speed["ours"] > speed["gpt2"]:
            history: int = row["history"]
            return history
    return None


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds and MiB a text against history, a line for each model and batch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for batch in dict.fromkeys(row["batch"] for row in rows):
        own = [row for row in rows if row["batch"] == batch]
        histories = [row["history"] for row in own]
        for name, colour in (("ours", "C0"), ("gpt2", "C1")):
            style = "o-" if batch == 1 else "s--"
            label = f"{'Compressive Transformer' if name == 'ours' else 'GPT-2'}, batch {batch}"
            times = [1e3 * batch / row["tokens_per_second"][name] for row in own]
            left.plot(histories, times, style, color=colour, label=label, markersize=4)
            held = [row["cache_mib"][name] for row in own]
            right.plot(histories, held, style, color=colour, markersize=4)
    left.set_ylabel("milliseconds a step")
    right.set_ylabel("cache, MiB")
    for axes in (left, right):
        axes.set_xlabel("tokens of history")
        axes.set_xscale("log")
        axes.set_xticks(histories, [f"{history:,}" for history in histories])
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
