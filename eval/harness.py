r"""Program: lm-evaluation-harness with a trained model that carries its memory through a document.

    python -m eval.harness run --model longrange --model_args run=runs/books \
        --include_path tasks --tasks my_task

is the harness's own command line with one more model. The harness cuts long documents into windows
that begin nearly cold; here a document is read from its beginning to its end, as eval.score does.
"""

from data.common import command
from data.common.requirements import extra


def register() -> None:
    """Make the model longrange known to the harness: for `lm_eval.simple_evaluate` too."""
    import lm_eval.models  # noqa: F401 - registers the harness's own, by name
    from lm_eval.api.registry import model_registry

    # By name too: whoever asks for help waits for no torch.
    if "longrange" not in model_registry:
        model_registry.register("longrange", target="eval.harness_model:LongRangeLM")


def main() -> None:
    """Run lm-evaluation-harness, which reads its own command line, with the model longrange."""
    with extra("harness", "eval.harness"):
        from lm_eval.__main__ import cli_evaluate
    register()
    try:
        cli_evaluate()
    except AssertionError as error:
        # So do the harness's tasks say what they lack.
        if not str(error):
            raise
        raise ValueError(f"lm-evaluation-harness: {error}") from error


if __name__ == "__main__":
    # The harness parses sys.argv itself.
    command.run(main, argv=[])
