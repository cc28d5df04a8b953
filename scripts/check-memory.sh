#!/bin/sh
# Run the tests of the compiled modules that handle memory themselves (the gRPC session, the firmware index and what it
# reads) where a mistake shows, in a copy of the sources:
#   sanitizers   built with AddressSanitizer and UBSan: unit and property tests; some minutes
#   valgrind     its own allocator for Python: unit tests; every block lost and every error in these modules or in
#                nghttp2 counts, CPython's own noise doesn't; some minutes
# Without an argument, both. Exit 1 where anything was found. Needs `make build`, and valgrind for the second.
set -eu
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r ota_hook tests protos setup.py pyproject.toml README.md LICENSE "$work"
cd "$work"
find . -name '*.so' -delete
what=${1:-both}

if [ "$what" != valgrind ]; then
    echo "== AddressSanitizer and UBSan"
    flags="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    CFLAGS="$flags" LDFLAGS="$flags" "$python" setup.py -q build_ext --inplace --force >build.log 2>&1 ||
        { cat build.log; exit 1; }
    # Python keeps what it made until the end: leaks are valgrind's part.
    LD_PRELOAD="$(cc -print-file-name=libasan.so)" ASAN_OPTIONS="detect_leaks=0:log_path=$work/asan" PYTHONMALLOC=malloc \
        "$python" -m pytest -q -p no:cacheprovider --timeout=0 -k "not memory_stays_flat" \
        tests/unit/test_session.py tests/property/test_session_splits.py tests/unit/test_firmware_index.py \
        tests/property/test_firmware_index_properties.py || { cat asan.* 2>/dev/null; exit 1; }
fi

if [ "$what" != sanitizers ]; then
    echo "== valgrind"
    CFLAGS="-O1 -g" "$python" setup.py -q build_ext --inplace --force >build.log 2>&1 || { cat build.log; exit 1; }
    PYTHONMALLOC=malloc valgrind --leak-check=full --show-leak-kinds=definite --num-callers=40 --log-file=valgrind.log \
        "$python" -m pytest -q -p no:cacheprovider --timeout=0 -k "not memory_stays_flat" tests/unit/test_session.py \
        tests/unit/test_firmware_index.py || exit 1
    grep -A5 'LEAK SUMMARY' valgrind.log
    # An error is a run of lines up to an empty one, innermost call first. It is ours where the first of our modules in
    # it is one of these: what _versions.pyx asks of Python handles no memory, and CPython's small numbers look
    # uninitialised to valgrind.
    ours=$(sed 's/^==[0-9]*== \{0,1\}//' valgrind.log | awk -v RS= '
        match($0, /(_session|_matcher|_packed|_device_set|_versions)\.(c|cpython)|nghttp2_/) && !/Command:/ {
            if (substr($0, RSTART, 9) != "_versions") print $0 "\n"
        }')
    if [ -n "$ours" ] || ! grep -q 'definitely lost: 0 bytes' valgrind.log; then
        printf '%s\n' "$ours"
        echo "check-memory: a compiled module loses or misuses memory" >&2
        exit 1
    fi
    echo "no error in our modules or in nghttp2, nothing lost"
fi
