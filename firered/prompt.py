"""The rows a prompt is made of: text and audio segments, in the orders the model was trained on.

A row has 17 columns: 16 audio codes and one text id, with a mask of the same shape that says which columns count; the
model sums the embeddings of those. A segment is the text `[S1]<|text_start|>words<|text_end|>`, one row for each id,
then one row for each 80 ms audio frame, then an end-of-speech row. Two modes:

* dialogue: voice segments, earlier segments, then the text of the new one; the model goes on with its audio;
* continuation: one voice's recording, its words and the new words as one segment whose audio stops short of its end.

Row layouts and limits are those of upstream (fireredtts2.py:85, :111, :139, :210, :345), but for two faults: here the
history is trimmed instead of refused, and only punctuation is cut from a transcript's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firered.errors import InputError
from firered.tokenizer import TEXT_END, TEXT_START, FireRedTokenizer
from firered.voice import N_CODEBOOKS, VoicePrompt

TEXT_COLUMN = 16
N_COLUMNS = 17

SPEAKERS = ("[S1]", "[S2]", "[S3]", "[S4]")

# The published fine-tuning loader trains on at most this much in one sample; longer contexts are outside of training.
MAX_ROWS = 3100
MAX_AUDIO_FRAMES = 2300
MAX_SEGMENTS = 16
# All voices of a dialogue together. A text has at most 900 ids (15 s of speech: 225 characters of 4 bytes) and 375
# frames (30 s), so that a new segment fits in any case: 1600 + 900 + 375 < 3100.
MAX_VOICE_ROWS = 1600

# Rows that continuation cuts: the end of speech and the last 2 frames, which the model says again (upstream :223).
CONTINUATION_CUT_FRAMES = 2
_SENTENCE_END = ".!?。！？…,，、;；:："


@dataclass(frozen=True)
class Rows:
    """Consecutive rows: `ids` int64 (n, 17), `mask` bool (n, 17); columns 0-15 are audio codes, 16 is the text id."""

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_audio_frames(self) -> int:
        """Audio rows, end-of-speech rows among them."""
        return int(self.mask[:, 0].sum())

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        """All parts in order; no parts give no rows."""
        ids = np.concatenate([np.empty((0, N_COLUMNS), np.int64), *(part.ids for part in parts)])
        mask = np.concatenate([np.empty((0, N_COLUMNS), np.bool_), *(part.mask for part in parts)])
        return Rows(ids, mask)


def text_rows(ids: Sequence[int]) -> Rows:
    """One row for each text id."""
    rows = np.zeros((len(ids), N_COLUMNS), np.int64)
    mask = np.zeros((len(ids), N_COLUMNS), np.bool_)
    rows[:, TEXT_COLUMN] = ids
    mask[:, TEXT_COLUMN] = True
    return Rows(rows, mask)


def audio_rows(codes: npt.NDArray[np.integer]) -> Rows:
    """One row for each frame of codes (n, 16)."""
    rows = np.zeros((len(codes), N_COLUMNS), np.int64)
    mask = np.zeros((len(codes), N_COLUMNS), np.bool_)
    rows[:, :N_CODEBOOKS] = codes
    mask[:, :N_CODEBOOKS] = True
    return Rows(rows, mask)


def eos_row() -> Rows:
    """The end of speech: 16 codes 0 whose embeddings do count."""
    return audio_rows(np.zeros((1, N_CODEBOOKS), np.int64))


def check_speaker(tag: str) -> str:
    """`tag` itself when it is one of the four public speakers, else InputError."""
    if tag not in SPEAKERS:
        raise InputError(f"unknown speaker tag {tag[:20]!r}: use one of {', '.join(SPEAKERS)}")
    return tag


def segment_text(
    tokenizer: FireRedTokenizer, speaker: str, text: str, *, double_tag: bool = False, allow_tags: bool = False
) -> Rows:
    """Text rows of a segment. `text` is cleaned; special tokens in it are read as plain characters.

    `double_tag` repeats the speaker's tag after `<|text_start|>`, as upstream does for a voice in dialogue mode.
    """
    tag = tokenizer.special_id(check_speaker(speaker))
    start, end = tokenizer.special_id(TEXT_START), tokenizer.special_id(TEXT_END)
    words = tokenizer.encode(text, allow_tags=allow_tags)
    return text_rows([tag, start, *([tag] if double_tag else []), *words, end])


def finished_segment(text: Rows, codes: npt.NDArray[np.integer]) -> Rows:
    """A segment with its audio: the text rows it was generated from, its codes (n_frames, 16), end of speech."""
    return Rows.concat([text, audio_rows(codes), eos_row()])


def voice_segment(tokenizer: FireRedTokenizer, voice: VoicePrompt, speaker: str) -> Rows:
    """A voice as first segment of a dialogue, for one speaker; its tag stands twice (see segment_text)."""
    return finished_segment(segment_text(tokenizer, speaker, voice.transcript, double_tag=True), voice.codes)


def continuation_prompt(tokenizer: FireRedTokenizer, voice: VoicePrompt, text: str) -> Rows:
    """The voice's own recording, running on into `text`: for one voice reading, without history.

    The first CONTINUATION_CUT_FRAMES frames that the model makes replace the cut end of the recording: drop them.
    """
    words = f"{voice.transcript.rstrip().rstrip(_SENTENCE_END)},{text}"
    rows = [segment_text(tokenizer, SPEAKERS[0], words), audio_rows(voice.codes[:-CONTINUATION_CUT_FRAMES])]
    return Rows.concat(rows)


def check_voices(voices: Sequence[Rows]) -> None:
    """Raises InputError when the voices of a dialogue leave too little room for anything else."""
    n_rows = sum(map(len, voices))
    if n_rows > MAX_VOICE_ROWS:
        raise InputError(f"the voices are too long together ({n_rows} rows of at most {MAX_VOICE_ROWS}): shorten them")


def trim_history(voices: Sequence[Rows], segments: Sequence[Rows], budget_rows: int = MAX_ROWS) -> list[Rows]:
    """The newest of `segments` that fit beside `voices` within `budget_rows`, 2300 audio frames and 16 segments.

    `budget_rows` is MAX_ROWS less the new text and the frames it may need. Never raises: without room nothing is kept.
    """
    room_rows = budget_rows - sum(map(len, voices))
    room_frames = MAX_AUDIO_FRAMES - sum(voice.n_audio_frames for voice in voices)
    room_segments = MAX_SEGMENTS - len(voices) - 1  # the segment about to be spoken is one, too
    n_kept = 0
    for segment in reversed(segments):
        room_rows -= len(segment)
        room_frames -= segment.n_audio_frames
        if min(room_rows, room_frames, room_segments - n_kept - 1) < 0:
            break
        n_kept += 1
    return list(segments[len(segments) - n_kept :])
