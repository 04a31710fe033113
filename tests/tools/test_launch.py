"""Commands that start a run: as they are written, on two nodes, and under a stand-in for SLURM."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm.training.config import RunConfig
from lm.training.stopping import STOPPED
from tests.networks import two_nodes
from tests.processes import assert_same_end, ends, start, train, write_config
from tools.launch import Cluster, Place, batch_script, shell_script

PLACE = Place(Path("/shared/longrange"), Path("/shared/longrange/.venv/bin"))
PROGRAM = ["--config", "configs/pg19.yaml", "--run", "runs/pg19"]
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
            "--rdzv_endpoint=node0:29400 --rdzv_id=longrange -m -- lm.train",
        ),
        (
            Cluster("deepspeed", processes=4),
            "deepspeed --master_port=29400 --num_accelerators=4 --module lm.train",
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
    assert last == f"exec {begin} {shlex.join(PROGRAM)} --data.shards 'shards/a b'"


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


@pytest.mark.dist
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
shift
tasks=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" >"$QUEUE.tasks"
worst=0
for task in "${tasks[@]}"; do
    wait "$task" || { status=$?; [ $status -le $worst ] || worst=$status; }
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
