#!/usr/bin/env bash
# Subtitles (srt, vtt or ass) drawn into the picture of a video; its sound is copied. Needs ffmpeg with libass.
#   scripts/burn_subs.sh VIDEO SUBTITLES OUTPUT
set -euo pipefail

if [ $# -ne 3 ]; then
  sed -n '2,/^set /s/^# //p' "$0" >&2
  exit 2
fi
video=$1 subtitles=$2 output=$3

for file in "$video" "$subtitles"; do
  if [ ! -f "$file" ]; then
    printf 'no such file: %s\n' "$file" >&2
    exit 1
  fi
done
case ${subtitles,,} in
  *.srt) suffix=srt ;;
  *.vtt) suffix=vtt ;;
  *.ass) suffix=ass ;;
  *)
    printf 'subtitles must end in .srt, .vtt or .ass\n' >&2
    exit 1
    ;;
esac
if ! command -v ffmpeg >/dev/null; then
  printf 'ffmpeg is missing: apt-get install ffmpeg\n' >&2
  exit 1
fi

# A filter's argument has its own grammar, in which : , [ ' and \ mean something: ffmpeg gets to see a plain name.
# "file:" keeps it from taking other names for options or addresses.
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
if [ "$suffix" = vtt ]; then # always UTF-8; ffmpeg 5 breaks the line at \N, which is plain text in vtt
  sed 's/\\/＼/g' -- "$subtitles" >"$folder/subtitles.$suffix"
else
  cp -- "$subtitles" "$folder/subtitles.$suffix"
fi
video=$(realpath -- "$video")
output=$(realpath -m -- "$output")
cd -- "$folder"
ffmpeg -nostdin -hide_banner -loglevel error -y -protocol_whitelist file,pipe -i "file:$video" \
  -vf "subtitles=filename=subtitles.$suffix" -c:a copy "file:$output"
