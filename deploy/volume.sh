# shellcheck shell=bash
# Sourced by container_startup.sh: where a pod keeps what must outlive it.
#
# /workspace (VOICEPOD_WORKSPACE names another) holds models, logs, cache, backups, configs and voicepod (keys, logins,
# users' voices). All but models are for the server's user alone. What is set in the environment already wins.

# The volume's root: VOICEPOD_WORKSPACE, else /workspace on a RunPod pod; nothing on any other machine.
volume_root() {
  if [ -n "${VOICEPOD_WORKSPACE:-}" ]; then
    printf '%s\n' "$VOICEPOD_WORKSPACE"
  elif [ -n "${RUNPOD_POD_ID:-}" ] && [ -d /workspace ]; then
    printf '/workspace\n'
  fi
}

# Started as root (a pod's volume often belongs to root): hand the folders over, then go on as VOICEPOD_RUN_AS, for good.
# Only folders that belong to another user are handed over, so that a restart does not walk through every file.
leave_root() {
  local root=$1 user=$2 script=$3 folder
  shift 3
  for folder in models logs cache backups configs voicepod; do
    mkdir -p "$root/$folder"
    [ "$(stat -c %u "$root/$folder")" = "$user" ] || chown -Rh "$user:$user" "$root/$folder"
  done
  exec setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    env HOME="$root/cache" "$script" "$@"
}

# Makes the folders and points the settings at them.
use_volume() {
  local root=$1 folder
  for folder in models logs cache backups configs voicepod; do
    mkdir -p "$root/$folder" 2>/dev/null && [ -w "$root/$folder" ] || {
      echo "startup: user $(id -u) cannot write to $root/$folder. Give it the folder (chown $(id -u) $root/$folder)," >&2
      echo "startup: or take the image's target 'pod', which starts as root, does that, and leaves root" >&2
      return 1
    }
    if [ "$folder" = models ]; then chmod 0755 "$root/$folder"; else chmod 0700 "$root/$folder"; fi
  done
  # MODEL_CACHE_DIR wins over VOICEPOD_CACHE for the models, AUDIO_CACHE_DIR for spoken audio.
  export VOICEPOD_CACHE=${VOICEPOD_CACHE:-$root/cache} VOICEPOD_DATA=${VOICEPOD_DATA:-$root/voicepod}
  export MODEL_CACHE_DIR=${MODEL_CACHE_DIR:-$root/models}
  say_space "$root"
}

# A line about a volume that is nearly full; the downloader and the conversion count for themselves what they need.
say_space() {
  local free_mb
  free_mb=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
  if [ "$free_mb" -lt 5000 ]; then
    echo "startup: only $free_mb MB are free on $1; models, logs and backups share it" >&2
  fi
}
