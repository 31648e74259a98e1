#!/usr/bin/env bash
# Usage: deploy/install_wheels.sh LOCK VENV [PYTHON [flat]]. A virtual environment of exactly what LOCK names, every file by
# its hash. The builds of the images run this, and so does scripts/setup.sh gpu. A few packages come as source alone; they
# are built with the tools of requirements/build.lock, which have hashes as well, and nothing is fetched to build them.
# flat: the lock leaves out on purpose what some packages ask for, so nobody looks whether they have it.
set -euo pipefail
lock=$1 venv=$2 python=${3:-python3.11} kind=${4:-}
here=$(dirname "$(readlink -f "$0")")
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

"$python" -m venv "$venv"
pip install --require-hashes --no-deps --only-binary=:all: --requirement "$here/../requirements/build.lock"
pip install --require-hashes --no-deps --no-build-isolation --no-compile --requirement "$lock"
# Dates out of the byte code: the same files give the same image, and a read-only root needs no cache.
"$venv/bin/python" -m compileall -qq --invalidation-mode unchecked-hash "$venv/lib" || true
[ "$kind" = flat ] || "$venv/bin/python" -m pip check
