#!/usr/bin/env bash
# Writes the locks in requirements/ anew from gpu.txt and serverless.txt: every file by its hash, from the index's own
# metadata, without a download of the packages. Usage: scripts/lock.sh. Needs uv on PATH (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "lock: uv is missing; pip install uv, or put it on PATH" >&2; exit 1; }

compile() {  # SOURCE TARGET COMMENT [OPTION]; the platform is that of Debian 12 on x86-64
  uv pip compile "$1" "${@:4}" --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-config --no-header --no-annotate --quiet --upgrade --output-file "$2.new"
  { printf '# %s\n# Written by scripts/lock.sh; do not edit.\n' "$3"; cat "$2.new"; } >"$2"
  rm "$2.new"
}
compile requirements/gpu.txt requirements/gpu.lock "All of requirements/gpu.txt with torch's CUDA build, every file by its hash."
# serverless.txt is flat and complete but for what torch's CUDA build brings: that is the same as in gpu.lock.
{ cat requirements/serverless.txt; grep -oE '^(nvidia|cuda)[a-z0-9-]*==[^ ]+' requirements/gpu.lock; } |
  compile - requirements/serverless.lock \
    "All of requirements/serverless.txt with torch's CUDA build, every file by its hash." --no-deps
printf 'setuptools\nwheel\n' | compile - requirements/build.lock "What builds the packages of the other locks that come as source alone."
