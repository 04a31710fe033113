"""Commands that start a run: as they are written, on two nodes, and under a stand-in for SLURM."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm.runs.run_config import RunConfig
from lm.training.stopping import STOPPED
from tests.networks import two_nodes
from tests.processes import assert_same_end, ends, start, train, write_config
from tools.launch import (
    Cluster,
    Place,
    batch_script,
    check_hostfile,
    options_of,
    shell_script,
)

PLACE = Place(Path("/shared/longrange"), Path("/shared/longrange/.venv/bin"))
PROGRAM = ["--config", "configs/pg19-36.yaml", "--run", "runs/pg19", "--training.ranks=64"]
EXAMPLES = Path(__file__).parents[2] / "configs" / "cluster"


def launch(config: Path, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.launch", "--preset", str(config), "--run", str(run)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("cluster", "begin"),
    [
        (
            Cluster(processes=8),
            "torchrun --nnodes=1 --nproc_per_node=8 --standalone -m -- lm.train",
        ),
        (
            Cluster(nodes=2, processes=8, head="node0"),
            "torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d "
            "--rdzv_endpoint=node0:{port} --rdzv_id=longrange-{number:x} -m -- lm.train",
        ),
        (
            Cluster("deepspeed", processes=4),
            "deepspeed --master_port={port} --num_accelerators=4 --module lm.train",
        ),
        (
            Cluster("deepspeed", nodes=2, hostfile=Path("hosts"), port=29500),
            "deepspeed --master_port=29500 --hostfile=hosts --module lm.train",
        ),
    ],
    ids=["one node", "several nodes", "deepspeed", "hostfile"],
)
def test_commands(cluster: Cluster, begin: str) -> None:
    script = shell_script(cluster, PLACE, [*PROGRAM, "--data.shards", "shards/a b"])
    last = script.splitlines()[-1]
    number = PLACE.number("runs/pg19")
    begin = begin.format(number=number, port=20_000 + number % 12_000)
    options = f"{shlex.join(PROGRAM)} --data.shards 'shards/a b'"
    assert last == f"exec python -m tools.ranks {begin} {options}"


def test_two_runs_do_not_meet() -> None:
    """Ports and ids follow from the folder, wherever the command is given."""
    cluster = Cluster(nodes=2, head="node0")
    scripts = {
        shell_script(cluster, place, ["--run", run])
        for place in (PLACE, replace(PLACE, checkout=Path("/other")))
        for run in ("runs/a", "runs/b")
    }
    ports = {re.findall(r"node0:(\d+) --rdzv_id=(\S+)", script)[0] for script in scripts}
    assert len(ports) == 4 and len({port for port, _ in ports}) == 4
    inside = replace(PLACE, checkout=PLACE.checkout / "runs")
    assert inside.number("a") == PLACE.number("runs/a") == PLACE.number("/shared/longrange/runs/a")


def test_the_example_for_slurm_is_what_is_written() -> None:
    cluster = Cluster("slurm", nodes=8, processes=8, sbatch=("--gpus-per-node=8",))
    assert (EXAMPLES / "requeue.sbatch").read_text() == batch_script(cluster, PLACE, PROGRAM)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nodes": 0}, "at least 1"),
        ({"nodes": 2}, "head must be given"),
        ({"head": "node0"}, "head must be given"),
        ({"launcher": "deepspeed", "nodes": 2}, "hostfile must be given"),
        ({"hostfile": Path("hosts")}, "hostfile must be given"),
        ({"minutes": 60}, "launcher slurm only"),
        ({"launcher": "slurm", "minutes": 5}, "shorter than the time limit"),
        *(({name: 10**12}, "at most") for name in ("nodes", "processes", "minutes")),
        *(({name: -1}, "at least 1") for name in ("nodes", "processes")),
        *(
            ({"nodes": 2, "head": head}, "the name or address of a machine")
            for head in (
                "",
                "a b",
                "a\nb",
                "-a",
                "a:29500",
                "a;b",
                "$(x)",
                "a/b",
                "a" * 300,
                "\u200b",
            )
        ),
        *(
            ({"launcher": "slurm", "sbatch": (option,)}, "sbatch")
            for option in (
                *(
                    "",
                    "gpu",
                    "-p gpu",
                    "--",
                    "partition=gpu",
                    "--partition gpu",
                    "# x",
                    "--Partition",
                ),
                *("--comment=a\nb", "--comment=\x00", "--comment=\u2028", "--a\n#SBATCH --b"),
                *("--nodes=1", "--ntasks=1", "--signal=TERM@5", "--array=0-3", "--time=1"),
            )
        ),
    ],
    ids=str,
)
def test_clusters_that_make_no_sense_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Cluster(**changes)


def test_a_dry_run_writes_the_command_and_starts_nothing(
    run_config: RunConfig, tmp_path: Path
) -> None:
    path = write_config(run_config, tmp_path)
    options = ("--processes", "2", "--dry-run", "--", "--training.zero", "2")
    result = launch(path, tmp_path / "run", *options)
    script = tmp_path / "run" / "launch.sh"
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == script.read_text().strip()
    assert script.read_text().strip().endswith("--training.zero 2") and os.access(script, os.X_OK)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["launch.sh"]
    missing = launch(tmp_path / "none.yaml", tmp_path / "other")
    assert missing.returncode == 2 and "there is no preset" in missing.stderr


NAMES = (
    "a b",
    "a'b",
    'a"b',
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned",
    "a && touch pwned",
    "a | touch pwned",
    "a > pwned",
    "*",
    "~",
    "#a",
    "-a",
    "--help",
    "100%j",
    "a\\b",
    "!a",
    "{a,b}",
    "Война и мир",
    "战争",
    "=",
)
STAND_IN = """#!/bin/sh
printf '%s\\0' "$@" >"$SEEN"
"""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "slurm"])
def test_scripts_give_names_on_as_they_are(
    launcher: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a shell makes of the written scripts, with a stand-in for Python that notes its
    arguments.
    """
    scripts, checkout, seen = tmp_path / name / "bin", tmp_path / "out" / name, tmp_path / "seen"
    for folder in (scripts, checkout):
        folder.mkdir(parents=True)
    for program, text in {"python": STAND_IN, **STAND_INS}.items():
        (scripts / program).write_text(text if text is STAND_IN else f"#!/bin/bash\n{text}\n")
        (scripts / program).chmod(0o755)
    monkeypatch.setenv("SEEN", str(seen))
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    run, preset = Path(name) / name, Path(name)
    program = options_of(preset, run, ["--data.shards", name], 2)
    cluster, write = Cluster(launcher, processes=2), shell_script  # type: ignore[arg-type]
    if launcher == "slurm":
        cluster, write = replace(cluster, sbatch=(f"--comment={name}",)), batch_script
    script = tmp_path / "script"
    script.write_text(write(cluster, Place(checkout, scripts), program))
    command = [str(scripts / "sbatch"), str(script)] if launcher == "slurm" else ["sh", str(script)]
    result = subprocess.run(
        command,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and not result.stderr, result
    words = seen.read_text().split("\0")[:-1]
    assert words[-len(program) :] == program
    assert program[1].removeprefix("./") == name and program[3].removeprefix("./") == str(run)
    assert not list(tmp_path.rglob("pwned"))
    if launcher == "slurm":
        asked = [
            line[8:] for line in script.read_text().splitlines() if line.startswith("#SBATCH ")
        ]
        options = [word for line in asked for word in shlex.split(line)]
        assert len(options) == len(asked) == 9
        assert options[0] == f"--job-name={name}" and options[-1] == f"--comment={name}"


@pytest.mark.parametrize(
    "text", ["a\nb", "a\rb", "a\x00", "\x1b[2J", "a\u2028b", "\u202e", "\udcff"]
)
@pytest.mark.parametrize("where", ["run", "preset", "option", "checkout", "scripts"])
def test_names_with_control_characters_are_refused(text: str, where: str) -> None:
    names = dict.fromkeys(("run", "preset", "option", "checkout", "scripts"), "a") | {where: text}
    place = Place(Path("/", names["checkout"]), Path("/", names["scripts"]))

    def written(cluster: Cluster, write: Callable[[Cluster, Place, list[str]], str]) -> str:
        program = options_of(Path(names["preset"]), Path(names["run"]), [names["option"]], 1)
        return write(cluster, place, program)

    with pytest.raises(ValueError, match="cannot be printed"):
        written(Cluster(), shell_script)
    with pytest.raises(ValueError, match="cannot be printed"):
        written(Cluster("slurm"), batch_script)


@pytest.mark.parametrize("option", ["--run", "--run=b", "--config", "--training.ranks=1"])
def test_what_the_launcher_sets_is_not_set_again(option: str) -> None:
    with pytest.raises(ValueError, match="set from the options of tools"):
        options_of(Path("a"), Path("b"), [option], 1)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "names 0 machines"),
        ("# node0 slots=8\n\n", "names 0 machines"),
        ("node0 slots=8\n", "names 1 machines"),
        ("node0 slots=8\nnode1 slots=8\nnode2 slots=8\n", "names 3 machines"),
        ("node0 slots=8\nnode0 slots=8\n", "line 2 names node0 again"),
        ("node0 slots=8\nnode1 slots=4\n", "line 2 gives node1 4 slots"),
        ("node0 slots=0\nnode1 slots=8\n", "line 1 gives node0 0 slots"),
        *(
            (f"node0 slots=8\n{line}\n", "line 2 must be `HOST slots=PROCESSES`")
            for line in (
                *("node1", "node1 8", "node1 slots=", "node1 slots=eight", "node1 slots=8x"),
                *("node1 slots = 8", "node1 slots=-8", "node1 slots=8.0", "slots=8", "node1:8"),
                *("-node1 slots=8", "node1;x slots=8", "$(x) slots=8", "node1 slots=8 gpus=8"),
                *("node1 slots=\u0668", "\x00 slots=8", "node1 SLOTS=8", "node1 slots=9999999999"),
            )
        ),
    ],
    ids=str,
)
def test_hostfiles_that_would_start_other_ranks_are_refused(
    lines: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "hosts"
    cluster = Cluster("deepspeed", nodes=2, processes=8, hostfile=path)
    with pytest.raises(ValueError, match="there is no hostfile"):
        check_hostfile(cluster)
    path.write_text(lines)
    with pytest.raises(ValueError, match=sentence):
        check_hostfile(cluster)
    path.write_bytes(b"\xff slots=8\n")
    with pytest.raises(ValueError, match="line 1 must be"):
        check_hostfile(cluster)


def test_the_hostfile_of_the_examples_is_taken(tmp_path: Path) -> None:
    cluster = Cluster("deepspeed", nodes=2, processes=8, hostfile=EXAMPLES / "hostfile")
    check_hostfile(cluster)
    # A script that is given where the file is not: deepspeed would start one process.
    place = Place(tmp_path, Path(sys.executable).parent)
    script = shell_script(replace(cluster, hostfile=Path("hosts")), place, PROGRAM)
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "there is no hostfile hosts\n")


