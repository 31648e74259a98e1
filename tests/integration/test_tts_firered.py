"""FireRedTTS-2 behind the Tts Protocol: our engine on tiny random weights, and a scripted one where moments matter."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import structlog
import torch

import firered.text
from firered import (
    EngineClosedError,
    FireRedEngine,
    FireRedError,
    GenerationError,
    InputError,
    PieceEnd,
    SpeechAudio,
    StreamEnd,
    StreamEvent,
    StreamFailed,
    StreamOptions,
)
from firered.step_runner import StepRunner
from firered.stream import DEFAULT_MAX_LEAD_S
from pipeline.audio import AudioChunk, concat
from pipeline.engines import lanes, tts_firered
from pipeline.engines.base import SpeechChunk, SpeechPiece, Voice
from pipeline.engines.firered_reply import FireRedReply, pipeline_error
from pipeline.engines.tts_firered import LANGUAGES, MAX_SLOTS, RANDOM_VOICE, FireRedTts
from pipeline.errors import (
    ConfigError,
    EngineFailed,
    EngineNotReady,
    InvalidInput,
    OutOfMemory,
    VoicepodError,
)
from tests.support.firered_tiny import write_checkpoint
from tests.support.firered_tts import BRIEF, BRIEF_FRAMES, firered_settings, voice_prompt, write_voice
from tests.support.speech_clips import pieces

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 60.0  # only a fault waits this long
FRAME = 1920
ANNA = Voice("anna", "Anna", "en")
LONG = "This is a long sentence, with many words in it, that takes the model a good while to speak aloud."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("firered") / "model")


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("voices")
    write_voice(directory / "anna.voice", "Anna")
    write_voice(directory / "bruno.voice", "", seed=2)
    return directory


async def loaded(model: Path, voices: Path, *, users: int = 2, brief: bool = True) -> FireRedTts:
    settings = firered_settings(model, voices, system={"max_concurrent_users": users})
    tts = FireRedTts.from_settings(settings, limits=BRIEF if brief else None)
    async with asyncio.timeout(WAIT_S):
        await tts.load()
    return tts


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tts(model: Path, voices: Path) -> AsyncIterator[FireRedTts]:
    """Two slots; a piece has six frames."""
    engine = await loaded(model, voices)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def single(model: Path, voices: Path) -> AsyncIterator[FireRedTts]:
    """One slot; a piece goes on to its frame limit."""
    engine = await loaded(model, voices, users=1, brief=False)
    yield engine
    await engine.close()


async def said(tts: FireRedTts, *texts: str, voice: Voice = ANNA) -> list[SpeechChunk]:
    async with asyncio.timeout(WAIT_S), aclosing(tts.synthesize(pieces(*texts), voice=voice)) as chunks:
        return [chunk async for chunk in chunks]


def audio_of(chunks: list[SpeechChunk], piece: int) -> AudioChunk:
    return concat([chunk.audio for chunk in chunks if chunk.piece_index == piece], 24_000)


async def rest_of(chunks: AsyncIterator[SpeechChunk]) -> list[SpeechChunk]:
    async with asyncio.timeout(WAIT_S):
        return [chunk async for chunk in chunks]


def marks(chunks: list[SpeechChunk]) -> list[int]:
    return [chunk.piece_index for chunk in chunks if chunk.final]


async def idle(tts: FireRedTts) -> None:
    async with asyncio.timeout(WAIT_S):
        await tts.idle()


def engine_of(tts: FireRedTts) -> FireRedEngine:
    assert tts._engine is not None
    return tts._engine


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "firered"]


# --- one reply


async def test_audio_leaves_frame_by_frame_and_a_mark_ends_the_piece(tts: FireRedTts) -> None:
    chunks = await said(tts, "Hello.")
    assert len(chunks) > BRIEF_FRAMES // 2
    assert max(chunk.audio.n_samples for chunk in chunks) <= 2 * FRAME
    assert marks(chunks) == [0]
    assert 0 < audio_of(chunks, 0).n_samples <= BRIEF_FRAMES * FRAME
    assert all(np.abs(chunk.audio.samples).max(initial=0.0) <= 1 for chunk in chunks)


async def test_the_next_piece_is_asked_for_while_the_first_one_is_still_spoken(single: FireRedTts) -> None:
    second_asked = asyncio.Event()

    async def watched() -> AsyncIterator[SpeechPiece]:
        async for piece in pieces(LONG, LONG, LONG):
            assert piece.index < 2
            if piece.index == 1:
                second_asked.set()
            yield piece

    async with aclosing(single.synthesize(watched(), voice=ANNA)) as chunks:
        first = await anext(chunks)
        assert not second_asked.is_set()
        async with asyncio.timeout(WAIT_S):
            await second_asked.wait()
        assert not first.final
    await idle(single)


async def test_pieces_that_cannot_be_spoken_have_their_marks_in_order(tts: FireRedTts) -> None:
    chunks = await said(tts, "...", "One.", "", "😀", "שלום", "Two.", "!")
    assert marks(chunks) == [0, 1, 2, 3, 4, 5, 6]
    assert [chunk.piece_index for chunk in chunks] == sorted(chunk.piece_index for chunk in chunks)
    assert [piece for piece in range(7) if audio_of(chunks, piece).n_samples] == [1, 5]


async def test_a_reply_of_nothing_that_can_be_spoken_ends(tts: FireRedTts) -> None:
    assert marks(await said(tts, "...", "😀")) == [0, 1]
    assert await said(tts) == []


async def test_a_piece_of_many_sentences_is_one_piece(tts: FireRedTts) -> None:
    text = "This is said in more than one stretch. " * 8
    chunks = await said(tts, text, "End.")
    assert marks(chunks) == [0, 1]
    assert audio_of(chunks, 0).n_samples > BRIEF_FRAMES * FRAME


async def test_an_error_of_the_text_comes_after_the_audio_before_it(tts: FireRedTts) -> None:
    async def broken() -> AsyncIterator[SpeechPiece]:
        yield SpeechPiece(0, "Hello.", 0, 6)
        raise EngineFailed("the model is gone", stage="llm")

    heard: list[SpeechChunk] = []
    async with aclosing(tts.synthesize(broken(), voice=ANNA)) as chunks:
        while not marks(heard):
            heard.append(await anext(chunks))
        with pytest.raises(EngineFailed, match="the model is gone"):
            await rest_of(chunks)
    await idle(tts)


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.5, 2.0, 9.0])
async def test_speed_changes_the_length_alone(tts: FireRedTts, speed: float) -> None:
    chunks = await said(tts, "Hello.", "Again.", voice=Voice("anna", "Anna", "en", speed=speed))
    assert marks(chunks) == [0, 1]
    for piece in (0, 1):
        at_rest = audio_of(chunks, piece).n_samples * min(speed, 2.0)
        assert at_rest <= BRIEF_FRAMES * FRAME + 2
        assert at_rest > (BRIEF_FRAMES - 2) * FRAME
        assert np.abs(audio_of(chunks, piece).samples).max() > 0.05


async def test_a_seed_repeats_the_reply(tts: FireRedTts) -> None:
    def seeded(seed: int) -> Voice:
        return Voice("anna", "Anna", "en", seed=seed)

    first, again, other = [await said(tts, "Hello.", "Again.", voice=seeded(seed)) for seed in (1, 1, 2)]
    for piece in (0, 1):
        samples = audio_of(first, piece).samples
        np.testing.assert_allclose(audio_of(again, piece).samples, samples, atol=1e-5)
        assert not np.array_equal(audio_of(other, piece).samples, samples)
    with pytest.raises(InvalidInput, match="seed"):
        await said(tts, "Hello.", voice=seeded(-1))


# --- several replies, and their ends


async def test_closing_in_mid_piece_frees_the_slot_for_who_waits(single: FireRedTts) -> None:
    async with aclosing(single.synthesize(pieces(LONG, LONG), voice=ANNA)) as first:
        await anext(first)
        async with aclosing(single.synthesize(pieces(LONG), voice=ANNA)) as second:
            waiting = asyncio.ensure_future(anext(second))
            await asyncio.sleep(0)
            assert single.n_waiting == 1
            await first.aclose()
            async with asyncio.timeout(WAIT_S):
                assert (await waiting).audio.n_samples
            assert single.n_waiting == 0
    await idle(single)
    assert engine_of(single).n_streams == 0
    assert not single._replies


async def test_a_cancelled_reader_leaves_no_task_and_no_stream(single: FireRedTts) -> None:
    before = asyncio.all_tasks()
    never = asyncio.Event()

    async def slow() -> AsyncIterator[SpeechPiece]:
        yield SpeechPiece(0, LONG, 0, len(LONG))
        await never.wait()

    heard = asyncio.Event()

    async def read() -> None:
        async with aclosing(single.synthesize(slow(), voice=ANNA)) as chunks:
            async for _ in chunks:
                heard.set()

    reader = asyncio.create_task(read())
    async with asyncio.timeout(WAIT_S):
        await heard.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert asyncio.all_tasks() == before
    await idle(single)
    assert engine_of(single).n_streams == 0


async def test_two_replies_at_once_are_spoken_in_one_batch(tts: FireRedTts) -> None:
    n_steps, n_frames = engine_of(tts).stats.n_steps, engine_of(tts).stats.n_frames
    one, other = await asyncio.gather(
        said(tts, "One.", "Two."), said(tts, "Three.", "Four.", voice=Voice("bruno", "Bruno", "en"))
    )
    assert marks(one) == marks(other) == [0, 1]
    assert not np.array_equal(audio_of(one, 0).samples, audio_of(other, 0).samples)
    await idle(tts)
    assert engine_of(tts).stats.n_steps - n_steps < engine_of(tts).stats.n_frames - n_frames


async def test_closing_the_engine_ends_a_running_reply_and_its_thread(model: Path, voices: Path) -> None:
    threads = engine_threads()
    engine = await loaded(model, voices, brief=False)
    assert len(engine_threads()) == len(threads) + 1
    async with aclosing(engine.synthesize(pieces(LONG), voice=ANNA)) as chunks:
        await anext(chunks)
        await engine.close()
        with pytest.raises(EngineNotReady):
            await rest_of(chunks)
    assert engine_threads() == threads
    assert not engine._replies
    with pytest.raises(EngineNotReady):
        await said(engine, "Hello.")
    with pytest.raises(EngineNotReady):
        await engine.load()
    await engine.close()


async def test_a_frame_that_never_ends_does_not_keep_the_server_from_closing(
    model: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tts_firered, "CLOSE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(lanes, "abandoned", set())
    threads = engine_threads()
    engine = await loaded(model, voices, brief=False)
    hanging, may_go_on = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        hanging.set()
        assert may_go_on.wait(WAIT_S)
        raise RuntimeError("the device is gone")

    async with aclosing(engine.synthesize(pieces(LONG), voice=ANNA)) as chunks:
        await anext(chunks)
        (thread,) = set(engine_threads()) - set(threads)
        monkeypatch.setattr(engine_of(engine)._scheduler._runner, "launch", hang)
        assert await asyncio.to_thread(hanging.wait, WAIT_S)
        await engine.close()
        assert lanes.abandoned == {"firered"}
        may_go_on.set()
        await asyncio.to_thread(thread.join, WAIT_S)
        with pytest.raises(EngineNotReady):
            await rest_of(chunks)


@pytest.mark.parametrize(("failure", "expected"), [("CUDA out of memory", OutOfMemory), ("a bad launch", EngineFailed)])
async def test_a_device_that_fails_fails_the_replies_and_refuses_the_next(
    model: Path, voices: Path, monkeypatch: pytest.MonkeyPatch, failure: str, expected: type[VoicepodError]
) -> None:
    engine = await loaded(model, voices, brief=False)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(failure)

    async with aclosing(engine.synthesize(pieces(LONG), voice=ANNA)) as chunks:
        await anext(chunks)
        monkeypatch.setattr(engine_of(engine)._scheduler._runner, "launch", fail)
        with pytest.raises(expected) as raised:
            await rest_of(chunks)
    assert failure not in raised.value.message
    with pytest.raises(expected):
        await said(engine, "Hello.")
    await idle(engine)
    await engine.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("too long"), InvalidInput),
        (EngineClosedError("closed"), EngineNotReady),
        (GenerationError("the engine failed: CUDA out of memory. Tried to allocate"), OutOfMemory),
        (GenerationError("the engine failed: /a/path"), EngineFailed),
        (FireRedError("else"), EngineFailed),
    ],
)
async def test_errors_of_the_engine_become_ours(error: FireRedError, expected: type[VoicepodError]) -> None:
    ours = pipeline_error(error)
    assert type(ours) is expected
    assert "/" not in ours.message


# --- voices


async def test_the_voices_are_the_files_of_the_directory(tts: FireRedTts) -> None:
    assert [(voice.id, voice.name) for voice in tts.info.voices] == [("anna", "Anna"), ("bruno", "bruno")]
    assert all((voice.language, voice.languages) == ("en", LANGUAGES) for voice in tts.info.voices)
    with pytest.raises(InvalidInput):
        await said(tts, "Hello.", voice=RANDOM_VOICE)


async def test_the_languages_are_those_of_the_engine() -> None:
    assert set(LANGUAGES) == set(firered.text.LANGUAGES)


async def test_voice_files_that_cannot_be_used_are_logged_and_skipped(model: Path, tmp_path: Path) -> None:
    good = voice_prompt("Good").to_bytes()
    write_voice(tmp_path / "good.voice", "Good")
    (tmp_path / "damaged.voice").write_bytes(good[:-40] + b"?" + good[-39:])
    (tmp_path / "empty.voice").write_bytes(b"")
    (tmp_path / "folder.voice").mkdir()
    (tmp_path / "huge.voice").write_bytes(good + bytes(2_000_000))
    (tmp_path / "no name.voice").write_bytes(good)
    write_voice(tmp_path / "other-codec.voice", "Other", codebook_size=2048)
    (tmp_path / "good.txt").write_text("not a voice")
    with structlog.testing.capture_logs() as logs:
        engine = await loaded(model, tmp_path)
    try:
        assert [voice.id for voice in engine.info.voices] == ["good"]
        skipped = {log["file"].removesuffix(".voice") for log in logs if log["event"] == "voice.skipped"}
        assert skipped == {"damaged", "empty", "folder", "huge", "no name", "other-codec"}
        assert marks(await said(engine, "Hello.", voice=Voice("good", "Good", "en"))) == [0]
    finally:
        await engine.close()


async def test_without_voice_files_there_is_a_random_voice_that_says_so(model: Path, tmp_path: Path) -> None:
    engine = await loaded(model, tmp_path / "nowhere")
    try:
        assert engine.info.voices == (RANDOM_VOICE,)
        assert "another one in every answer" in RANDOM_VOICE.name
        assert marks(await said(engine, "Hello.", voice=RANDOM_VOICE)) == [0]
    finally:
        await engine.close()


# --- loading and settings


@pytest.mark.parametrize("path", [None, "nowhere", "empty", "damaged"])
async def test_tts_model_path_acts_and_a_wrong_one_says_what_to_do(
    model: Path, voices: Path, tmp_path: Path, path: str | None
) -> None:
    (tmp_path / "empty").mkdir()
    damaged = write_checkpoint(tmp_path / "damaged")
    (damaged / "codec.pt").write_bytes((damaged / "codec.pt").read_bytes()[:1000])
    settings = firered_settings(model, voices, models={"tts_model_path": path and tmp_path / path, "dir": tmp_path})
    engine = FireRedTts.from_settings(settings)
    with pytest.raises(ConfigError, match=r"Run: python -m scripts\.convert_firered"):
        await engine.load()
    await engine.close()


async def test_without_tts_model_path_it_is_the_downloaded_model(model: Path, voices: Path, tmp_path: Path) -> None:
    (tmp_path / "fireredtts-2").symlink_to(model)
    settings = firered_settings(model, voices, models={"tts_model_path": None, "dir": tmp_path})
    engine = FireRedTts.from_settings(settings)
    await engine.load()
    await engine.close()


async def test_without_torch_the_message_says_what_to_install(
    model: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    engine = FireRedTts.from_settings(firered_settings(model, voices))
    with pytest.raises(ConfigError, match=r"Run: .* requirements/gpu\.txt"):
        await engine.load()
    await engine.close()


class Refused(RuntimeError):
    """What the engine's loader raises in place of reading weights."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the engine is loaded with, on a machine with two cards that has no room on either."""
    calls: list[dict[str, Any]] = []

    def from_pretrained(directory: Path, device: str, dtype: torch.dtype, *, options: Any) -> None:
        calls.append({"directory": directory, "device": device, "dtype": dtype, "slots": options.max_streams})
        raise Refused("CUDA out of memory")

    monkeypatch.setattr(FireRedEngine, "from_pretrained", from_pretrained)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return calls


