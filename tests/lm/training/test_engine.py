"""DeepSpeed is known to lm/training alone, and its private fields to the engine's file."""

import ast
import re
from pathlib import Path

from tests.test_house import ROOT, imported_names, python_files

PRIVATE = re.compile(
    r"zero_optimization_stage|_hp_optimizer_states\w*|single_partition_of_fp32\w*|"
    r"fp32_partitioned_groups\w*|\bds_(?:id|shape|tensor)\b|__compatible_ops__|\.comm\.cdb\b"
)


def deepspeed_complaints(root: Path) -> list[str]:
    """Files beside lm/training that import DeepSpeed; uses of its private fields but in one."""
    complaints = []
    for path in python_files(root):
        text, where = path.read_text(), path.relative_to(root).as_posix()
        for imported, line in imported_names(ast.parse(text), ""):
            if imported.split(".")[0] == "deepspeed" and not where.startswith("lm/training/"):
                complaints.append(f"{where}:{line} imports DeepSpeed; only lm/training knows it")
        if where != "lm/training/engine.py" and (found := PRIVATE.search(text)):
            complaints.append(f"{where} uses {found[0]}, which lm/training/engine.py is for")
    return complaints


def test_deepspeed_is_known_in_one_place() -> None:
    assert deepspeed_complaints(ROOT) == []


def test_deepspeed_in_another_place_is_found(tmp_path: Path) -> None:
    (tmp_path / "lm" / "training").mkdir(parents=True)
    for name, text in {
        "lm/training/engine.py": "import deepspeed\nx.ds_id",
        "lm/training/dist.py": "import deepspeed\nx.ds_tensor",
        "lm/export.py": "def f():\n    from deepspeed import zero\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert deepspeed_complaints(tmp_path) == [
        "lm/export.py:2 imports DeepSpeed; only lm/training knows it",
        "lm/training/dist.py uses ds_tensor, which lm/training/engine.py is for",
    ]
