"""Build steps that pyproject.toml can't name: the compiled matcher and the stubs made from protos/exhook.proto."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
DEBUG = os.environ.get("OTA_HOOK_BUILD_DEBUG") == "1"


def generate_stubs() -> None:
    """Write ota_hook/exhook/exhook_pb2.py and .pyi from protos/exhook.proto."""
    target = "ota_hook/exhook"
    command = ["-m", "grpc_tools.protoc", "-Iprotos", f"--python_out={target}", f"--pyi_out={target}", "exhook.proto"]
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)  # noqa: S603


class BuildPy(build_py):  # type: ignore[misc]
    def run(self) -> None:
        generate_stubs()
        super().run()


class BuildExt(build_ext):  # type: ignore[misc]
    def run(self) -> None:
        generate_stubs()  # an editable install runs build_ext alone
        super().run()


setup(
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    ext_modules=cythonize(  # type: ignore[no-untyped-call]
        [
            Extension(
                "ota_hook._matcher",
                ["ota_hook/_matcher.pyx"],
                define_macros=[("CYTHON_TRACE", "1")] if DEBUG else [],
                extra_compile_args=["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O2"],
            ),
            Extension(
                "ota_hook.exhook._codec",
                ["ota_hook/exhook/_codec.pyx"],
                define_macros=[("CYTHON_TRACE", "1")] if DEBUG else [],
                extra_compile_args=["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O2"],
            ),
        ],
        compiler_directives={"language_level": "3", "embedsignature": True, "linetrace": DEBUG},
    ),
)