async def asked_with(asked: list[dict[str, Any]], model: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    engine = FireRedTts.from_settings(firered_settings(model, model, **sections))
    with pytest.raises(ConfigError, match="max_concurrent_users"):
        await engine.load()
    await engine.close()
    return asked.pop()


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        ("cuda", "bf16", torch.bfloat16),
        ("cuda", "fp16", torch.float16),
        ("cuda:1", "fp32", torch.float32),
        ("auto", "bf16", torch.bfloat16),
        ("cpu", "bf16", torch.float32),
    ],
)
async def test_model_precision_and_gpu_device_act(
    asked: list[dict[str, Any]], model: Path, device: str, precision: str, dtype: torch.dtype
) -> None:
    system, models = {"gpu_device": device}, {"model_precision": precision}
    found = await asked_with(asked, model, system=system, models=models)
    assert (found["device"], found["dtype"]) == ("cuda" if device == "auto" else device, dtype)
    assert found["directory"] == model


@pytest.mark.parametrize(("users", "slots"), [(1, 1), (7, 7), (1000, MAX_SLOTS)])
async def test_every_talk_has_a_slot(asked: list[dict[str, Any]], model: Path, users: int, slots: int) -> None:
    found = await asked_with(asked, model, system={"max_concurrent_users": users})
    assert found["slots"] == slots


