"""The voices of the bucket: looked up, made ready for the model, uploaded with checks, listed and deleted.

    upload: bytes -> decoded in memory -> judged -> cut in a pause -> its text (given, or transcribed once)
            -> voices/{name}.wav, then voices/{name}.json
    resolve: see `serverless.voice_lookup`

Methods that decode are coroutines; the others block and run in a thread of the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pipeline.audio import file_bytes
from serverless import keys
from serverless.errors import invalid
from serverless.speech import Reference, prepare_reference
from serverless.storage import AlreadyStored, NotStored, Storage, StorageError, StoredObject
from serverless.voice_cache import VoiceCache
from serverless.voice_checks import MAX_BYTES, decoded, exists, judged, quality_of, too_large
from serverless.voice_lookup import Fetch, Transcribe, VoiceLookup, name_of, not_found
from serverless.voice_records import VoiceRecord, facts, now, read_record, write_record

UPLOAD_TYPE: Final = "application/octet-stream"
_READERS: Final = 8


class Voices:
    """The voices of one storage. `transcribe` None: recordings without a text cannot be used."""

    def __init__(
        self,
        storage: Storage,
        *,
        cache_dir: Path,
        max_cache_mb: int,
        transcribe: Transcribe | None,
        fetch: Fetch,
        default: Reference,
    ) -> None:
        self._storage, self._default = storage, default
        self._lookup = VoiceLookup(storage, VoiceCache(cache_dir, max_cache_mb * 1_000_000), transcribe, fetch)

    async def resolve(self, local_voice: str | None, ref_text: str | None) -> Reference:
        """The reference of a job: the default voice, a stored one by name, or a recording behind a URL.

        `ref_text` goes before what is stored. `JobError`: VOICE_NOT_FOUND (with near names), VOICE_INVALID,
        URL_BLOCKED, DOWNLOAD_FAILED.
        """
        if local_voice is None:
            return self._default
        return await self._lookup.resolve(local_voice, ref_text)

    async def upload(
        self, name: str, *, data: bytes, ref_text: str | None, language: str | None, consent: bool, overwrite: bool
    ) -> dict[str, Any]:
        """Check a recording and store it as a voice; the answer for the caller.

        `JobError`: INVALID_INPUT (no consent, no name), VOICE_EXISTS, VOICE_INVALID with what is wrong with it.
        """
        name = keys.voice_name(name)
        if consent is not True:
            raise invalid("consent", "the speaker's consent is needed: consent must be true", code="consent_required")
        if not overwrite and await asyncio.to_thread(self._storage.head, keys.voice_audio(name)) is not None:
            raise exists()
        recording = await decoded(data)
        verdict = await asyncio.to_thread(judged, recording.audio)
        source = "given"
        if ref_text is None or not ref_text.strip():
            recording, source = await self._lookup.transcribed(recording), "transcribed"
            ref_text, language = recording.text, language or recording.language
        reference = await asyncio.to_thread(prepare_reference, recording.audio, ref_text)
        wav = await asyncio.to_thread(file_bytes, reference.audio, "wav")
        record = VoiceRecord(
            ref_text=reference.text,
            ref_text_source=source,
            language=language,
            duration=round(reference.audio.seconds, 3),
            consent=True,
            created=now(),
            sha256=hashlib.sha256(wav).hexdigest(),
            quality=quality_of(verdict),
        )
        await asyncio.to_thread(self._store, name, wav, record, overwrite)
        return {
            "status": "success",
            "message": f"Voice '{name}' uploaded successfully",
            "voice": {"name": name, "voice_file": f"{name}.wav", **record.model_dump(exclude={"schema_version"})},
        }

    async def request_upload(self, name: str, *, seconds: int) -> dict[str, Any]:
        """A signed URL that a recording can be PUT to; `confirm` then makes a voice of it."""
        name, upload_id = keys.voice_name(name), secrets.token_hex(16)
        url = await asyncio.to_thread(
            lambda: self._storage.presign_put(
                keys.upload(name, upload_id), seconds=seconds, content_type=UPLOAD_TYPE, max_bytes=MAX_BYTES
            )
        )
        return {
            "upload_id": upload_id,
            "upload_url": url,
            "method": "PUT",
            "headers": {"Content-Type": UPLOAD_TYPE},
            "expires_in": seconds,
            "max_bytes": MAX_BYTES,
        }

    async def confirm(
        self,
        name: str,
        upload_id: str,
        *,
        ref_text: str | None,
        language: str | None,
        consent: bool,
        overwrite: bool,
    ) -> dict[str, Any]:
        """`upload` of what was PUT; what was put stays until the lifecycle rule where it cannot be used."""
        key = keys.upload(name, upload_id)
        try:
            data = await asyncio.to_thread(lambda: self._storage.get(key, max_bytes=MAX_BYTES))
        except NotStored:
            raise invalid("upload_id", "nothing was uploaded to that URL", code="not_uploaded") from None
        except StorageError as error:
            if error.code != "object_too_large":
                raise
            await self._forget(key)
            raise too_large() from None
        answer = await self.upload(
            name, data=data, ref_text=ref_text, language=language, consent=consent, overwrite=overwrite
        )
        await self._forget(key)
        return answer

    def list(self, cursor: str | None = None, limit: int = 100, prefix: str = "") -> dict[str, Any]:
        """Voices in the order of their files, and the `cursor` for the next ones (None at the end)."""
        limit = max(1, min(limit, 1000))
        if not re.fullmatch(r"[\w.-]{0,64}", prefix, re.ASCII):
            raise invalid("prefix", "a name begins with letters, digits, dots, dashes or underscores")
        after = keys.voice_audio(keys.voice_name(cursor, field="cursor")) if cursor else None
        found: list[StoredObject] = []
        more = True
        while more and len(found) <= limit:
            page, after = self._storage.list(keys.VOICES + prefix, cursor=after)
            found += [item for item in page if name_of(item.key) is not None]
            more = after is not None
        with ThreadPoolExecutor(_READERS, thread_name_prefix="voices") as pool:
            voices = list(pool.map(self._facts, found[:limit]))
        return {
            "status": "success",
            "voices": voices,
            "count": len(voices),
            "cursor": name_of(found[limit - 1].key) if len(found) > limit else None,
        }

    def get(self, name: str) -> dict[str, Any]:
        """All that is known of one voice."""
        name = keys.voice_name(name)
        found = self._storage.head(keys.voice_audio(name))
        if found is None:
            raise not_found(self._storage, name, "voice_name")
        record = read_record(self._storage, name)
        more = record.model_dump(exclude={"schema_version", "ref_text_of_cut"}) if record else {}
        return {"status": "success", "voice": {**more, **facts(name, found.size, found.modified_s, record)}}

    def delete(self, name: str) -> dict[str, Any]:
        """Remove a voice and what is known of it."""
        name = keys.voice_name(name)
        if self._storage.head(keys.voice_audio(name)) is None:
            raise not_found(self._storage, name, "voice_name")
        # The recording last: until it is gone, a delete that failed half way can be asked for again.
        for key in (keys.voice_meta(name), keys.voice_text(name), keys.voice_audio(name)):
            self._storage.delete(key)
        return {"status": "success", "message": f"Voice '{name}' deleted"}

    async def _forget(self, key: str) -> None:
        """Deletes what was PUT; where that fails, the lifecycle rule does it."""
        with contextlib.suppress(StorageError):
            await asyncio.to_thread(self._storage.delete, key)

    def _store(self, name: str, wav: bytes, record: VoiceRecord, overwrite: bool) -> None:
        try:
            self._storage.put(
                keys.voice_audio(name), wav, content_type="audio/wav", filename=f"{name}.wav", if_absent=not overwrite
            )
        except AlreadyStored:
            raise exists() from None
        try:
            write_record(self._storage, name, record)
        except StorageError:
            if not overwrite:  # a recording alone would be in the way of the next try
                with contextlib.suppress(StorageError):
                    self._storage.delete(keys.voice_audio(name))
            raise
        self._storage.delete(keys.voice_text(name))

    def _facts(self, found: StoredObject) -> dict[str, Any]:
        name = name_of(found.key)
        assert name is not None
        return facts(name, found.size, found.modified_s, read_record(self._storage, name))
