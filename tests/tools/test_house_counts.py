import sys
import threading

import pytest

from tools import house
from tools.entered import Inside, Repeated, Watch, named


@pytest.fixture
def tree(tmp_path):
    """A checkout with three library files, one of them imported from one place."""
    texts = {
        "data/a.py": "x = 1\n" * 80,
        "data/b.py": "from data import a\n\ndef f():\n    import lm.c\n",
        "lm/c.py": "import data.a\nx = 1\n",
        "eval/__init__.py": "",
        "tools/d.py": "from data.a import x\n",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_sizes_and_importers_are_counted(tree):
    assert list(house.sizes(tree).values()) == [4, 86, 3, 2, 2, 1]
    counted = {path.relative_to(tree).as_posix(): n for path, n in house.importers(tree).items()}
    assert counted == {"data/a.py": 3, "lm/c.py": 1}


def test_a_checkout_without_the_programs_is_measured_all_the_same(tree, capsys):
    counted = house.count(tree)
    assert counted["entered"] == {} and counted["sizes"]["library files"] == 4
    assert "was counted without what its programs enter" in capsys.readouterr().err
    here = {"sizes": counted["sizes"], "entered": {"a token": ["lm/c.py:f", "lm/c.py:g"]}}
    lines = house.table({"here": here, "there": counted})
    assert "| a token | 2 / 1 | not counted |" in lines
    assert "| library lines | 86 | 86 |" in lines
    assert list(house.listing({"here": here})) == ["\na token, here:", "  lm/c.py 2"]


MODULE = """
def once():
    return inner()
def inner():
    return [each for each in (lambda: (0,))()]
def aside():
    pass
class A:
    def step(self):
        if self.first:
            inner()
        self.first = False
    first = True
"""


def test_functions_are_counted_where_they_are_asked_for(tmp_path):
    path = tmp_path / "lm" / "m.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    inside, step = Inside("once", "lm/m.py"), Repeated("A.step")
    space: dict = {}
    before = sys.getprofile()
    sys.setprofile(Watch(tmp_path, inside, step))
    exec(compile(MODULE, path, "exec"), space)
    space["aside"]()
    space["once"]()
    a = space["A"]()
    for _ in range(3):
        a.step()
    thread = threading.Thread(target=space["aside"])
    thread.start()
    thread.join()
    sys.setprofile(before)
    assert named(tmp_path, inside.functions) == ["lm/m.py:inner", "lm/m.py:once"]
    # The first step, which alone calls inner, is not warm; other threads have their own profile.
    assert named(tmp_path, step.functions) == ["lm/m.py:A.step"]


@pytest.mark.slow
def test_what_a_step_a_token_and_a_score_enter_is_counted_in_this_tree():
    counted = house.entered(house.ROOT)
    step, loop, attention, token, shown, record = counted.values()
    assert "lm/training/trainer.py:Trainer.train_step" in step
    assert {*step} | {"lm/training/loop.py:Loop.step"} <= {*loop}
    assert {*token} | {"lm/inference/writing.py:continued.<locals>.show"} <= {*shown}
    assert {*attention} < {*step}
    assert any(name.endswith(".backward") for name in attention)
    assert any(name.endswith(":Session.advance") for name in token)
    assert "eval/protocol.py:record" in record
    most = {"step": (step, 15), "attention": (attention, 4), "token": (token, 8)}
    for what, (functions, files) in (most | {"record": (record, 6)}).items():
        assert len(house.files_of(functions)) <= files, what
    assert not any(name.endswith(">") for functions in counted.values() for name in functions)
