"""Program: a file made smaller with a model's predictions and an arithmetic coder, and back.

The size proves the bits per byte that a score reports: whoever has the model gets every byte back.
Coder and decoder do the same operations in the same order, token by token, so that both see the
same probabilities to the last bit; many parts of the file are coded side by side to make that fast.
"""

from pathlib import Path

from data.common import command
from data.common.outputs import check_output, writing
from eval.eval_config import CodingConfig

BY_DEFAULT = CodingConfig()


def main(
    run: Path,
    file: Path,
    out: Path | None = None,
    decompress: bool = False,
    checkpoint: str | None = None,
    compare: bool = False,
    overwrite: bool = False,
    coding: CodingConfig = BY_DEFAULT,
) -> None:
    """Compress a file with a trained model, or give it back.

    Args:
        run: folder of the run.
        file: what is to be compressed or decompressed.
        out: where the result goes; by default beside the file, with .lm added or taken away.
        decompress: give a compressed file back.
        checkpoint: name of the checkpoint, by default the newest.
        compare: also compress with xz, bzip2, zstd and brotli.
        overwrite: replace a file that is there; what is read is never replaced.
        coding: how it is read.
    """
    from eval.coding import compress, compressors, model_digest, restore, target_of
    from lm.inference.adapted import looking_up
    from lm.inference.loading import load_run, parts_of

    if coding.lanes is not None and decompress:
        raise ValueError("lanes has no effect on decompression: the file says how many there are")
    if not file.is_file():
        raise ValueError(f"{file} is {'no file' if file.exists() else 'not there'}; give a file")
    target = out or target_of(file, decompress)
    check_output(target, file, *parts_of(run), overwrite=overwrite)
    others = compressors() if compare else {}
    content = file.read_bytes()
    loaded = load_run(run, checkpoint)
    predictor = looking_up(loaded.predictor, coding.adapt)
    model = model_digest(loaded, predictor)
    if decompress:
        made = restore(predictor, model, content, file)
    else:
        made = compress(predictor, model, content, coding.lanes, file)
    with writing(target) as place:
        place.write_bytes(made)
    print(f"{target}: {len(made):,} bytes from {len(content):,}")
    if not decompress and content:
        rows = {"this model": made}
        rows |= {name: do(content) for name, do in others.items()}
        for name, result in rows.items():
            bits = 8 * len(result) / len(content)
            print(f"  {name:<12}{len(result):>12,} bytes {bits:8.4f} bits per byte")


if __name__ == "__main__":
    command.run(main, section="coding")
