"""The model card of an exported folder: what the model is, and its scores with their protocol."""

import re
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, JsonValue

from data.common.say import marked, plain
from data.common.schema import Record, read_record
from data.common.yamlfile import dump_yaml
from data.sources import ON_HUB
from lm.inference.loading import LoadedRun
from lm.runs.adopted_config import AdoptedConfig

DATA_SETS = {corpus: place.name for corpus, place in ON_HUB.items()}
"""Names on the hub of the benchmarks' texts, all of them English."""
USE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=200, do_sample=True, top_p=0.95)
print(tokenizer.decode(outputs[0]))
```
"""
USE_IDS = """\
## Use

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
ids = torch.tensor([[model.generation_config.bos_token_id]])
print(model.generate(ids, max_new_tokens=200, do_sample=True))
```

Tokens are no text, so there is no tokenizer.
"""
END = """\
The code of the model lies in this folder. A text of any length is read at constant memory; in a
padded batch pass `attention_mask`, or pad with the id behind the last of the vocabulary.
"""


class Protocol(Record):
    """How a score was measured, in settings that are shown as they are."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    corpus: str
    split: str
    unit: str

    @property
    def part(self) -> str:
        """The split, of which only the first documents may have been scored, as test[:20]."""
        documents = (self.model_extra or {}).get("documents")
        return self.split if documents is None else f"{self.split}[:{documents}]"


class Weights(Record):
    """Which weights were scored."""

    model_config = ConfigDict(extra="ignore")

    sha256: str


class Scored(Record):
    """What the card says of a result of eval.score."""

    model_config = ConfigDict(extra="ignore")

    value: float
    protocol: Protocol
    checkpoint: Weights


def model_card(
    loaded: LoadedRun, run: Path, title: str, tokenizer: bool, license: str | None = None
) -> str:
    """Markdown of the card of a run's checkpoint.

    Args:
        loaded: the checkpoint.
        run: folder with results of eval.score, of which those for exactly these weights are told.
        title: name of the model.
        tokenizer: whether the folder has one.
        license: the hub's identifier of the weights' licence; none: the card does not say.

    Raises:
        ValueError: a result has changed since it was written, or is none.
    """
    model, config = loaded.model.config, loaded.config
    sizes = (
        f"A Compressive Transformer (arXiv 1911.05507): {model.layers} layers of width "
        f"{model.width}, {model.heads} heads. It reads segments of {model.segment} tokens; every "
        f"layer keeps {model.memory} slots of memory"
    )
    if model.compressed:
        sizes += (
            f" and {model.compressed} compressed slots, each made from {model.rate} older ones "
            f"by {model.compression}"
        )
    if isinstance(config, AdoptedConfig):
        facts = {"weights of": f"{config.base.name}, {config.base.architecture}"}
    else:
        prefix = "-prefix" if config.data.prefix else ""
        facts = {"trained on": f"{config.data.corpus}{prefix}"}
    facts |= {
        "vocabulary": loaded.vocabulary.name,
        "parameters": f"{sum(parameter.numel() for parameter in loaded.model.parameters()):,}",
        "checkpoint": f"{loaded.checkpoint.name}, SHA-256 {loaded.weights}",
    }
    rows = "\n".join(_row(name, value) for name, value in facts.items())
    table = f"| | |\n|---|---|\n{rows}\n"
    scores, use = scores_of(run, loaded.weights), USE if tokenizer else USE_IDS
    head = metadata(loaded, plain(title), scores, license)
    told = _scores(scores)
    return "\n".join([head, f"# {marked(title)}\n", f"{sizes}.\n", table, told, use, END])


def metadata(loaded: LoadedRun, title: str, scores: list[Scored], license: str | None) -> str:
    """What the hub reads of a card: between two lines of dashes, with scores as a model-index."""
    config = loaded.config
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    about["tags"] = ["compressive-transformer", "long-context"]
    about |= {} if license is None else {"license": license}
    if isinstance(config, AdoptedConfig):
        about |= {"base_model": config.base.name} if "/" in config.base.name else {}
    elif config.data.corpus in DATA_SETS:
        about |= {"language": "en", "datasets": [DATA_SETS[config.data.corpus]]}
    if scores:
        results = [_indexed(score) for score in scores]
        about["model-index"] = [{"name": title, "results": results}]
    return f"---\n{dump_yaml(about)}---\n"


def _indexed(score: Scored) -> dict[str, Any]:
    """A score as the hub shows it; the protocol stands in the card."""
    protocol = score.protocol
    family = next((name for name in DATA_SETS if protocol.corpus.startswith(name)), None)
    return {
        "task": {"type": "text-generation"},
        "dataset": {
            "name": plain(protocol.corpus),
            "type": DATA_SETS.get(family or "", plain(protocol.corpus)),
            "split": protocol.part,
        },
        "metrics": [{"type": protocol.unit, "value": score.value}],
    }


def scores_of(run: Path, sha256: str) -> list[Scored]:
    """The results in a run's folder that belong to weights of this hash."""
    mend = "remove it, or score again with python -m eval.score"
    results = [read_record(Scored, path, mend) for path in sorted(run.glob("score-*.json"))]
    return [score for score in results if score.checkpoint.sha256 == sha256]


def _scores(scores: list[Scored]) -> str:
    """The same as a table."""
    if not scores:
        return "## Scores\n\nNone was measured with these weights before the export.\n"
    lines = ["## Scores\n", "| corpus, split | value | unit | protocol |", "|---|---|---|---|"]
    for score in scores:
        protocol = score.protocol
        where, unit = f"{protocol.corpus}, {protocol.part}", protocol.unit.replace("_", " ")
        more = protocol.model_extra or {}
        said = "; ".join(f"{name} {_short(value)}" for name, value in more.items())
        lines.append(_row(where, f"{score.value:.4f}", unit, said))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    """A row of a table, of texts that are shown as they are."""
    return f"| {' | '.join(map(marked, cells))} |"


def _short(value: Any) -> str:
    """A setting as it is read; of a hash the beginning."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text
