#!/usr/bin/env bash
# One command from a bare clone to a page on port 7860: system packages (as root), virtual environment, models, server.
# Arguments go to the server: ./container_startup.sh --host 0.0.0.0 --port 7860. `./container_startup.sh --help` lists them.
set -euo pipefail
cd "$(dirname "$0")"

if [[ " $* " == *" --help "* && -x .venv/bin/python ]]; then exec .venv/bin/python app.py --help; fi
if command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then
  echo "startup: there is a GPU; the engines of this version run on the CPU, the GPU profile is in the making"
fi
scripts/setup.sh cpu
exec .venv/bin/python app.py --profile cpu "$@"
