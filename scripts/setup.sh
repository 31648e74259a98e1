#!/usr/bin/env bash
# Prepares a machine: system packages (as root), a virtual environment, and the models of the profile (dev: the CPU's).
# Usage: scripts/setup.sh cpu|gpu|dev [--no-models]. What is there already is kept: a second run takes a second or two.
# gpu installs what requirements/gpu.lock names, by hash, with torch in its CUDA build (x86-64; about 6 GB on the disk).
# VOICEPOD_LOCK names another lock, such as one with torch's CPU build.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:?"say which requirements: cpu, gpu or dev"}
models=${2:-}
cache=${VOICEPOD_CACHE:-$HOME/.cache/voicepod}
requirements=requirements/$profile.txt
[ "$profile" != gpu ] || requirements=${VOICEPOD_LOCK:-requirements/gpu.lock}
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
[ -f "$requirements" ] || fail "there is no $requirements; choose cpu, gpu or dev"
mkdir -p "$cache" || fail "cannot write to $cache: set VOICEPOD_CACHE to a folder that you own"

# --- programs
needed=(espeak-ng ffmpeg)
[ "$profile" = dev ] && needed+=(chromium node npm)
missing=()
for program in "${needed[@]}"; do
  command -v "$program" >/dev/null || missing+=("${program/#node/nodejs}")
done
python=$(command -v python3.11 || true)
if [ -z "$python" ] && python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
  python=$(command -v python3)
fi
[ -n "$python" ] || missing+=(python3.11)
if [ -n "$python" ] && ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then missing+=(python3.11-venv); fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing ${missing[*]}"
    apt-get update -qq || fail "apt-get update failed: is there a network?"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
      || fail "apt-get could not install: ${missing[*]}. Install them by hand and run this again"
  else
    fail "these programs are missing: ${missing[*]}. Install them (Debian: sudo apt-get install ${missing[*]}) and run this again"
  fi
  python=${python:-$(command -v python3.11)} || fail "Python 3.11 is needed; Debian 12 has it as python3.11"
fi

# --- virtual environment, found again by the hash of what belongs into it
flat=()  # complete lists, installed without following what their packages ask for; tests run the worker too
[ "$profile" != dev ] || flat=(requirements/serverless.txt requirements/dev-flat.txt)
hash=$(cat requirements/cpu.txt requirements/gpu.txt "$requirements" "${flat[@]}" <("$python" --version) | sha256sum | cut -c1-12)
venv=$cache/venvs/$profile-$hash
if [ ! -f "$venv/.complete" ]; then
  mkdir -p "$cache/venvs"
  exec 9>"$cache/venvs/.lock"
  flock 9
  if [ ! -f "$venv/.complete" ]; then
    echo "setup: making the virtual environment (a few minutes, once)"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "python -m venv failed: on Debian install python3.11-venv"
    pip=("$venv/bin/pip" install --quiet --disable-pip-version-check)
    if [ "$profile" = gpu ]; then install=(deploy/install_wheels.sh "$requirements" "$venv" "$python")
    else install=("${pip[@]}" --requirement "$requirements"); fi
    { "${install[@]}" && { [ ${#flat[@]} = 0 ] || "${pip[@]}" --no-deps "${flat[@]/#/--requirement=}"; }; } 2>"$cache/pip.log" \
      || { tail -n 20 "$cache/pip.log" >&2; fail "pip could not install $requirements: is there a network? The whole log is $cache/pip.log"; }
    touch "$venv/.complete"
  fi
  flock -u 9
fi
[ -L .venv ] || [ ! -e .venv ] || fail ".venv is a directory of your own: move it away and run this again"
ln -sfn "$venv" .venv

# --- models
if [ "$models" != --no-models ]; then
  wanted=(--profile "${profile/#dev/cpu}")
  [ "$profile" != dev ] || wanted+=(--model whisper-tiny.en)
  .venv/bin/python -m scripts.download_models "${wanted[@]}" \
    || fail "the models are not complete; the message above says what to do. Run this again to go on where it stopped"
fi
