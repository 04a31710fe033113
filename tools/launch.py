"""Program: the exact command that starts a run on one node, on several, or under SLURM.

It is printed, and written to the run's folder, so that it can be read, kept and given again.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.common import command
from data.common.files import atomic_path
from data.common.say import say
from data.common.schema import Port
from lm.training.stopping import STOPPED

MODULE = "lm.train"


@dataclass(frozen=True)
class Cluster:
    """The machines that a run is started on."""

    launcher: Literal["torchrun", "deepspeed", "slurm"] = "torchrun"
    """torchrun: the same command is given on every node; deepspeed: one command, which reaches the
    nodes of a hostfile by ssh; slurm: a batch script, which is queued again when its time is up."""
    nodes: int = 1
    """Machines."""
    processes: int = 1
    """Processes on each: one a GPU."""
    head: str | None = None
    """Name of the first node, as `hostname` says there, for torchrun on several."""
    port: Port = 29400
    """TCP port of the first node at which the ranks meet."""
    hostfile: Path | None = None
    """Lines `HOST slots=PROCESSES`, for deepspeed on several nodes."""
    minutes: int = 1440
    """Time limit, for slurm."""
    grace: int = 300
    """Seconds before the limit at which slurm asks the run to save and stop."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as '[--partition=gpu, --account=books]'."""

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.processes < 1:
            raise ValueError("nodes and processes must each be at least 1")
        several = self.nodes > 1
        if (self.head is not None) != (self.launcher == "torchrun" and several):
            raise ValueError("head must be given for torchrun on several nodes, and only then")
        if (self.hostfile is not None) != (self.launcher == "deepspeed" and several):
            raise ValueError("hostfile must be given for deepspeed on several nodes, and only then")
        if self.launcher != "slurm" and (self.sbatch or (self.minutes, self.grace) != (1440, 300)):
            raise ValueError("minutes, grace and sbatch have an effect with launcher slurm only")
        if not 0 < self.grace < 60 * self.minutes:
            raise ValueError("grace must be above 0 and shorter than the time limit")


def main(
    run: Path,
    preset: Path,
    cluster: Cluster,
    options: list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Print and write the command that starts a run, and give it.

    Args:
        run: folder of the run.
        preset: config file of the run.
        cluster: machines.
        options: further options of lm.train; they may also stand after "--" at the end.
        dry_run: only print and write it.
    """
    if not preset.is_file():
        raise ValueError(f"there is no preset {preset}")
    program = ["--config", str(preset), "--run", str(run), *(options or [])]
    slurm = cluster.launcher == "slurm"
    script = run / ("launch.sbatch" if slurm else "launch.sh")
    place = Place(Path.cwd(), Path(sys.executable).parent)
    write = batch_script if slurm else shell_script
    text = write(cluster, place, program)
    run.mkdir(parents=True, exist_ok=True)
    with atomic_path(script) as temporary:
        temporary.write_text(text)
        temporary.chmod(0o755)
    print(text)
    start = ["sbatch", str(script)] if slurm else [str(script)]
    where = "on every node" if cluster.head else "once"
    say(f"{script} is written; to be given {where}: {shlex.join(start)}")
    if not dry_run:
        raise SystemExit(subprocess.run(start, check=False).returncode)


@dataclass(frozen=True)
class Place:
    """Where every node finds the software."""

    checkout: Path
    scripts: Path
    """Folder of the environment's python, torchrun and deepspeed."""

    @property
    def lines(self) -> str:
        """The beginning of a script."""
        checkout, scripts = shlex.quote(str(self.checkout)), shlex.quote(str(self.scripts))
        return f"cd {checkout}\nexport PATH={scripts}:$PATH"


def shell_script(cluster: Cluster, place: Place, program: list[str]) -> str:
    """The command of torchrun or deepspeed as a script; `program` is the options of lm.train."""
    begin = ["torchrun"]
    if cluster.launcher == "deepspeed":
        begin = ["deepspeed", f"--master_port={cluster.port}"]
        if cluster.hostfile is None:
            begin.append(f"--num_accelerators={cluster.processes}")
        else:
            begin.append(f"--hostfile={cluster.hostfile}")
        begin += ["--module", MODULE]
    else:
        begin += [f"--nnodes={cluster.nodes}", f"--nproc_per_node={cluster.processes}"]
        if cluster.head is None:
            begin.append("--standalone")
        else:
            begin += ["--rdzv_backend=c10d", f"--rdzv_endpoint={cluster.head}:{cluster.port}"]
            begin.append("--rdzv_id=longrange")
        # Without "--" torchrun takes --run for a part of its own --run-path.
        begin += ["-m", "--", MODULE]
    return f"#!/bin/sh\n{place.lines}\nexec {shlex.join([*begin, *program])}\n"


def batch_script(cluster: Cluster, place: Place, program: list[str]) -> str:
    """A script for sbatch: one task a process, stopped in time by SIGUSR1 and queued again."""
    run = Path(program[program.index("--run") + 1])
    asked = [
        f"--job-name={run.name}",
        f"--nodes={cluster.nodes}",
        f"--ntasks-per-node={cluster.processes}",
        f"--time={cluster.minutes}",
        f"--signal=USR1@{cluster.grace}",
        "--requeue",
        "--open-mode=append",
        f"--output={run / 'slurm-%j.log'}",
        *cluster.sbatch,
    ]
    train = shlex.join(["python", "-m", MODULE, *program])
    return f"""\
#!/bin/bash
{chr(10).join(f"#SBATCH {option}" for option in asked)}
{place.lines}
export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_PORT={cluster.port}
# SIGUSR1 goes to every task, each of which is one rank; this shell must outlive it.
trap : USR1
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    export LOCAL_WORLD_SIZE={cluster.processes}
    exec "$@"
' rank {train}
status=$?
# {STOPPED}: saved before its time was up, and to be continued by the same command.
if [ "$status" -eq {STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


if __name__ == "__main__":
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    more = ["--options", json.dumps(options)] if options else []
    command.run(main, section="cluster", argv=own + more)
