"""What a measurement must say of itself: machine, commit, command, and who else used the machine meanwhile.

Also what the system's own books say of a process: the CPU time that it used, and the time that it waited for a CPU.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE = 0
LOAD_CORE = 1
"""What is measured has a core of its own; the load and Redis share the other."""


def say(line: str = "") -> None:
    """Print one line, at once: a measurement that is cut short shows what it had."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def describe(module: str) -> None:
    """Print command, commit, machine and what the CPUs do besides."""
    given = shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)  # noqa: S607
    say(f"$ {given}")
    say(f"commit {commit.stdout.strip() or 'unknown'}, Python {platform.python_version()}, Linux {platform.release()}")
    say(f"{os.cpu_count()} × {_processor()}, load average before {_load_average()}")
    say()


def farewell() -> None:
    """Print what `describe` can't know yet."""
    say()
    say(f"load average behind {_load_average()}")


_free: set[int] = set()


def use_every_core() -> None:
    """Let what `on_core` starts run anywhere."""
    _free.update(range(os.cpu_count() or 1))


def on_core(core: int, command: list[str]) -> list[str]:
    """The command, kept on one core where there is more than one; it ends with this script, however that ends."""
    pinned = ["taskset", "--cpu-list", str(core)] if (os.cpu_count() or 1) > 1 and core not in _free else []
    return [*pinned, "setpriv", "--pdeathsig", "KILL", *command]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far, in seconds. `waited` is the time that it could run and had no CPU."""

    cpu: float
    waited: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """From /proc: user and system time of all threads, ended ones too; the wait is that of those that live."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        waits = [int((thread / "schedstat").read_text().split()[1]) for thread in Path(f"/proc/{pid}/task").iterdir()]
        return cls((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), sum(waits) / 1e9)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu - other.cpu, self.waited - other.waited)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _load_average() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())