@pytest.mark.parametrize(("device", "threads"), [("cpu", [3]), ("cuda", [])])
async def test_tts_threads_act_on_a_cpu(
    asked: list[dict[str, Any]], model: Path, monkeypatch: pytest.MonkeyPatch, device: str, threads: list[int]
) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    await asked_with(asked, model, system={"gpu_device": device}, tts={"threads": 3})
    assert told == threads


async def test_the_adapters_are_imported_without_torch() -> None:
    code = (
        "import sys, pipeline.engines.tts_firered, pipeline.engines.tts_firered_upstream; print('torch' in sys.modules)"
    )
    python = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(WAIT_S):
        said, _ = await python.communicate()
    assert said.strip() == b"False"


async def test_a_card_that_is_not_there_is_refused(model: Path, voices: Path, asked: list[dict[str, Any]]) -> None:
    engine = FireRedTts.from_settings(firered_settings(model, voices, system={"gpu_device": "cuda:2"}))
    with pytest.raises(ConfigError, match=r"system\.gpu_device: there is no card cuda:2"):
        await engine.load()
    assert asked == []
    await engine.close()


async def test_a_failure_of_the_warm_up_fails_the_load_and_leaves_no_thread(
    model: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = engine_threads()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(StepRunner, "launch", fail)
    engine = FireRedTts.from_settings(firered_settings(model, voices))
    with pytest.raises(OutOfMemory):
        await engine.load()
    assert engine_threads() == threads
    await engine.close()


async def test_a_load_that_is_cancelled_leaves_no_engine(
    model: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = engine_threads()
    reading, may_go_on = threading.Event(), threading.Event()
    from_pretrained = FireRedEngine.from_pretrained

    def slow(*args: Any, **options: Any) -> FireRedEngine:
        reading.set()
        assert may_go_on.wait(WAIT_S)
        return from_pretrained(*args, **options)

    monkeypatch.setattr(FireRedEngine, "from_pretrained", slow)
    engine = FireRedTts.from_settings(firered_settings(model, voices))
    loading = asyncio.create_task(engine.load())
    assert await asyncio.to_thread(reading.wait, WAIT_S)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    may_go_on.set()
    await engine.close()
    assert engine_threads() == threads
    with pytest.raises(EngineNotReady):
        await said(engine, "Hello.")


async def test_audio_is_made_ahead_of_a_listener_by_a_bounded_time(tts: FireRedTts) -> None:
    fast = Voice("anna", "Anna", "en", speed=1.5)
    assert tts._options(ANNA).max_lead_s is None  # nobody listens
    token = lanes.job_priority.set(lambda: (lanes.FIRST_AUDIO, 0.0))
    try:
        assert tts._options(ANNA).max_lead_s == DEFAULT_MAX_LEAD_S
        assert tts._options(fast).max_lead_s is None  # he needs more than real time
    finally:
        lanes.job_priority.reset(token)


# --- a scripted engine


class ScriptedStream:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.has_ended = self.cancelled = False

    def add_text(self, text: str) -> int:
        self.texts.append(text)
        return len(self.texts) - 1

    def end(self) -> None:
        self.has_ended = True

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedEngine:
    """Says what it is told to, when it is told to."""

    sample_rate = 24_000

    def __init__(self) -> None:
        self.stream = ScriptedStream()
        self.say: Callable[[StreamEvent], None] = lambda event: None

    def open(self, options: StreamOptions, sink: Callable[[StreamEvent], None]) -> ScriptedStream:
        self.say = sink
        return self.stream


def scripted_reply(speed: float = 1.0) -> tuple[ScriptedEngine, FireRedReply, list[FireRedReply]]:
    engine = ScriptedEngine()
    over: list[FireRedReply] = []
    reply = FireRedReply(engine, StreamOptions(), speed=speed, on_over=over.append)  # type: ignore[arg-type]
    return engine, reply, over


def sound(piece: int, value: float = 0.5, n_samples: int = FRAME) -> SpeechAudio:
    return SpeechAudio(piece, np.full(n_samples, value, np.float32))


async def test_a_piece_that_the_model_says_nothing_for_does_not_stop_the_next() -> None:
    engine, reply, over = scripted_reply()
    async with asyncio.timeout(WAIT_S), aclosing(reply.chunks(pieces("One.", "Two."))) as chunks:
        engine.say(PieceEnd(0, 0, "end_of_speech"))
        first = await anext(chunks)
        assert (first.final, first.audio.n_samples) == (True, 0)
        engine.say(sound(1, 3.0))
        second = await anext(chunks)
        assert engine.stream.texts == ["One.", "Two."]
        assert second.audio.samples.max() == 1.0  # never louder than full scale
        engine.say(PieceEnd(1, 1, "end_of_speech"))
        assert (await anext(chunks)).final
        engine.say(StreamEnd(cancelled=False))
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    assert engine.stream.has_ended
    assert over == [reply]


async def test_silence_before_a_piece_is_cut_and_within_it_stays() -> None:
    engine, reply, _ = scripted_reply()
    async with asyncio.timeout(WAIT_S), aclosing(reply.chunks(pieces("One."))) as chunks:
        for value in (0.0, 0.0, 0.0, 0.5, 0.0):
            engine.say(sound(0, value))
        engine.say(PieceEnd(0, 5, "end_of_speech"))
        engine.say(StreamEnd(cancelled=False))
        heard = [chunk async for chunk in chunks]
    assert [chunk.audio.n_samples for chunk in heard] == [3600 + FRAME, FRAME, 0]
    assert [chunk.final for chunk in heard] == [False, False, True]


async def test_nothing_is_with_the_engine_between_two_pieces_and_after_the_end() -> None:
    engine, reply, _ = scripted_reply()
    assert reply.settled.is_set()
    async with asyncio.timeout(WAIT_S), aclosing(reply.chunks(pieces("One.", "Two."))) as chunks:
        engine.say(sound(0))
        await anext(chunks)
        assert not reply.settled.is_set()
        engine.say(StreamFailed(GenerationError("gone")))
        with pytest.raises(EngineFailed):
            await anext(chunks)
    assert reply.settled.is_set()
    assert engine.stream.cancelled


async def test_what_the_engine_says_after_the_loop_is_closed_is_lost() -> None:
    def in_a_loop_of_its_own() -> ScriptedEngine:
        async def begin() -> ScriptedEngine:
            engine, reply, _ = scripted_reply()
            chunks = reply.chunks(pieces("One."))
            engine.say(sound(0))
            await anext(chunks)
            return engine  # the reader is left open: the loop closes it

        return asyncio.run(begin())

    engine = await asyncio.to_thread(in_a_loop_of_its_own)
    assert engine.stream.cancelled
    engine.say(sound(0))


async def test_a_stream_that_cannot_be_opened_is_refused_in_our_words() -> None:
    def refuse(*_: object) -> None:
        raise EngineClosedError("closed")

    with pytest.raises(EngineNotReady):
        FireRedReply(
            SimpleNamespace(sample_rate=24_000, open=refuse),  # type: ignore[arg-type]
            StreamOptions(),
            speed=1.0,
            on_over=lambda reply: None,
        )
