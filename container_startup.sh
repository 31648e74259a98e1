#!/usr/bin/env bash
# One command from a bare clone, or from the image on a pod, to a page on port 7860: system packages (as root), virtual
# environment, models, server. The server prints the link to open. Arguments go to it: ./container_startup.sh --port 7861.
# `./container_startup.sh --help` lists them. There is a card of 22 GB or more: the GPU profile, by the card's size
# (configs/gpu-24gb.json ...); else the CPU profile. VOICEPOD_PROFILE=cpu|24gb|48gb|80gb, --profile and --config decide
# otherwise, and so does config.json here or in the volume's configs folder.
set -euo pipefail
cd "$(dirname "$0")"
. deploy/volume.sh
. deploy/card.sh

venv=${VOICEPOD_VENV:-.venv}
for argument in "$@"; do
  case $argument in
    -h | --help)
      if [ -x "$venv/bin/python" ]; then exec "$venv/bin/python" app.py --help; fi
      # Nothing is set up yet: what stands above.
      sed -n '2,/^set /s/^# //p' container_startup.sh
      exit ;;
  esac
done

root=$(volume_root)
if [ -n "$root" ]; then
  if [ "$(id -u)" = 0 ] && [ -n "${VOICEPOD_RUN_AS:-}" ]; then
    leave_root "$root" "$VOICEPOD_RUN_AS" "$PWD/container_startup.sh" "$@"
  fi
  use_volume "$root"
fi

# --- which configuration
preset=${VOICEPOD_PROFILE:-}
config=
models_dir=
random_tiny=
sets=()
arguments=("$@")
while [ $# -gt 0 ]; do
  case $1 in
    --profile | --config | --models-dir | --set)
      [ $# -gt 1 ] || { echo "startup: $1 needs a value" >&2; exit 2; } ;;
  esac
  case $1 in
    --profile) preset=$2; shift ;;
    --profile=*) preset=${1#*=} ;;
    --config) config=$2; shift ;;
    --config=*) config=${1#*=} ;;
    --models-dir) models_dir=$2; shift ;;
    --models-dir=*) models_dir=${1#*=} ;;
    --set) sets+=(--set "$2"); shift ;;
    --set=*) sets+=(--set "${1#*=}") ;;
    --random-tiny) random_tiny=yes ;;
  esac
  shift
done
if [ -z "$config" ]; then
  if [ -f config.json ]; then config=config.json
  elif [ -n "$root" ] && [ -f "$root/configs/config.json" ]; then
    config=$root/configs/config.json
    arguments=(--config "$config" "${arguments[@]}")
  fi
fi
if [ -z "$preset" ]; then
  mib=$(card_mib)
  preset=$(preset_for "$mib")
  if [ "$preset" = cpu ] && [ -n "$random_tiny" ]; then
    preset=gpu
    echo "startup: the GPU profile with models of random weights"
  elif [ "$mib" = 0 ]; then echo "startup: no NVIDIA card answers; the CPU profile"
  elif [ "$preset" = cpu ]; then echo "startup: a card of $mib MiB; the GPU profile needs 22000, so the CPU profile"
  else echo "startup: a card of $mib MiB; the preset $preset"
  fi
fi
own=$config
case $preset in
  cpu) profile=cpu; models=(--profile cpu) ;;
  gpu) profile=gpu; models=(--profile gpu) ;;
  24gb | 48gb | 80gb)
    profile=gpu; models=(--preset "$preset")
    [ -n "$config" ] || { config=configs/gpu-$preset.json; arguments=(--config "$config" "${arguments[@]}"); } ;;
  *) echo "startup: VOICEPOD_PROFILE and --profile take cpu, gpu, 24gb, 48gb or 80gb, not '$preset'" >&2; exit 2 ;;
esac
# The server itself knows two profiles; a configuration file says the rest.
server=()
for argument in "${arguments[@]}"; do
  case $argument in
    --profile=*) ;;
    --profile) skip=1 ;;
    *) [ -n "${skip:-}" ] || server+=("$argument"); skip= ;;
  esac
done

# --- environment, models, server
# A configuration that was asked for names its own models, whatever card there is.
if [ -n "$own" ]; then models=(--config "$own"); fi
models+=("${sets[@]}")
# The download and the conversion look where the server will.
if [ -n "$models_dir" ]; then export MODEL_CACHE_DIR=$models_dir; fi
if [ -z "${VOICEPOD_VENV:-}" ]; then scripts/setup.sh "$profile" --no-models; fi
# With --random-tiny the server writes its own small models of noise; what hears and marks is real.
if [ -n "$random_tiny" ]; then models=(--model silero-vad --model resemblyzer --model perth-implicit); fi
"$venv/bin/python" -m scripts.download_models "${models[@]}" || {
  echo "startup: the models are not complete; the message above says what to do. Run this again to go on" >&2
  exit 1
}
if [ -z "$random_tiny" ]; then "$venv/bin/python" -m scripts.prepare_models "${models[@]}"; fi
exec "$venv/bin/python" app.py --profile "$profile" "${server[@]}"
