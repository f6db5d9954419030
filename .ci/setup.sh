#!/usr/bin/env bash
# `make setup`: everything the checkout needs, in .venv. Does nothing, quickly, when nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 2; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "no $python here; install Python 3.10 or newer, or name one: make setup PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$("$python" --version) is too old; Python 3.10 or newer is needed (make setup PYTHON=...)"

apt_ready=
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && grep -qsiE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release; }
apt_install() {
    [ -n "$apt_ready" ] || { apt-get update -qq >/dev/null || return 1; apt_ready=1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

# The CUDA release that the driver supports: 12, 13, or nothing.
cuda_major() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[^:]*Version: *\([0-9]*\)\..*/\1/p' | head -n 1
}
python_headers() { "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'; }
missing_for_ffcv() {
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    python_headers || echo "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev"
    [ -e /usr/include/opencv4/opencv2/core.hpp ] || echo libopencv-core-dev
    [ -e /usr/include/opencv4/opencv2/imgproc.hpp ] || echo libopencv-imgproc-dev
    { command -v pkg-config >/dev/null && pkg-config --exists libturbojpeg; } || echo libturbojpeg0-dev
}

cuda=$(cuda_major)
fingerprint() { { cat pyproject.toml .ci/constraints.txt .ci/setup.sh; "$python" --version; echo "cuda=$cuda"; missing_for_ffcv; } | sha256sum; }
stamp=.venv/datamodels-setup
if [ -f "$stamp" ] && [ "$(fingerprint)" = "$(head -n 1 "$stamp")" ]; then
    tail -n +2 "$stamp"
    exit 0
fi

"$python" -c 'import ensurepip, venv' 2>/dev/null || { can_apt && say "installing python3-venv" && apt_install python3-venv; } ||
    fail "Python's venv module is missing; install it (Debian and Ubuntu: apt install python3-venv)"
say "installing into .venv ($("$python" --version); a few minutes the first time)"
rm -f "$stamp"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
case $cuda in
    12) extras=dev,cuda12 ;;
    1[3-9]) extras=dev,cuda13 ;;
    *) extras=dev,kernels-check ;;
esac
pip install --quiet -c .ci/constraints.txt -e ".[$extras]" || fail "pip could not install the packages; its message stands above"

# FFCV builds from source against OpenCV and TurboJPEG. Debian's libopencv-dev brings 214 packages; the two modules that FFCV uses
# bring 14, and need only the pkg-config file and the umbrella header that libopencv-dev would have brought.
install_ffcv() {
    local missing build=$PWD/.venv/ffcv-build
    missing=$(missing_for_ffcv | xargs)
    if [ -n "$missing" ] && can_apt; then
        say "installing $missing" >&2
        # shellcheck disable=SC2086
        apt_install $missing || true
        missing=$(missing_for_ffcv | xargs)
    fi
    if [ -n "$missing" ]; then echo "going on without FFCV, which needs $missing"; return 1; fi
    mkdir -p "$build/opencv2"
    printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$build/opencv2/opencv.hpp"
    printf 'Name: opencv4\nDescription: the two OpenCV modules that FFCV uses\nVersion: 4\nLibs: -lopencv_imgproc -lopencv_core\nCflags: -I%s -I/usr/include/opencv4\n' \
        "\"$build\"" >"$build/opencv4.pc"
    pip install --quiet -c .ci/constraints.txt -e ".[ffcv-runtime]" &&
        PKG_CONFIG_PATH=$build pip install --quiet --no-deps ffcv==1.0.2 >"$build/log" 2>&1 &&
        .venv/bin/python -W ignore -c 'import ffcv' 2>>"$build/log" && return 0
    echo "going on without FFCV, which did not build (see $build/log)"
    return 1
}
note=
.venv/bin/python -W ignore -c 'import ffcv' 2>/dev/null || install_ffcv >.venv/ffcv-note || note=$(tail -n 1 .venv/ffcv-note)
rm -f .venv/ffcv-note
{ fingerprint; [ -z "$note" ] || say "$note"; } >"$stamp"
[ -z "$note" ] || say "$note"
say "done"
