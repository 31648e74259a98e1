"""Voices as jobs name them: a stored one or a URL, its recording from the nearest place, and what is said in it.

name or URL -> recording (disk cache by ETag or content) -> text (given, stored, or transcribed once) -> `Reference`
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from pipeline.audio import AudioChunk
from serverless import keys
from serverless.errors import FieldError, JobError
from serverless.speech import Reference, prepare_reference
from serverless.storage import NotStored, Storage, StoredObject
from serverless.voice_cache import Once, Recording, VoiceCache
from serverless.voice_checks import MAX_BYTES, cut, decoded
from serverless.voice_records import VoiceRecord, now, read_record, write_record

_MAX_NEAR_PAGES: Final = 10

Fetch = Callable[[str], Awaitable[bytes]]
"""`serverless.fetch.fetch` with its limits."""
Transcribe = Callable[[AudioChunk], tuple[str, str]]
"""Text and language of a recording; blocking."""


class VoiceLookup:
    """The voices of one storage for one event loop. `transcribe` None: recordings without a text cannot be used."""

    def __init__(self, storage: Storage, cache: VoiceCache, transcribe: Transcribe | None, fetch: Fetch) -> None:
        self._storage, self._cache, self._transcribe, self._fetch = storage, cache, transcribe, fetch
        self._once = Once()

    async def resolve(self, local_voice: str, ref_text: str | None) -> Reference:
        """See `Voices.resolve`."""
        name, record, etag = None, None, ""
        if ":" in local_voice or "/" in local_voice:
            recording = await self._once(f"url {local_voice}", lambda: self._behind(local_voice))
        else:
            name = keys.voice_name(local_voice, field="local_voice")
            recording, record, etag = await self._once(f"voice {name}", partial(self._stored, name))
        text = ref_text
        if text is None and record is not None and record.ref_text:
            text = record.ref_text
            if record.ref_text_of_cut:
                recording = replace(recording, audio=await asyncio.to_thread(cut, recording.audio))
        if text is None:
            recording = await self._once(f"said {recording.sha256}", partial(self._said, recording, name, etag))
            text = recording.text
        return await asyncio.to_thread(prepare_reference, recording.audio, text)

    async def transcribed(self, recording: Recording) -> Recording:
        """What of a recording can be used, with its text; VOICE_INVALID when there is none to be had."""
        if self._transcribe is None:
            text = "the voice has no text and this worker has no recogniser: give ref_text"
            raise JobError("VOICE_INVALID", text, errors=[FieldError("ref_text", "ref_text_missing", text)])
        audio = await asyncio.to_thread(cut, recording.audio)
        text, language = await asyncio.to_thread(self._transcribe, audio)
        if not text.strip():
            message = "no words were understood in the recording: give ref_text"
            raise JobError("VOICE_INVALID", message, errors=[FieldError("ref_text", "ref_text_missing", message)])
        return Recording(audio, recording.sha256, text.strip(), language or None)

    async def _stored(self, name: str) -> tuple[Recording, VoiceRecord | None, str]:
        """A stored recording, its record and its etag. A record of another recording, as changes by hand leave it, is
        dropped.
        """
        for attempt in range(2):  # a second time when the voice is being replaced just now
            found = await asyncio.to_thread(self._storage.head, keys.voice_audio(name))
            if found is None:
                raise await asyncio.to_thread(not_found, self._storage, name, "local_voice")
            recording, record = await asyncio.gather(
                self._recording(name, found), asyncio.to_thread(read_record, self._storage, name)
            )
            if record is None or record.is_of(recording.sha256):
                return recording, record, found.etag
            if attempt:
                return recording, None, found.etag
        raise AssertionError

    async def _recording(self, name: str, found: StoredObject) -> Recording:
        origin = ("stored", name, found.etag)
        cached = await asyncio.to_thread(self._cache.get, *origin)
        if cached is not None:
            return cached
        try:
            data = await asyncio.to_thread(lambda: self._storage.get(found.key, max_bytes=MAX_BYTES))
        except NotStored:
            raise await asyncio.to_thread(not_found, self._storage, name, "local_voice") from None
        recording = await decoded(data)
        await asyncio.to_thread(self._cache.put, recording, *origin)
        return recording

    async def _behind(self, url: str) -> Recording:
        """The recording behind a URL; its content is looked at each time, decoded once."""
        data = await self._fetch(url)
        origin = ("content", hashlib.sha256(data).hexdigest())
        cached = await asyncio.to_thread(self._cache.get, *origin)
        if cached is not None:
            return cached
        recording = await decoded(data)
        await asyncio.to_thread(self._cache.put, recording, *origin)
        return recording

    async def _said(self, recording: Recording, name: str | None, etag: str) -> Recording:
        """The recording with its text, transcribed once for all; a stored voice keeps it in its record."""
        origin = ("said", recording.sha256)
        cached = await asyncio.to_thread(self._cache.get, *origin)
        said = cached or await self.transcribed(recording)
        if cached is None:
            await asyncio.to_thread(self._cache.put, said, *origin)
        return said if name is None else await asyncio.to_thread(self._keep, name, etag, recording, said)

    def _keep(self, name: str, etag: str, recording: Recording, said: Recording) -> Recording:
        """Put the text into the voice's record, unless the voice was deleted or replaced while it was transcribed.

        A text that came meanwhile stays, and is given in place of ours.
        """
        found = self._storage.head(keys.voice_audio(name))
        if found is None or found.etag != etag:
            return said
        known = read_record(self._storage, name)
        if known is None or not known.is_of(recording.sha256):
            known = VoiceRecord(created=now(), duration=round(recording.audio.seconds, 3))
        if known.ref_text:
            return replace(said if known.ref_text_of_cut else recording, text=known.ref_text)
        update = {
            "ref_text": said.text,
            "ref_text_source": "transcribed",
            "ref_text_of_cut": True,
            "language": known.language or said.language,
            "sha256": recording.sha256,
        }
        write_record(self._storage, name, known.model_copy(update=update))
        return said


def not_found(storage: Storage, name: str, field: str) -> JobError:
    """The error for a name that no voice has; it lists near names. Blocking."""
    names: list[str] = []
    after: str | None = None
    for _ in range(_MAX_NEAR_PAGES):
        page, after = storage.list(keys.VOICES, cursor=after)
        names += [each for item in page if (each := name_of(item.key))]
        if after is None:
            break
    by_small = {each.lower(): each for each in names}
    near = [by_small[match] for match in difflib.get_close_matches(name.lower(), by_small, n=3, cutoff=0.6)]
    text = "there is no voice of this name" + (f"; near names: {', '.join(near)}" if near else "")
    return JobError("VOICE_NOT_FOUND", text, errors=[FieldError(field, "voice_not_found", text)])


def name_of(key: str) -> str | None:
    """The voice whose recording lies under `key`, None for other objects and for names that cannot be asked for."""
    bare = key.removeprefix(keys.VOICES)
    if not bare.endswith(".wav"):
        return None
    try:
        return keys.voice_name(bare)
    except JobError:
        return None
