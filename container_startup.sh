#!/usr/bin/env bash
# One command from a bare clone to a page on port 7860: system packages (as root), virtual environment, models, server.
# The server prints the link to open. Arguments go to it: ./container_startup.sh --port 7861. `./container_startup.sh --help`
# lists them.
set -euo pipefail
cd "$(dirname "$0")"

if [[ " $* " == *" --help "* && -x .venv/bin/python ]]; then exec .venv/bin/python app.py --help; fi
if command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then
  echo "startup: there is a GPU; the engines of this version run on the CPU, the GPU profile is in the making"
fi
scripts/setup.sh cpu
exec .venv/bin/python app.py --profile cpu "$@"
