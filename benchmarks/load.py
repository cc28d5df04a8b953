"""The load: benchmarks/load_generator.c, compiled and run, and what it saw."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.broker_calls import PATH
from benchmarks.surroundings import LOAD_CORE, ROOT, on_core, say

_GO_PACKAGES: Final = Path("/usr/share/gocode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One run of the generator. Latencies are in µs; the rest are answers by kind."""

    calls: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    ignore: int
    upgrade: int
    no_upgrade: int
    empty: int
    other: int
    failed: int

    @property
    def per_second(self) -> float:
        return self.calls / self.seconds


def compile_c(name: str, folder: Path, *, libraries: tuple[str, ...] = ()) -> Path:
    """A C program of this folder, built with cc on nghttp2. Ends the script where the headers are missing."""
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "libnghttp2"],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        sys.exit("The headers of nghttp2 are missing; run: apt-get install -y libnghttp2-dev pkg-config")
    program = folder / name
    source = ROOT / "benchmarks" / f"{name}.c"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-O2", "-o", program, source, *shlex.split(flags), *libraries], check=True)  # noqa: S603
    return program


def compile_go(name: str, folder: Path) -> Path | None:
    """A Go program of this folder, built offline on Debian's packages; None, and a line, where they are missing."""
    if shutil.which("go") is None or not (_GO_PACKAGES / "src/google.golang.org/grpc").is_dir():
        say("Go is left out; to have it: apt-get install -y golang-go golang-google-grpc-dev")
        return None
    program = folder / name
    places = {"GO111MODULE": "off", "GOPATH": str(_GO_PACKAGES), "GOCACHE": str(folder / "go-cache")}
    command = ["go", "build", "-o", str(program), str(ROOT / "benchmarks" / f"{name}.go")]
    subprocess.run(command, check=True, env=os.environ | places)  # noqa: S603
    return program


@dataclass(frozen=True, slots=True)
class Generator:
    """The compiled generator, and how many connections and streams it keeps."""

    program: Path
    connections: int
    streams: int

    def run(self, port: int, bodies: Path, *, calls: int, first: int = 0, rate: float = 0.0) -> Seen:
        """Make `calls` calls from the `first` body on: as fast as answers come, or `rate` a second. Ends by itself."""
        numbers = (self.connections, self.streams, calls, rate, first)
        command = [str(self.program), str(port), PATH, str(bodies), *map(str, numbers)]
        said = subprocess.run(on_core(LOAD_CORE, command), check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        return Seen(**json.loads(said.stdout))
