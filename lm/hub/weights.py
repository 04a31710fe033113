"""The weights of an exported folder, or of one that transformers saved after it, as files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.common.files import read_json
from data.common.integrity import SUMS, check_sums
from data.common.tensors import HASHES, TensorFile

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of all weights, or of which of several files has each."""
MEND = "take all files of one export"
MEANT = f"{MEND}, or remove {SUMS} if the change is meant"


class ExportedWeights(Mapping[str, TensorFile]):
    """For each weight by name the file that has it."""

    def __init__(self, folder: Path) -> None:
        """Open the files.

        Raises:
            ValueError: there are no safetensors, or a file lacks or is damaged.
        """
        self.folder = folder
        if (folder / INDEX).is_file():
            names = self._listed()
        elif (folder / ONE).is_file():
            names = {ONE}
        else:
            raise ValueError(
                f"{folder} has no {ONE}, and weights in other formats may hold code: save them "
                "as safetensors"
            )
        files = [TensorFile(folder / name, MEND) for name in sorted(names)]
        self.files = {name: file for file in files for name in file}

    def _listed(self) -> set[str]:
        index = read_json(self.folder / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{self.folder / INDEX} lacks weight_map; {MEND}")
        for name in places.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{self.folder / INDEX} names {name!r}, which is no file; {MEND}")
        return {*places.values()}

    def __getitem__(self, name: str) -> TensorFile:
        return self.files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def require(self, wanted: Mapping[str, Tensor]) -> None:
        """ValueError where these are not the weights of a model, all and no others, by name."""
        if missing := sorted(wanted.keys() - self.files.keys()):
            raise ValueError(f"{self.folder} lacks the weight {missing[0]}; {MEND}")
        if strange := sorted(self.files.keys() - wanted.keys()):
            raise ValueError(f"{self.folder} has {strange[0]} of another model; {MEND}")


def check_hashes(folder: Any) -> None:
    """Read and check all files of a local folder that have hashes, as exports do.

    transformers reads without looking. What it saved itself has none.

    Raises:
        ValueError: a weight, the configuration or code has changed since it was written.
    """
    if not Path(folder).is_dir():
        return
    check_sums(Path(folder), MEANT)
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                hashed = HASHES in (opened.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); {MEND}") from None
        if hashed:
            for _ in TensorFile(path, MEND).values():
                # Reading is checking.
                pass


def forget_hashes(folder: Any) -> None:
    """Take away the list of a folder whose files transformers is about to write anew."""
    (Path(folder) / SUMS).unlink(missing_ok=True)
