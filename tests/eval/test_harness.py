"""The harness's command line where the harness, or the run, is not there."""

import sys

import pytest

from data.common import command
from eval import harness


def test_a_missing_harness_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.__main__", raising=False)
    with pytest.raises(SystemExit) as end:
        command.run(harness.main, argv=[])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'longrange-lm[harness]'")


def test_a_missing_run_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    words = "eval.harness run --model longrange --model_args run=nowhere --tasks arc_easy"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit) as end:
        command.run(harness.main, argv=[])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("eval: error: nowhere holds no run")


def test_what_a_task_lacks_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = pytest.importorskip("lm_eval.__main__", reason="the extra `harness` is not installed")

    def lacking() -> None:
        raise AssertionError("No tokenizer or pretrained provided.")

    monkeypatch.setattr(main, "cli_evaluate", lacking)
    with pytest.raises(SystemExit) as end:
        command.run(harness.main, argv=[])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("lm-evaluation-harness: No tokenizer or pretrained provided.")
