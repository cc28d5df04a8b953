"""Build steps that pyproject.toml can't name: the compiled modules and the stubs made from protos/exhook.proto."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
DEBUG = os.environ.get("OTA_HOOK_BUILD_DEBUG") == "1"
MACROS: list[tuple[str, str | None]] = [("CYTHON_TRACE", "1")] if DEBUG else []
OPTIONS = ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O2"]
COMPILED = (
    "ota_hook._device_set",
    "ota_hook._matcher",
    "ota_hook._packed",
    "ota_hook._versions",
    "ota_hook.exhook._codec",
    "ota_hook.exhook._session",
)
NEEDS = {
    "ota_hook._device_set": ("libxxhash", "0.8.0", "libxxhash-dev"),
    "ota_hook._matcher": ("libxxhash", "0.8.0", "libxxhash-dev"),
    "ota_hook._packed": ("libxxhash", "0.8.0", "libxxhash-dev"),
    "ota_hook.exhook._session": ("libnghttp2", "1.52", "libnghttp2-dev"),
}
"""The C library of a module, the oldest version that it builds with, and the Debian package that brings its headers."""
HEADERS_ALONE = ("libxxhash",)
"""These are inlined; nothing is linked."""


def generate_stubs() -> None:
    """Write ota_hook/exhook/exhook_pb2.py and .pyi from protos/exhook.proto."""
    target = "ota_hook/exhook"
    command = ["-m", "grpc_tools.protoc", "-Iprotos", f"--python_out={target}", f"--pyi_out={target}", "exhook.proto"]
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)  # noqa: S603


def library_flags(kind: str, library: str, at_least: str, package: str) -> list[str]:
    """What pkg-config says of a C library. Where it isn't there the build ends with the line that brings it."""
    command = ["pkg-config", kind, f"{library} >= {at_least}"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        sys.exit(
            f"ota-hook needs the headers of {library} {at_least} or later; run: apt-get install -y {package} pkg-config"
        )
    return shlex.split(said.stdout)


class BuildPy(build_py):  # type: ignore[misc]
    def run(self) -> None:
        generate_stubs()
        super().run()


class BuildExt(build_ext):  # type: ignore[misc]
    def run(self) -> None:
        for extension in self.extensions:
            # Asked for here and not when this file is read: a source distribution needs no library.
            if needed := NEEDS.get(extension.name):
                extension.extra_compile_args += library_flags("--cflags", *needed)
                if needed[0] not in HEADERS_ALONE:
                    extension.extra_link_args += library_flags("--libs", *needed)
        generate_stubs()  # an editable install runs build_ext alone
        super().run()


setup(
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    ext_modules=cythonize(  # type: ignore[no-untyped-call]
        [
            Extension(name, [name.replace(".", "/") + ".pyx"], define_macros=MACROS, extra_compile_args=[*OPTIONS])
            for name in COMPILED
        ],
        compiler_directives={"language_level": "3", "embedsignature": True, "linetrace": DEBUG},
    ),
)