@pytest.mark.dist
@pytest.mark.slow
def test_two_nodes_end_as_two_processes_of_one(
    run_config: RunConfig, tmp_path: Path, free_port: int
) -> None:
    """The written command, given on two nodes with a network of their own between them."""
    path = write_config(run_config, tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    with two_nodes() as nodes:
        options = ("--nodes", "2", "--head", "node0", "--port", str(free_port), "--dry-run")
        assert launch(path, two, *options).returncode == 0
        running = [
            subprocess.Popen(
                node.command(str(two / "launch.sh")), stderr=subprocess.PIPE, text=True
            )
            for node in nodes
        ]
        try:
            assert [status for status, _ in ends(running)] == [0, 0]
        finally:
            for process in running:
                process.kill()
        received = [node.received() for node in nodes]
    assert [status for status, _ in ends(start(train(path, one), 2))] == [0, 0]
    assert_same_end(one, two)
    assert (two / "checkpoints" / "step-00000012" / "rank-1.safetensors").is_file()
    weights = (two / "checkpoints" / "step-00000012" / "model.safetensors").stat().st_size
    steps = run_config.training.steps or 0
    # Every step each node must hear of the other's gradients.
    assert min(received) > steps * weights / 2


STAND_INS = {
    "sbatch": 'SLURM_JOB_ID=7 SLURM_JOB_NODELIST=localhost exec bash "$1"',
    "scontrol": 'if [ "$1" = requeue ]; then echo "$2" >>"$QUEUE"; else echo localhost; fi',
    "srun": """
bad=${1#--kill-on-bad-exit=}
shift
tasks=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" >"$QUEUE.tasks"
worst=0
for task in "${tasks[@]}"; do
    wait -n
    status=$?
    [ $status -le $worst ] || worst=$status
    [ $status -eq 0 ] || [ $bad -eq 0 ] || kill "${tasks[@]}" 2>/dev/null
done
exit $worst
""",
}


@pytest.mark.slow
@pytest.mark.dist
def test_slurm_stops_a_run_in_time_and_queues_it_again(
    run_config: RunConfig, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much of SLURM as the script uses: two tasks, SIGUSR1 to each, requeueing on status 75."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    queue, tasks = tmp_path / "queue", tmp_path / "queue.tasks"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(queue))
    training = replace(run_config.training, steps=120, save_every=120)
    path = write_config(replace(run_config, training=training), tmp_path)
    one, run = tmp_path / "one", tmp_path / "run"
    options = ("--launcher", "slurm", "--processes", "2", "--port", str(free_port))
    assert launch(path, run, *options, "--dry-run").returncode == 0
    first = subprocess.Popen(["sbatch", str(run / "launch.sbatch")], stderr=subprocess.PIPE)
    log = run / "metrics.jsonl"
    while not (log.is_file() and '"step": 5,' in log.read_text()):
        assert first.poll() is None
        time.sleep(0.01)
    for task in tasks.read_text().split():
        os.kill(int(task), 10)
    assert first.wait(timeout=120) == STOPPED
    assert queue.read_text().split() == ["7"]
    assert launch(path, run, *options).returncode == 0
    assert queue.read_text().split() == ["7"]
    assert [status for status, _ in ends(start(train(path, one), 2))] == [0, 0]
    assert_same_end(one, run)
