"""Program: the exact command that starts a run on one node, on several, or under SLURM.

It is printed, and written to the run's folder, so that it can be read, kept and given again.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
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
PORTS = range(20_000, 32_000)
"""Below those that systems give to whoever asks for any."""
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
SBATCH = re.compile(r"--([a-z][a-z-]*)(=.*)?", re.DOTALL)
OWN_SBATCH = {"nodes", "ntasks", "ntasks-per-node", "time", "signal", "job-name", "output", "array"}
"""Options that would start other ranks than those asked for."""


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
    port: Port | None = None
    """TCP port of the first node at which the ranks meet; none: one that follows from the run's
    folder, or under slurm from the job, so that two runs do not meet at one."""
    hostfile: Path | None = None
    """Lines `HOST slots=PROCESSES`, for deepspeed on several nodes."""
    minutes: int = 1440
    """Time limit, for slurm."""
    grace: int = 300
    """Seconds before the limit at which slurm asks the run to save and stop."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as '[--partition=gpu, --account=books]'."""

    def __post_init__(self) -> None:
        for name, most in (("nodes", 100_000), ("processes", 1_024), ("minutes", 10**6)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be at least 1 and at most {most:,}")

        several = self.nodes > 1
        if (self.head is not None) != (self.launcher == "torchrun" and several):
            raise ValueError("head must be given for torchrun on several nodes, and only then")
        if self.head is not None and not HOST.fullmatch(self.head):
            raise ValueError(
                f"head must be the name or address of a machine, without a port, not {self.head!r}"
            )
        if (self.hostfile is not None) != (self.launcher == "deepspeed" and several):
            raise ValueError("hostfile must be given for deepspeed on several nodes, and only then")
        if self.launcher != "slurm" and (self.sbatch or (self.minutes, self.grace) != (1440, 300)):
            raise ValueError("minutes, grace and sbatch have an effect with launcher slurm only")
        if not 0 < self.grace < 60 * self.minutes:
            raise ValueError("grace must be above 0 and shorter than the time limit")
        for option in self.sbatch:
            found = SBATCH.fullmatch(option)
            if not found:
                raise ValueError(f"sbatch takes options --NAME or --NAME=VALUE, not {option!r}")
            if found[1] in OWN_SBATCH:
                raise ValueError(f"sbatch --{found[1]} is set from the options of tools.launch")
            printable("sbatch", option)

    @property
    def ranks(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.processes


def printable(name: str, text: str) -> None:
    """ValueError for text that holds a control character: an end of line would begin a command."""
    if not text.isprintable():
        raise ValueError(f"{name} {text!r} holds a character that cannot be printed: rename it")


def check_hostfile(cluster: Cluster) -> None:
    """Make sure that deepspeed starts all processes; without the file it starts those of one node.

    Raises:
        ValueError: the file is not there, is not of lines `HOST slots=NUMBER`, or does not have
            the machines and processes that are asked for.
    """
    path = cluster.hostfile
    assert path is not None
    if not path.is_file():
        raise ValueError(f"there is no hostfile {path}")
    hosts: set[str] = set()
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"\s*(\S+)\s+slots=([0-9]{1,9})\s*(#.*)?", line, re.ASCII)
        if not found or not HOST.fullmatch(found[1]):
            raise ValueError(
                f"{path}, line {number} must be `HOST slots=PROCESSES`, not {line.strip()!r}"
            )
        if found[1] in hosts:
            raise ValueError(f"{path}, line {number} names {found[1]} again")
        if int(found[2]) != cluster.processes:
            raise ValueError(
                f"{path}, line {number} gives {found[1]} {int(found[2])} slots; cluster.processes "
                f"is {cluster.processes}"
            )
        hosts.add(found[1])
    if len(hosts) != cluster.nodes:
        raise ValueError(f"{path} names {len(hosts)} machines; cluster.nodes is {cluster.nodes}")


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
        preset: config file of the run, or the name of a preset.
        cluster: machines.
        options: further options of lm.train; they may also stand after "--" at the end.
        dry_run: only print and write it.
    """
    if not command.find_preset(preset).is_file():
        raise ValueError(f"there is no preset {preset}")
    if cluster.hostfile is not None:
        check_hostfile(cluster)
    program = options_of(preset, run, options or [], cluster.ranks)
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
    start = ["sbatch" if slurm else "sh", plain(script)]
    where = "on every node" if cluster.head else "once"
    say(f"{script} is written; to be given {where}: {shlex.join(start)}")
    if not dry_run:
        program_path = shutil.which(start[0])
        if program_path is None:
            raise ValueError(f"there is no {start[0]} on this machine: give it where there is")
        sys.stdout.flush()
        # In the place of this process, so that signals to it are signals to the launcher.
        os.execv(program_path, start)


def options_of(preset: Path, run: Path, options: list[str], ranks: int) -> list[str]:
    """Options of lm.train.

    Raises:
        ValueError: a name that cannot be printed, or an option that is given here already.
    """
    for option in options:
        printable("the option", option)
        if option.partition("=")[0] in ("--run", "--config", "--training.ranks"):
            raise ValueError(f"{option} is set from the options of tools.launch")
    own = ["--config", plain(preset), "--run", plain(run), f"--training.ranks={ranks}"]
    for text in own:
        printable("the name", text)
    return own + options


def plain(path: Path) -> str:
    """A path as an argument, which must not begin with a dash."""
    return f"./{path}" if str(path).startswith("-") else str(path)


@dataclass(frozen=True)
class Place:
    """Where every node finds the software."""

    checkout: Path
    scripts: Path
    """Folder of the environment's python, torchrun and deepspeed."""

    @property
    def lines(self) -> str:
        """The beginning of a script."""
        for path in (self.checkout, self.scripts):
            printable("the folder", str(path))
        checkout, scripts = shlex.quote(str(self.checkout)), shlex.quote(str(self.scripts))
        # As here: whether Python looks for modules in the working folder.
        safe = "\nexport PYTHONSAFEPATH=1" if sys.flags.safe_path else ""
        return f"cd -- {checkout} || exit\nexport PATH={scripts}:$PATH{safe}"

    def number(self, run: str) -> int:
        """A number that follows from the run's folder, on every machine the same."""
        text = str(self.checkout / run).encode(errors="surrogateescape")
        return int.from_bytes(hashlib.sha256(text).digest()[:6])


def shell_script(cluster: Cluster, place: Place, program: list[str]) -> str:
    """The command of torchrun or deepspeed as a script; `program` is the options of lm.train."""
    number = place.number(program[program.index("--run") + 1])
    port = PORTS.start + number % len(PORTS) if cluster.port is None else cluster.port
    check = ""
    if cluster.launcher == "deepspeed":
        begin = ["deepspeed", f"--master_port={port}"]
        if cluster.hostfile is None:
            begin.append(f"--num_accelerators={cluster.processes}")
        else:
            file = plain(cluster.hostfile)
            begin.append(f"--hostfile={file}")
            said = shlex.quote(f"there is no hostfile {file}")
            # deepspeed would go on with the processes of this machine.
            check = f"[ -f {shlex.quote(file)} ] || {{ echo {said} >&2; exit 2; }}\n"
        begin += ["--module", MODULE]
    else:
        begin = ["torchrun", f"--nnodes={cluster.nodes}", f"--nproc_per_node={cluster.processes}"]
        if cluster.head is None:
            begin.append("--standalone")
        else:
            begin += ["--rdzv_backend=c10d", f"--rdzv_endpoint={cluster.head}:{port}"]
            begin.append(f"--rdzv_id=longrange-{number:x}")
        # Without "--" torchrun takes --run for a part of its own --run-path.
        begin += ["-m", "--", MODULE]
    command = shlex.join(["python", "-m", "tools.ranks", *begin, *program])
    return f"#!/bin/sh\n{place.lines}\n{check}exec {command}\n"


def batch_script(cluster: Cluster, place: Place, program: list[str]) -> str:
    """A script for sbatch: one task a process, stopped in time by SIGUSR1 and queued again."""
    run = Path(program[program.index("--run") + 1])
    log = str(run).replace("%", "%%")
    asked = [
        f"--job-name={run.name}",
        f"--nodes={cluster.nodes}",
        f"--ntasks-per-node={cluster.processes}",
        f"--time={cluster.minutes}",
        f"--signal=USR1@{cluster.grace}",
        "--requeue",
        "--open-mode=append",
        f"--output={log}/slurm-%j.log",
        *cluster.sbatch,
    ]
    train = shlex.join(["python", "-m", MODULE, *program])
    port = f"$(({PORTS.start} + SLURM_JOB_ID % {len(PORTS)}))"
    # sbatch reads its lines by the rules of a shell's quotes.
    lines = [f"#SBATCH {shlex.quote(option)}" for option in asked]
    return f"""\
#!/bin/bash
{chr(10).join(lines)}
{place.lines}
export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_PORT={port if cluster.port is None else cluster.port}
# SIGUSR1 goes to every task, each of which is one rank; this shell must outlive it.
trap : USR1
# srun does not take this over from sbatch by itself.
if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
# A rank that has saved ends with a status of its own, and the others are to save too.
srun --kill-on-bad-exit=0 bash -c '
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
