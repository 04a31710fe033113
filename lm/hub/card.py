"""The model card of an exported folder: what the model is, and its scores with their protocol."""

import re
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, JsonValue

from data.common.say import marked
from data.common.schema import Record, read_record
from lm.inference.loading import LoadedRun
from lm.runs.adopted_config import AdoptedConfig

HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- compressive-transformer
- long-context
---
"""
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


def model_card(loaded: LoadedRun, run: Path, title: str, tokenizer: bool) -> str:
    """Markdown of the card of a run's checkpoint.

    Args:
        loaded: the checkpoint.
        run: folder with results of eval.score, of which those for exactly these weights are told.
        title: name of the model.
        tokenizer: whether the folder has one.

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
    scores, use = _scores(run, loaded.weights), USE if tokenizer else USE_IDS
    return "\n".join([HEAD, f"# {marked(title)}\n", f"{sizes}.\n", table, scores, use, END])


def _scores(run: Path, sha256: str) -> str:
    """The results in a run's folder that belong to weights of this hash, as a table."""
    mend = "remove it, or score again with python -m eval.score"
    results = [read_record(Scored, path, mend) for path in sorted(run.glob("score-*.json"))]
    scores = [score for score in results if score.checkpoint.sha256 == sha256]
    if not scores:
        return "## Scores\n\nNone was measured with these weights before the export.\n"
    lines = ["## Scores\n", "| corpus, split | value | unit | protocol |", "|---|---|---|---|"]
    for score in scores:
        protocol = score.protocol
        where, unit = f"{protocol.corpus}, {protocol.split}", protocol.unit.replace("_", " ")
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
