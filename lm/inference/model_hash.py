"""What memories and datastores know the model by that they belong to."""

from hashlib import sha256

from data.common.files import hash_json
from data.common.tensors import bytes_of
from lm.model.model_config import ModelConfig
from lm.model.ranges import JOINED
from lm.model.transformer import CompressiveTransformer


def model_hash(model: CompressiveTransformer) -> str:
    """SHA-256 of a model's configuration, lengths included, and of its weights."""
    known = model.config.shape()
    # Settings that have joined since do not count at their defaults, so that old memory is known.
    kept = {n: v for n, v in known.items() if n not in JOINED or v != getattr(ModelConfig, n)}
    config = f"ModelConfig({', '.join(f'{name}={value!r}' for name, value in kept.items())})"
    digest = sha256(hash_json({"config": config}).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(bytes_of(weight).numpy().data)
    return digest.hexdigest()
