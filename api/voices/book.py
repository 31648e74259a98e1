"""All voices that may be chosen: the engine's own, and beside them each owner's.

Everything is in memory, so that a turn asks nobody; SQLite and files hold what lasts (`records.py`, `files.py`). A
clone is known to the engine under its own id. A match stands for a stock voice. A voice that the present engine cannot
speak with stays in the list and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

import structlog

from api.store import Store
from api.voices import records
from api.voices.files import VoiceFiles
from api.voices.records import Consent, OwnVoice
from pipeline.audio import decode_file
from pipeline.engines.base import CloningTts, Tts, Voice, engine_key
from pipeline.errors import InvalidInput, NotFound, StorageError, VoicepodError
from settings import VoicesSettings

log = structlog.get_logger()

T = TypeVar("T")

SWEEP_S: Final = 3600.0
FINISH_S: Final = 10.0  # as the store waits for its disk
MAX_RECORDING_S: Final = 61.0  # of a kept file
_LOADING: Final = "the engine is still loading"


class VoiceBook:
    """Of one server. Everything is on the event loop; files and database are used in the store's thread."""

    def __init__(
        self, store: Store, tts: Tts, settings: VoicesSettings, *, now: Callable[[], float] = time.time
    ) -> None:
        self.settings = settings
        self._store, self._tts, self._now = store, tts, now
        self._files = VoiceFiles(store.directory / "voices")
        self._voices: dict[str, dict[str, OwnVoice]] = {}
        self._problems: dict[str, str] = {}  # voice id -> why it cannot be used
        self._to_encode: asyncio.Queue[OwnVoice] = asyncio.Queue()
        self._finishing: set[asyncio.Task[Any]] = set()
        for voice in store.now(records.all_voices):
            self._of(voice.owner)[voice.id] = voice
            self._problems[voice.id] = _LOADING

    # --- what may be chosen

    def voices_of(self, owner: str) -> tuple[Voice, ...]:
        """The stock voices, and the owner's own that can be used now, under the ids by which they are chosen."""
        own = (self._as_voice(voice) for voice in self.own(owner) if voice.id not in self._problems)
        return (*self._tts.info.voices, *own)

    def by_id(self, owner: str) -> dict[str, Voice]:
        """The same by the ids by which they are chosen, as the engine speaks them: a match is its stock voice."""
        stock = {voice.id: voice for voice in self._tts.info.voices}
        usable = (voice for voice in self.own(owner) if voice.id not in self._problems)
        own = {voice.id: stock.get(voice.match_voice or "") or self._as_voice(voice) for voice in usable}
        return stock | own

    def find(self, owner: str, voice_id: str) -> Voice | None:
        """One of `by_id`."""
        return self.by_id(owner).get(voice_id)

    # --- one's own

    def own(self, owner: str) -> tuple[OwnVoice, ...]:
        """The owner's own voices, the oldest first."""
        return tuple(self._voices.get(owner, {}).values())

    def get(self, owner: str, voice_id: str) -> OwnVoice:
        """The owner's own voice, or `NotFound`, as for somebody else's."""
        found = self._voices.get(owner, {}).get(voice_id)
        if found is None:
            raise NotFound("there is no such voice of yours", code="voice_not_found", param="voice_id")
        return found

    def problem(self, voice: OwnVoice) -> str | None:
        """Why the voice cannot be used now; None when it can."""
        return self._problems.get(voice.id)

    async def recording(self, owner: str, voice_id: str) -> bytes:
        """The reference of the owner's voice, as a WAV file."""
        voice = self.get(owner, voice_id)
        wav = await self._store.call(lambda: self._files.recording(voice.id))
        if wav is None:
            raise NotFound("the recording of this voice is lost", code="recording_not_found", param="voice_id")
        return wav

    async def consents(self, owner: str) -> list[Consent]:
        """What the owner agreed to, also for voices that were deleted since."""
        return await self._store.read(lambda db: records.consents_of(db, owner))

    async def check_room(self, owner: str, name: str) -> None:
        """`InvalidInput` when the owner may not have one more voice of that name."""
        limit = self.settings.max_voices
        await self._store.read(lambda db: records.check_room(db, owner, name, max_voices=limit))

    # --- changes; each is finished even when whoever asked has gone

    async def add(self, voice: OwnVoice, consent: Consent, wav: bytes, data: bytes | None, *, credential: str) -> None:
        """Keep a new voice and speak with it. `data` is a clone's. When anything fails, nothing is left of it."""
        await self._finish(self._add(voice, consent, wav, data, credential))

    async def rename(self, owner: str, voice_id: str, name: str) -> OwnVoice:
        """The voice under another name."""
        voice = self.get(owner, voice_id)
        renamed = await self._store.write(lambda db: records.rename(db, voice, name))
        if voice_id in self._of(owner):
            self._of(owner)[voice_id] = renamed
        return renamed

    async def delete(self, owner: str, voice_id: str, *, credential: str) -> None:
        """Forget the voice and its recording. Talks that use it go back to the server's own."""
        voice = self.get(owner, voice_id)
        await self._finish(self._delete(voice, credential))

    async def delete_all(self, owner: str, *, credential: str) -> None:
        """All of an owner's voices."""
        for voice in self.own(owner):
            await self.delete(owner, voice.id, credential=credential)

    async def _add(self, voice: OwnVoice, consent: Consent, wav: bytes, data: bytes | None, credential: str) -> None:
        limit = self.settings.max_voices
        try:
            await self._store.call(lambda: self._write_files(voice.id, wav, data))
            if data is not None:
                await self._cloning().add_voice(self._as_voice(voice), data)
            await self._store.write(lambda db: records.add(db, voice, consent, credential=credential, max_voices=limit))
        except BaseException:
            await self._take_back(voice)
            raise
        self._of(voice.owner)[voice.id] = voice
        # Nothing of the person: the audit log says whose it is.
        log.info("voice.cloned", kind=voice.kind, engine=voice.engine, seconds=round(voice.seconds, 1))

    def _write_files(self, voice_id: str, wav: bytes, data: bytes | None) -> None:
        self._files.write_recording(voice_id, wav)
        if data is not None:
            self._files.write_data(voice_id, engine_key(self._tts.info), data)

    async def _take_back(self, voice: OwnVoice) -> None:
        """Leave nothing of a voice that could not be kept."""
        with contextlib.suppress(StorageError):
            await self._store.write(lambda db: records.take_back(db, voice))
        await self._silence(voice)

    async def _silence(self, voice: OwnVoice) -> None:
        """Take it from the engine and the disk."""
        if isinstance(self._tts, CloningTts):
            await self._tts.remove_voice(voice.id)
        with contextlib.suppress(StorageError):  # told by the store; the next sweep removes what is left
            await self._store.call(lambda: self._files.remove(voice.id))

    async def _delete(self, voice: OwnVoice, credential: str) -> None:
        now_s = self._now()
        await self._store.write(lambda db: records.remove(db, voice, credential=credential, now_s=now_s))
        self._of(voice.owner).pop(voice.id, None)
        self._problems.pop(voice.id, None)
        await self._silence(voice)

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        self._finishing.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._finishing.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: whoever asked may have gone

    # --- with the engine

    async def attach(self) -> None:
        """The engine has loaded: give it the clones. One that it does not take is told and stays unusable."""
        for voice in list(self._all()):
            try:
                self._set_problem(voice, await self._attach(voice))
            except VoicepodError as error:
                self._set_problem(voice, error.message)
            except Exception:  # boundary: one voice must not keep the server from starting
                log.exception("voice.adding_failed", engine=self._tts.info.name)
                self._set_problem(voice, "the engine failed to read it")

    async def run(self) -> None:
        """Make anew what another engine had made, and forget what is too old, until cancelled.

        Changes that have begun are finished then.
        """
        swept_s = float("-inf")
        try:
            while True:
                if time.monotonic() - swept_s >= SWEEP_S:
                    swept_s = time.monotonic()
                    with contextlib.suppress(StorageError):  # told by the store; the next time is soon enough
                        await self.sweep()
                with contextlib.suppress(TimeoutError):
                    await self._make_anew(await asyncio.wait_for(self._to_encode.get(), SWEEP_S))
        finally:
            if self._finishing:
                await asyncio.wait(self._finishing, timeout=FINISH_S)

    async def sweep(self) -> None:
        """Forget consents that are too old, and files that belong to no voice."""
        days, now_s = self.settings.consent_days, self._now()
        await self._store.write(lambda db: records.sweep(db, keep_days=days, now_s=now_s))
        if not self._finishing:  # one that is being added has files before it has a row
            # By the rows, which another server may write as well: a pod and the one that replaces it.
            await self._store.read(lambda db: self._files.sweep({voice.id for voice in records.all_voices(db)}))

    async def _attach(self, voice: OwnVoice) -> str | None:
        info = self._tts.info
        if voice.kind == "match":
            is_there = voice.engine == info.name and voice.match_voice in {stock.id for stock in info.voices}
            return None if is_there else f"it was matched to a voice of {voice.engine}, which this server does not use"
        if not isinstance(self._tts, CloningTts):
            return f"it was cloned by {voice.engine}; the engine of this server, {info.name}, cannot clone"
        data = await self._store.call(lambda: self._files.data(voice.id, engine_key(info)))
        if data is None:
            self._to_encode.put_nowait(voice)
            return "it is being made anew for the engine of this server"
        await self._tts.add_voice(self._as_voice(voice), data)
        return None

    async def _make_anew(self, voice: OwnVoice) -> None:
        try:
            self._set_problem(voice, await self._encode(voice))
        except VoicepodError as error:
            self._set_problem(voice, error.message)
        except Exception:  # boundary: one voice that breaks the engine must not stop the others
            log.exception("voice.encoding_failed", engine=self._tts.info.name)
            self._set_problem(voice, "the engine failed to make it")

    async def _encode(self, voice: OwnVoice) -> str | None:
        wav = await self._store.call(lambda: self._files.recording(voice.id))
        if wav is None:
            return "its recording is lost"
        sample = await asyncio.to_thread(decode_file, wav, max_seconds=MAX_RECORDING_S)
        tts = self._cloning()
        data = await tts.clone(sample, voice.transcript, name=voice.name)
        if not self._is_kept(voice):
            return None
        await self._store.call(lambda: self._files.write_data(voice.id, engine_key(tts.info), data))
        await tts.add_voice(self._as_voice(voice), data)
        if not self._is_kept(voice):  # deleted meanwhile
            await self._silence(voice)
        return None

    def _set_problem(self, voice: OwnVoice, problem: str | None) -> None:
        if problem is None or not self._is_kept(voice):
            self._problems.pop(voice.id, None)
            return
        self._problems[voice.id] = problem
        log.warning("voice.not_usable", kind=voice.kind, made_by=voice.engine, reason=problem)

    def _cloning(self) -> CloningTts:
        if not isinstance(self._tts, CloningTts):
            raise InvalidInput("the engine of this server cannot clone", code="cloning_not_offered")
        return self._tts

    def _as_voice(self, voice: OwnVoice) -> Voice:
        """As it is listed and, a clone, spoken. The engine speaks its own languages with every clone."""
        info = self._tts.info
        if voice.kind == "match":
            stock = next((stock for stock in info.voices if stock.id == voice.match_voice), None)
            language = voice.language if stock is None else stock.language
            return Voice(voice.id, voice.name, language, languages=() if stock is None else stock.languages)
        known = info.languages
        language = voice.language if voice.language in known or not known else known[0]
        return Voice(voice.id, voice.name, language, languages=known, cloned=True)

    def _of(self, owner: str) -> dict[str, OwnVoice]:
        return self._voices.setdefault(owner, {})

    def _all(self) -> Iterator[OwnVoice]:
        for voices in self._voices.values():
            yield from voices.values()

    def _is_kept(self, voice: OwnVoice) -> bool:
        return voice.id in self._voices.get(voice.owner, {})
