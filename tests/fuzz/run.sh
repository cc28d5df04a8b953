#!/bin/sh
# Build the codec with coverage, bring atheris to the side of the locked environment, and fuzz: run.sh [RUNS].
# What it makes is under build/fuzz; a failing input is left there as crash-*.
set -eu
cd "$(dirname "$0")/../.."
runs=${1:-5000000}
place=build/fuzz
mkdir -p $place/corpus

test -d $place/packages || .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps \
    --target $place/packages 'atheris>=3,<4'

.venv/bin/cython -3 ota_hook/exhook/_codec.pyx -o $place/_codec.c
# shellcheck disable=SC2046  # two options
cc -shared -fPIC -O1 -g -fsanitize-coverage=trace-pc,trace-cmp \
    $(.venv/bin/python -c 'import sysconfig; p = sysconfig.get_paths(); print("-I" + p["include"], "-I" + p["platinclude"])') \
    $place/_codec.c tests/fuzz/coverage.c -o $place/_codec.so

FUZZ_CODEC=$place/_codec.so PYTHONPATH=$place/packages:. .venv/bin/python tests/fuzz/fuzz_codec.py \
    "-runs=$runs" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 "-artifact_prefix=$place/" $place/corpus
