"""Program: serve an exported model to clients of OpenAI's interface with transformers' server."""

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data.common import command
from data.common.requirements import extra
from data.tokenizers.registry import load_tokenizer
from lm.inference.inference_config import Placement


def main(
    folder: Path,
    host: str = "localhost",
    port: Annotated[int, Field(ge=1, le=65535)] = 8000,
    device: Literal["cpu", "cuda", "mps"] | None = None,
) -> None:
    """Answer requests at http://HOST:PORT/v1 until it is stopped (Ctrl-C).

    `transformers serve` knows the models of transformers alone. This makes ours known to it; what a
    conversation has said so far is read anew with each request, through memory of fixed size.

    Args:
        folder: what lm.export wrote of a run with a tokenizer of the Hugging Face hub, such as one
            that lm.adopt made.
        host: name or address to listen at; 0.0.0.0 for every address of this machine.
        port: number of the port.
        device: processor that computes; none: a GPU of CUDA if there is one, else the CPU.

    Raises:
        ValueError: no such model or device there, the server's packages are missing, or something
            listens at the port already.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model; write one with python -m lm.export")
    if load_tokenizer(folder).kind != "hf":
        raise ValueError(
            f"the vocabulary of {folder} is our own, and transformers' server writes with "
            "tokenizers of the hub alone; serve a model with one of these (--vocabulary hf:FOLDER)"
        )
    with extra("serve", "lm.serve"):
        import fastapi  # noqa: F401 - transformers itself says less of what is missing
        import openai  # noqa: F401
        import uvicorn  # noqa: F401
    from lm.hub.serving import serve
    from lm.inference.loading import device_of

    place = device_of(Placement(device))
    require_port(host, port)
    serve(folder, host, port, place)


def require_port(host: str, port: int) -> None:
    """ValueError where nothing can listen, before a model is loaded for nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise ValueError(f"nothing can listen at {host}:{port}: {error.strerror}") from None


if __name__ == "__main__":
    command.run(main)
