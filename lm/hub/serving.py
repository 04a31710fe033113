"""Our model among those that transformers' server knows."""

from pathlib import Path

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

    register()
    # Clients ask which models there are, and the server looks where downloads are kept.
    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    say(f"serving {folder} at http://{host}:{port}/v1")
    Serve(str(folder.resolve()), host=host, port=port, device=str(device))


def register() -> None:
    """Let transformers find our classes by their names, as it finds its own."""
    kind = CompressiveTransformerForCausalLM
    # The server looks in the package itself.
    setattr(transformers, kind.__name__, kind)
    AutoConfig.register(CompressiveTransformerConfig.model_type, CompressiveTransformerConfig, True)
    AutoModelForCausalLM.register(CompressiveTransformerConfig, kind, exist_ok=True)
