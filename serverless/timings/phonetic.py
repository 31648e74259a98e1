"""English words by pocketsphinx: its acoustic model comes with the package, and the words are forced onto the audio.

It finds the words and the pauses between them. Often, but not always, it gives nothing when the text is not what is
said. A pause that it counted to a word is cut off by its silence. The decoder starts a chunk from what it scored last,
so the same audio may come out a frame (10 ms) different after another.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Sequence
from typing import Any

from pipeline.audio import AudioChunk
from serverless.timings.arpabet import pronounced
from serverless.timings.spoken import spoken_words
from serverless.timings.voiced import FRAME_S, frame_levels, loud_frames, without_pauses
from serverless.timings.words import NotAligned, Span, Unusable

SAMPLE_RATE = 16_000
MAX_SECONDS = 90.0  # time and memory grow with the length times the number of words
MIN_KNOWN = 0.7  # share of words with a pronunciation
MAX_ADDED_WORDS = 2000  # then the decoder is made anew, so that a long life does not fill its dictionary
_LOCK = threading.Lock()


def align(audio: AudioChunk, tokens: Sequence[str], language: str) -> list[Span | None]:
    """Spans of the tokens of an English chunk. `NotAligned` when no path leads through them."""
    if language != "en":
        raise Unusable("only English has an acoustic model here")
    if audio.seconds > MAX_SECONDS:
        raise NotAligned(f"the chunk is longer than {MAX_SECONDS:g} s")
    said = spoken_words(tokens, language)
    if not any(said):
        raise NotAligned("there is nothing to say in the text")
    with _LOCK:
        decoder = _decoder()
        named = [[decoder.name(word) for word in words] for words in said]
        known = [name for names in named for name in names if name is not None]
        if len(known) < MIN_KNOWN * sum(map(len, named)):
            raise NotAligned("too many words are not in the dictionary, and espeak-ng gives no pronunciation of them")
        frames = decoder.frames(audio.resampled(SAMPLE_RATE), known)
    sounding = without_pauses(frames, loud_frames(frame_levels(audio)))
    ranges = iter(sounding)
    spans: list[Span | None] = []
    for names in named:
        mine = [next(ranges) for name in names if name is not None]
        spans.append(Span(mine[0][0] * FRAME_S, mine[-1][1] * FRAME_S) if mine else None)
    return spans


class _Decoder:
    """pocketsphinx with its English model; one chunk at a time."""

    def __init__(self) -> None:
        try:
            import pocketsphinx
        except ImportError:
            raise Unusable("pocketsphinx is not installed") from None
        self._decoder: Any = pocketsphinx.Decoder(loglevel="FATAL", lm=None)
        self._names: dict[str, str] = {}

    @property
    def is_full(self) -> bool:
        return len(self._names) > MAX_ADDED_WORDS

    def frames(self, audio: AudioChunk, names: Sequence[str]) -> list[tuple[int, int]]:
        """Half-open ranges of 10 ms frames, one for each word; `names` are what `name` gave for them."""
        pcm = audio.to_pcm16()
        try:
            self._decoder.set_align_text(" ".join(names))
            self._decoder.start_utt()
            self._decoder.process_raw(pcm, full_utt=True)
            self._decoder.end_utt()
            segments = list(self._decoder.seg() or ())
        except (RuntimeError, ValueError) as error:
            raise NotAligned("the words could not be laid over the audio") from error
        found = [(s.start_frame, s.end_frame + 1) for s in segments if s.word[0] not in "<["]
        if len(found) != len(names):
            raise NotAligned("the audio does not say the text")
        return found

    def name(self, word: str) -> str | None:
        """The word as the dictionary has it; added with a pronunciation by espeak-ng when it is not there.

        None when espeak-ng has none, as for a word in another script.
        """
        folded = unicodedata.normalize("NFKD", word.lower().replace("’", "'"))
        plain = "".join(char for char in folded if char.isascii() and (char.isalpha() or char in "'."))
        for name in (plain, plain.rstrip("."), plain.replace(".", "")):
            if name and self._decoder.lookup_word(name) is not None:
                return name
        if word not in self._names:
            phones = pronounced(word)
            if phones is None:
                return None
            name = f"added{len(self._names)}"
            self._decoder.add_word(name, phones, update=True)
            self._names[word] = name
        return self._names[word]


_made: list[_Decoder] = []


def _decoder() -> _Decoder:
    if _made and _made[0].is_full:
        _made.clear()
    if not _made:
        _made.append(_Decoder())
    return _made[0]
