"""From a file that somebody sent to a voice: decode, judge, transcribe; then, with their consent, clone or match."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from api.access.principal import Principal
from api.voices import consent
from api.voices.book import MAX_RECORDING_S, VoiceBook
from api.voices.consent import SAME_PERSON, STATEMENT, STATEMENT_VERSION
from api.voices.recordings import (
    MAX_IN_ALL,
    MAX_OF_OWNER,
    MAX_PHRASES_IN_ALL,
    MAX_PHRASES_OF_OWNER,
    Phrase,
    PhraseHeard,
    Recording,
    Shelf,
)
from api.voices.records import Consent, OwnVoice
from pipeline.audio import AudioChunk, decode_file, file_bytes
from pipeline.engines.base import CloningTts, Engines
from pipeline.errors import ConfigError, InvalidInput, NotFound
from pipeline.matching import StockTable, nearest
from pipeline.models import locate
from pipeline.sample_quality import Problem, Speakers, Verdict, judge
from pipeline.speaker import MODEL_ID, SpeakerEncoder, similarity
from pipeline.transcription import transcribe_all
from pipeline.turn import Waits
from pipeline.untrusted_audio import decode
from pipeline.untrusted_text import clean_user_text
from settings import Settings

log = structlog.get_logger()

Method = Literal["clone", "match", "none"]

SAMPLE_RATE: Final = 24_000  # what is kept of a recording; engines take what they need
MAX_FILE_S: Final = 300.0  # of a file that is trimmed to a reference
MIN_PHRASE_S, MAX_PHRASE_S = 1.0, 30.0
MAX_NAME_CHARS, MAX_TRANSCRIPT_CHARS = 60, 1200


@dataclass(frozen=True, slots=True)
class Agreement:
    """What whoever makes a voice has ticked and typed."""

    agreed: bool
    name: str
    statement: str | None = None
    phrase_sample_id: str | None = None


class Workshop:
    """Of one server. `speakers` gives the encoder, or None where the machine has none."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        book: VoiceBook,
        speakers: Callable[[], Speakers | None],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.book = book
        self.recordings: Shelf[Recording] = Shelf("smp", MAX_OF_OWNER, MAX_IN_ALL, now=now)
        self.phrases: Shelf[Phrase] = Shelf("phr", MAX_PHRASES_OF_OWNER, MAX_PHRASES_IN_ALL, now=now)
        self._settings, self._engines, self._now = settings, engines, now
        self._open_speakers, self._opening = speakers, asyncio.Lock()
        self._speakers: Speakers | None = None
        self._is_open = False
        self._stock = StockTable(settings.storage.dir / "speakers")
        self._judging = asyncio.Lock()  # one at a time: each takes a core, and talks need the others

    async def speakers(self) -> Speakers | None:
        """The speaker encoder, read at the first call."""
        async with self._opening:
            if not self._is_open:
                self._speakers = await asyncio.to_thread(self._open_speakers)
                self._is_open = True
        return self._speakers

    async def method(self) -> Method:
        """What this server does with a recording."""
        if not self.book.settings.max_voices:
            return "none"
        if isinstance(self._engines.tts, CloningTts):
            return "clone"
        return "none" if await self.speakers() is None else "match"

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that a new voice can speak, in order."""
        info = self._engines.tts.info
        if isinstance(self._engines.tts, CloningTts):
            return info.languages
        spoken = {language for voice in info.voices for language in (voice.language, *voice.languages)}
        return tuple(sorted(spoken))

    # --- a recording

    def new_phrase(self, owner: str, language: str) -> Phrase:
        """Words for the owner to read aloud."""
        phrase = Phrase(self.phrases.new_id(), owner, consent.new_phrase(language), self.phrases.expiry())
        self.phrases.put(phrase)
        return phrase

    async def decoded(self, data: bytes, *, start_s: float | None, end_s: float | None) -> AudioChunk:
        """The audio of a file, from `start_s` to `end_s`. `InvalidInput` when there is nothing between them."""
        audio = await decode(data, max_seconds=MAX_FILE_S, sample_rate=SAMPLE_RATE)
        start_s = start_s or 0.0
        if start_s >= audio.seconds or (end_s is not None and end_s <= start_s):
            raise InvalidInput(
                f"there is nothing between start_s and end_s: the file lasts {audio.seconds:.1f} s", param="start_s"
            )
        end = None if end_s is None else round(end_s * SAMPLE_RATE)
        return audio.slice(round(start_s * SAMPLE_RATE), end)

    async def take(
        self, owner: str, audio: AudioChunk, *, language: str | None, phrase_id: str | None = None
    ) -> Recording:
        """Judge the recording and write down its words. One that cannot be used is kept as a verdict alone."""
        self.recordings.check_room(owner)
        phrase = None if phrase_id is None else self.phrases.get(phrase_id, owner)
        speakers = await self.speakers()
        async with self._judging:
            verdict = await asyncio.to_thread(self._judge, audio, speakers, phrase is not None)
            usable = verdict.usable
            embedding = await asyncio.to_thread(speakers.embed, audio) if usable and speakers is not None else None
        transcript, spoken = await self._words(audio, language) if usable else ("", language or "")
        recording = Recording(
            id=self.recordings.new_id(),
            owner=owner,
            wav=await asyncio.to_thread(file_bytes, audio, "wav") if usable else None,
            seconds=audio.seconds,
            transcript=transcript,
            language=spoken,
            verdict=verdict,
            phrase=None if phrase is None else _compared(phrase.text, transcript),
            embedding=embedding,
            expires_s=self.recordings.expiry(),
        )
        self.recordings.put(recording)
        return recording

    def _judge(self, audio: AudioChunk, speakers: Speakers | None, is_phrase: bool) -> Verdict:
        voices = self.book.settings
        min_s, max_s = (MIN_PHRASE_S, MAX_PHRASE_S) if is_phrase else (voices.min_reference_s, voices.max_reference_s)
        return judge(audio, vad=self._engines.vad, speakers=speakers, min_s=min_s, max_s=max_s)

    async def _words(self, audio: AudioChunk, language: str | None) -> tuple[str, str]:
        """What is said, and in which language."""
        setting = self._settings.asr.language
        wanted = language or (None if setting == "auto" else setting)
        heard = transcribe_all(
            self._engines.asr, audio, language=wanted, words=False, waits=Waits.from_settings(self._settings.turn)
        )
        async with aclosing(heard):
            transcripts = [stretch.transcript async for stretch in heard]
        words = " ".join(text for transcript in transcripts if (text := transcript.text.strip()))
        return words[:MAX_TRANSCRIPT_CHARS], language or transcripts[0].language

    # --- a voice

    async def make(
        self,
        principal: Principal,
        recording: Recording,
        *,
        name: str,
        agreement: Agreement,
        transcript: str | None = None,
        language: str | None = None,
    ) -> OwnVoice:
        """A new voice of the caller's, kept and ready to speak. `InvalidInput` says what is missing or wrong.

        The recordings that it was made with are forgotten.
        """
        typed_name = self.check(agreement)
        name = checked_name(name)
        wav = _usable(recording)
        phrase, similarity = self._phrase(principal.owner, recording, agreement.phrase_sample_id)
        await self.book.check_room(principal.owner, name)
        method = await self.method()
        if method == "none":
            raise InvalidInput("this server makes no voices", code="cloning_not_offered")
        words = recording.transcript if transcript is None else checked_transcript(transcript)
        now_s, info = self._now(), self._engines.tts.info
        voice_id = f"voice_{secrets.token_hex(12)}"
        data, match, nearness = None, None, None
        if method == "clone":
            data = await self._cloned(wav, words, name)
        else:
            match, nearness = await self._matched(recording, language or recording.language)
        voice = OwnVoice(
            id=voice_id,
            owner=principal.owner,
            name=name,
            kind=method,
            engine=info.name,
            model=info.model,
            language=language or recording.language,
            transcript=words,
            seconds=recording.seconds,
            match_voice=match,
            match_similarity=nearness,
            created_s=now_s,
        )
        agreed = Consent(
            id=f"consent_{secrets.token_hex(12)}",
            owner=principal.owner,
            voice=voice_id,
            statement=STATEMENT_VERSION,
            statement_text=STATEMENT,
            typed_name=typed_name,
            sample_sha256=hashlib.sha256(wav).digest(),
            phrase=phrase,
            phrase_similarity=similarity,
            agreed_s=now_s,
        )
        await self.book.add(voice, agreed, wav, data, credential=principal.credential)
        for used in (recording.id, agreement.phrase_sample_id):
            if used is not None:
                with contextlib.suppress(NotFound):  # it grew too old meanwhile
                    self.recordings.drop(used, principal.owner)
        return voice

    @staticmethod
    def check(agreement: Agreement) -> str:
        """The typed name. `InvalidInput` without a full consent."""
        return consent.check_agreement(agreement.agreed, agreement.statement, agreement.name)

    def _phrase(
        self, owner: str, recording: Recording, phrase_sample_id: str | None
    ) -> tuple[str | None, float | None]:
        """The phrase that was read by the same voice, and how alike the two recordings are."""
        if phrase_sample_id is None:
            if self.book.settings.phrase_required:
                raise InvalidInput("read the phrase aloud first (POST /api/clone/phrase)", code="phrase_required")
            return None, None
        spoken = self.recordings.get(phrase_sample_id, owner)
        if spoken.phrase is None or not spoken.phrase.matches:
            raise InvalidInput("the phrase was not heard in that recording: read it again", code="phrase_not_heard")
        if spoken.embedding is None or recording.embedding is None:
            return spoken.phrase.text, None
        alike = similarity(spoken.embedding, recording.embedding)
        if alike < SAME_PERSON:
            raise InvalidInput("the phrase was read by another voice than the recording's", code="phrase_other_voice")
        return spoken.phrase.text, alike

    async def _cloned(self, wav: bytes, transcript: str, name: str) -> bytes:
        tts = self._engines.tts
        assert isinstance(tts, CloningTts)
        sample = await asyncio.to_thread(decode_file, wav, max_seconds=MAX_RECORDING_S)
        return await tts.clone(sample, transcript, name=name)

    async def _matched(self, recording: Recording, language: str) -> tuple[str, float]:
        speakers = await self.speakers()
        if speakers is None or recording.embedding is None:
            raise InvalidInput("this server cannot compare voices", code="cloning_not_offered")
        tts = self._engines.tts
        table = await self._stock.of(tts, speakers, Waits.from_settings(self._settings.turn))
        found = nearest(recording.embedding, table, tts.info.voices, language)
        return found.voice.id, found.similarity


def open_speakers(models_dir: Path) -> Speakers | None:
    """The speaker encoder; where it was not downloaded, voices are neither matched nor told apart."""
    try:
        return SpeakerEncoder.load(locate(models_dir, MODEL_ID))
    except ConfigError as error:
        log.warning("voices.no_speaker_encoder", reason=error.message)
        return None


def checked_name(name: str) -> str:
    """A voice's name: 1 to 60 characters, none of them unseen."""
    cleaned = clean_user_text(name, max_characters=MAX_NAME_CHARS).strip()
    if not cleaned:
        raise InvalidInput("give the voice a name", code="invalid_value", param="name")
    return cleaned


def checked_transcript(transcript: str) -> str:
    """The words of a recording, as its owner corrected them."""
    cleaned = clean_user_text(transcript, max_characters=MAX_TRANSCRIPT_CHARS).strip()
    if not any(character.isalnum() for character in cleaned):
        raise InvalidInput("the transcript has no words", code="invalid_value", param="transcript")
    return cleaned


def _usable(recording: Recording) -> bytes:
    if recording.wav is None:
        problem: Problem = recording.verdict.problems[0]
        raise InvalidInput(problem.message, code="recording_not_usable", param="file")
    return recording.wav


def _compared(phrase: str, heard: str) -> PhraseHeard:
    return PhraseHeard(phrase, heard, consent.heard_share(phrase, heard) >= consent.HEARD_SHARE)
