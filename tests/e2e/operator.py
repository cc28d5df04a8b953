"""An operator at a terminal: runs `ota-hook` against one service, in this process or in one of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ota_hook import cli
from tests.e2e.service import COMMAND, Service, clean_environment

SECONDS = 60


Environ = Mapping[str, str]


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


def run_here(arguments: Sequence[str], stdin: str, environ: Environ, folder: Path) -> Done:
    """Run a command line in this process, with streams, environment and folder as it would have had in its own."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environ.keys():
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        time.tzset()
        status = cli.run(list(arguments))
    time.tzset()
    texts = [stream.buffer.getvalue().decode() for stream in (output, errors)]
    return Done(status, *texts)


@dataclass
class Operator:
    """Runs `ota-hook` against one service, from a folder of its own."""

    service: Service
    folder: Path
    in_process: bool = True

    def environ(self, more: Environ) -> dict[str, str]:
        ours = {
            "OTA_HOOK_ADMIN_LISTEN": f"127.0.0.1:{self.service.admin_port}",
            "OTA_HOOK_DATA_DIR": str(self.service.data_dir),
            "TZ": "CST-8",
            "LANG": "C.UTF-8",
        }
        return clean_environment(**{**ours, **more})

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=options.pop("env", None) or self.environ({}),
            cwd=self.folder,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def run(self, *arguments: str, status: int = 0, stdin: str = "", environ: Environ | None = None) -> Done:
        """The finished command; it must have ended with `status`, and never with a traceback."""
        if self.in_process:
            done = run_here(arguments, stdin, self.environ(environ or {}), self.folder)
        else:
            process = self.start(*arguments, stdin=subprocess.PIPE, env=self.environ(environ or {}))
            output, errors = process.communicate(stdin.encode(), timeout=SECONDS)
            done = Done(process.returncode, output.decode(), errors.decode())
        assert "Traceback" not in done.stderr, done.stderr
        assert done.status == status, done
        return done

    def ask(self, *arguments: str, stdin: str = "", status: int = 0) -> Any:
        """What `--json` answers: one document, and nothing on standard error."""
        return json.loads(self.run(*arguments, "--json", stdin=stdin, status=status).stdout)

    def refused(self, *arguments: str, status: int = 1, stdin: str = "", environ: Environ | None = None) -> str:
        """The one line that says why, without its beginning."""
        done = self.run(*arguments, status=status, stdin=stdin, environ=environ)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("ota-hook: ")
        return lines[0].removeprefix("ota-hook: ")

    def file(self, name: str, content: bytes | str) -> str:
        (self.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name
