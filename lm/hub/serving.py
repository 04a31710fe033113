"""Our model among those that transformers' server knows."""

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import AutoConfig, AutoModelForCausalLM

from data.common.say import say
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM


def serve(folder: Path, host: str, port: int, device: torch.device) -> None:
    """Run transformers' server for one exported model until the process is stopped."""
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import ModelManager

    name = str(folder)
    if "@" in name:
        raise ValueError(
            f"transformers' server takes what follows the @ of {name} for a version; give a path "
            "without one, such as a link to the folder"
        )
    register()
    # The server lists downloads alone; clients that choose from its list shall find the model.
    listed = {"id": name, "object": "model", "created": 0, "owned_by": ""}
    setattr(ModelManager, "get_gen_models", staticmethod(lambda *_: [listed]))  # noqa: B010
    # Clients ask which models there are, and the server looks where downloads are kept.
    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    say(f"serving {folder} at http://{host}:{port}/v1")
    Serve(name, host=host, port=port, device=str(device))


class Served(CompressiveTransformerForCausalLM):
    """A model that draws its tokens unless a request has a temperature of 0, as clients expect; the
    server only ever turns drawing off.
    """

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """The model of a folder, as of transformers."""
        model = super().from_pretrained(*arguments, **options)
        model.generation_config.do_sample = True
        return model


def register() -> None:
    """Let transformers find our classes by their names, as it finds its own."""
    kind = Served
    # The server looks in the package itself.
    setattr(transformers, CompressiveTransformerForCausalLM.__name__, kind)
    AutoConfig.register(CompressiveTransformerConfig.model_type, CompressiveTransformerConfig, True)
    AutoModelForCausalLM.register(CompressiveTransformerConfig, kind, exist_ok=True)
