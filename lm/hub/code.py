"""The source code that an exported folder carries, so that it runs without this repository.

transformers copies the files of a folder that import each other by `from .name import`. So every
module that is needed goes there flat, `lm.model.layer` as `lm_model_layer.py`, with its imports
of others of ours rewritten.
"""

import importlib.util
import re
from pathlib import Path

OURS = re.compile(r"^(\s*)from ((?:lm|data)(?:\.\w+)*) import", re.MULTILINE)


def flat(module: str) -> str:
    """Name of a module in an exported folder."""
    return module.replace(".", "_")


def code_files(modules: list[str]) -> dict[str, str]:
    """Text of the modules, and of all of ours that they import, by file name."""
    files: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if f"{flat(module)}.py" in files:
            continue
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        waiting += [found[2] for found in OURS.finditer(source)]
        files[f"{flat(module)}.py"] = OURS.sub(
            lambda found: f"{found[1]}from .{flat(found[2])} import", source
        )
    return files
