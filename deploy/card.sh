# shellcheck shell=bash
# Sourced by container_startup.sh: which profile or preset suits the card of this machine.

# Memory of the largest card in MiB, 0 without a card that answers. CUDA_VISIBLE_DEVICES="" or -1 hides every card.
card_mib() {
  local mib=0
  case ${CUDA_VISIBLE_DEVICES-unset} in '' | -1*) printf '0\n'; return ;; esac
  if command -v nvidia-smi >/dev/null; then
    mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | sort -rn | head -n 1) || mib=0
  fi
  case $mib in '' | *[!0-9]*) mib=0 ;; esac
  printf '%s\n' "$mib"
}

# 80gb, 48gb, 24gb, or cpu. Cards report less than their name says: an L4 "24 GB" has 23034 MiB, an L40S 46068.
preset_for() {
  if [ "$1" -ge 76000 ]; then printf '80gb\n'
  elif [ "$1" -ge 44000 ]; then printf '48gb\n'
  elif [ "$1" -ge 22000 ]; then printf '24gb\n'
  else printf 'cpu\n'
  fi
}
