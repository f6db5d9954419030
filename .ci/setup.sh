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
    { nvidia-smi 2>/dev/null || true; } | sed -n 's/.*CUDA[^:]*Version: *\([0-9]*\)\..*/\1/p' | head -n 1
}
# The CUDA release that the installed PyTorch was built for; nothing for one without CUDA, or where there is none.
cuda_of_torch() { .venv/bin/python -c 'import torch; print((torch.version.cuda or "").split(".")[0])' 2>/dev/null || true; }
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
end_if_nothing_has_changed() {
    [ -f "$stamp" ] && [ "$(fingerprint)" = "$(head -n 1 "$stamp")" ] || return 0
    tail -n +2 "$stamp"
    exit 0
}
end_if_nothing_has_changed
# Several at once, as jobs on machines that share the checkout may be: the first installs, the others wait, and find it done.
if command -v flock >/dev/null; then
    mkdir -p .venv
    exec 9>>.venv/setup-lock
    flock 9
    end_if_nothing_has_changed
fi

"$python" -c 'import ensurepip, venv' 2>/dev/null || { can_apt && say "installing python3-venv" && apt_install python3-venv; } ||
    fail "Python's venv module is missing; install it (Debian and Ubuntu: apt install python3-venv)"
say "installing into .venv ($("$python" --version); a few minutes the first time)"
rm -f "$stamp"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

# PyPI has PyTorch for the newest CUDA only. A driver for CUDA 12 takes the build for CUDA 12.6 from PyTorch's own index, and CuPy
# comes with the libraries of its CUDA release, which PyTorch's may not be.
case $cuda in
    12)
        extras=dev,cuda12
        if [ "$(cuda_of_torch)" != 12 ]; then
            torch=$(sed -n 's/^torch==\([0-9.]*\).*/torch==\1/p' .ci/constraints.txt)
            say "the driver is for CUDA 12: installing $torch for it"
            pip install --quiet --force-reinstall --index-url https://download.pytorch.org/whl/cu126 "$torch" ||
                fail "there is no $torch for CUDA 12 to be had; a driver of version 580 or newer takes the usual one"
        fi
        ;;
    1[3-9]) extras=dev,cuda13 ;;
    *) extras=dev,kernels-check ;;
esac
pip install --quiet -c .ci/constraints.txt -e ".[$extras]" || fail "pip could not install the packages; its message stands above"

# Where the driver shows a GPU, both PyTorch and CuPy must find it.
gpu_found() {
    .venv/bin/python -W ignore - <<'PYTHON'
import torch

try:
    import cupy

    cupy_finds = cupy.cuda.is_available() and float(cupy.arange(3).sum()) == 3
except Exception:
    cupy_finds = False
missing = [name for name, finds in {"PyTorch": torch.cuda.is_available(), "CuPy": cupy_finds}.items() if not finds]
built = torch.cuda.get_arch_list() if not missing else []
major, minor = torch.cuda.get_device_capability(0) if built else (0, 0)
usable = [arch for arch in built if arch.startswith("sm_") and arch[3:-1] == str(major) and int(arch[-1]) <= minor]
if missing:
    print(f"{' and '.join(missing)} {'finds' if len(missing) == 1 else 'find'} no GPU, though the driver shows one")
elif not usable and f"compute_{major}{minor}" not in built:
    print(f"this PyTorch is not built for the GPU's architecture sm_{major}{minor}; a newer driver takes a newer build")
PYTHON
}
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
gpu_note=
[ -z "$cuda" ] || gpu_note=$(gpu_found)
{ fingerprint; [ -z "$note" ] || say "$note"; [ -z "$gpu_note" ] || say "$gpu_note"; } >"$stamp"
[ -z "$note" ] || say "$note"
[ -z "$gpu_note" ] || say "$gpu_note"
say "done"
