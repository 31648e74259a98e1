"""What only the openai-whisper engine promises: on tiny weights, and for the lossless mapping on real ones."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from pipeline.audio import AudioChunk, concat
from pipeline.engines.asr_faster_whisper import FasterWhisperAsr
from pipeline.engines.asr_whisper import WhisperAsr
from pipeline.engines.lanes import Stop
from pipeline.engines.tiny_whisper import SENTENCE, write_tiny_whisper
from pipeline.engines.whisper_decoding import Hearing, hear
from pipeline.engines.whisper_model import build
from pipeline.engines.whisper_weights import read_whisper, tensor_shapes
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from pipeline.models import locate
from settings import Settings
from tests.contract.conftest import WAIT_S, Kept, english
from tests.support.speech_clips import questions, recordings
from tests.support.whisper_files import hugging_face_name
from tests.support.words import plain

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

Hook = Callable[[Any, Any, torch.Tensor], torch.Tensor | None]


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_whisper(tmp_path_factory.mktemp("tiny-whisper"))


def engine_of(directory: Path, **asr: object) -> WhisperAsr:
    return WhisperAsr.from_settings(
        Settings.model_validate({"asr": {"path": directory, "device": "cpu", "threads": 1, **asr}})
    )


@pytest_asyncio.fixture(loop_scope="session")
async def tiny(tiny_directory: Path) -> AsyncIterator[WhisperAsr]:
    engine = engine_of(tiny_directory)
    await engine.load()
    yield engine
    await engine.close()


def on_decoder(engine: WhisperAsr, hook: Hook) -> Any:
    """Calls `hook` after each step of the decoder; the handle takes it away again."""
    assert engine._loaded is not None
    return engine._loaded.model.decoder.register_forward_hook(hook)


class Gate:
    """Holds the decoder at its n-th step until it is opened, and counts the steps."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, _module: Any, _inputs: Any, _logits: torch.Tensor) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.reached.set()
            self.opened.wait(WAIT_S)


def question() -> AudioChunk:
    return questions()[0].audio


async def test_tiny_weights_hear_their_sentence_in_english(tiny: WhisperAsr) -> None:
    for clip in [questions()[0], recordings()[1]]:  # neither has a pause, after which Whisper would be asked again
        heard = await tiny.transcribe(clip.audio, language=None)
        assert (heard.text, heard.language) == (SENTENCE, "en")
        assert heard.audio_seconds == pytest.approx(clip.audio.seconds)
    assert (await tiny.transcribe(question(), language="de")).language == "de"
    assert tiny.info.device == "cpu"
    assert len(tiny.info.languages) == 99


async def test_a_beam_hears_what_the_greedy_search_hears(tiny_directory: Path) -> None:
    engine = engine_of(tiny_directory, beam_size=3)
    await engine.load()
    assert (await engine.transcribe(question(), language=None)).text == SENTENCE
    await engine.close()


async def test_language_text_and_words_take_one_run_of_the_encoder(tiny: WhisperAsr) -> None:
    assert tiny._loaded is not None
    runs: list[tuple[int, ...]] = []
    handle = tiny._loaded.model.encoder.register_forward_hook(lambda _m, inputs, _out: runs.append(inputs[0].shape))
    assert (await tiny.transcribe_words(question(), language=None)).words
    handle.remove()
    assert runs == [(1, 80, 3000)]


async def test_words_follow_each_other_within_the_audio(tiny: WhisperAsr) -> None:
    audio = concat([question()] * 14, 16_000)
    assert audio.seconds > 30
    heard = await tiny.transcribe_words(audio, language=None)
    assert heard.text == f"{SENTENCE} {SENTENCE}"  # one in each window
    assert [word.text for word in heard.words] == heard.text.split()
    times = [time for word in heard.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= audio.seconds
    assert heard.words[len(SENTENCE.split())].start_s >= 30


async def test_the_half_precision_of_a_card_hears_the_same(tiny_directory: Path) -> None:
    weights = read_whisper(tiny_directory)
    model = build(weights, torch.device("cpu"), torch.float16)
    assert model.decoder.token_embedding.weight.dtype == torch.float16
    heard = hear(Hearing(model, torch.float16, weights.alignment_heads), question().samples, None, True, Stop())
    assert heard.text == SENTENCE
    assert len(heard.words) == len(SENTENCE.split())


async def test_a_cancelled_utterance_ends_before_the_next_token(tiny: WhisperAsr) -> None:
    gate = Gate(at=4)
    handle = on_decoder(tiny, gate)
    caller = asyncio.create_task(tiny.transcribe(question(), language="en"))
    assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller  # at once: the step is still held
    gate.opened.set()
    async with asyncio.timeout(WAIT_S):
        await tiny.idle()
    assert gate.steps == gate.at
    handle.remove()
    assert (await tiny.transcribe(question(), language="en")).text == SENTENCE


async def test_closing_ends_the_running_utterance_before_the_next_token(tiny_directory: Path) -> None:
    engine = engine_of(tiny_directory)
    await engine.load()
    gate = Gate(at=4)
    on_decoder(engine, gate)
    caller = asyncio.create_task(engine.transcribe(question(), language="en"))
    assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)  # it sets the flag
    gate.opened.set()
    await closing
    with pytest.raises(EngineNotReady):
        await caller
    assert gate.steps == gate.at


async def test_two_utterances_wait_for_each_other(tiny: WhisperAsr) -> None:
    gate = Gate(at=1)
    handle = on_decoder(tiny, gate)
    clips = [questions()[0].audio, questions()[1].audio]
    callers = [asyncio.create_task(tiny.transcribe(clip, language="en")) for clip in clips]
    assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
    assert tiny.n_waiting == 1
    gate.opened.set()
    heard = await asyncio.gather(*callers)
    handle.remove()
    assert [t.audio_seconds for t in heard] == [clip.seconds for clip in clips]
    assert [t.text for t in heard] == [SENTENCE] * 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
async def test_a_full_card_costs_one_utterance_and_says_so(tiny: WhisperAsr, error: Exception) -> None:
    def fill(_module: Any, _inputs: Any, _logits: torch.Tensor) -> None:
        raise error

    handle = on_decoder(tiny, fill)
    with pytest.raises(OutOfMemory):
        await tiny.transcribe(question(), language=None)
    handle.remove()
    assert (await tiny.transcribe(question(), language=None)).text == SENTENCE


async def test_values_that_are_no_numbers_are_an_error_not_a_text(tiny: WhisperAsr) -> None:
    handle = on_decoder(tiny, lambda _module, _inputs, logits: torch.full_like(logits, torch.nan))
    with pytest.raises(EngineFailed, match="no numbers"):
        await tiny.transcribe(question(), language="en")
    handle.remove()
    broken = AudioChunk(np.full(16_000, np.nan, np.float32), 16_000)
    assert (await tiny.transcribe(broken, language="en")).text == ""


async def test_any_other_failure_of_the_model_is_named(tiny: WhisperAsr) -> None:
    def fail(_module: Any, _inputs: Any, _logits: torch.Tensor) -> None:
        raise RuntimeError("shapes differ")

    handle = on_decoder(tiny, fail)
    with pytest.raises(EngineFailed, match="speech recognition failed"):
        await tiny.transcribe(question(), language="en")
    handle.remove()


async def test_an_unsure_window_is_no_speech(tiny: WhisperAsr) -> None:
    handle = on_decoder(tiny, lambda _module, _inputs, logits: logits / 20)  # every token nearly as likely
    assert (await tiny.transcribe(question(), language="en")).text == ""
    handle.remove()


async def test_weights_that_are_no_numbers_stop_the_start(tiny_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_directory, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.weight"][3, 5] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    engine = engine_of(tmp_path)
    with pytest.raises(ConfigError, match=r"encoder\.blocks\.0\.mlp\.0\.weight"):
        await engine.load()
    await engine.close()


async def test_a_card_that_is_not_there_stops_the_start(tiny_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    engine = engine_of(tiny_directory, device="cuda:1")
    with pytest.raises(ConfigError, match="no card cuda:1"):
        await engine.load()
    await engine.close()


@pytest.mark.parametrize(
    ("compute_type", "dtype"),
    [("int8", torch.float16), ("default", torch.float16), ("float16", torch.float16), ("float32", torch.float32)],
)
async def test_a_card_computes_in_half_precision_unless_asked_otherwise(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch, compute_type: str, dtype: torch.dtype
) -> None:
    seen: list[tuple[object, object]] = []

    def build_there(_weights: object, *where: object) -> None:
        seen.append((where[0], where[1]))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("pipeline.engines.whisper_model.build", build_there)
    engine = engine_of(tiny_directory, device="cuda:1", compute_type=compute_type)
    with pytest.raises(ConfigError, match="memory of cuda:1"):
        await engine.load()
    await engine.close()
    assert seen == [(torch.device("cuda:1"), dtype)]


async def test_a_card_that_is_too_small_stops_the_start(tiny_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("pipeline.engines.whisper_model.build", full)
    engine = engine_of(tiny_directory)
    with pytest.raises(ConfigError, match="does not fit"):
        await engine.load()
    await engine.close()


async def test_a_model_that_fails_its_first_utterance_stops_the_start(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("pipeline.engines.whisper_decoding.hear", full)
    engine = engine_of(tiny_directory)
    with pytest.raises(ConfigError, match="does not work on cpu: speech recognition ran out of memory"):
        await engine.load()
    await engine.close()


async def test_nothing_is_fetched(tiny_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_arguments: object) -> None:
        pytest.fail("it used the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    engine = engine_of(tiny_directory)
    await engine.load()
    assert (await engine.transcribe_words(question(), language=None)).words
    await engine.close()


async def test_importing_the_engine_is_instant_and_numba_stays_out(tiny: WhisperAsr) -> None:
    assert (await tiny.transcribe_words(question(), language=None)).words
    assert "numba" not in sys.modules
    modules = "pipeline.engines.asr_whisper, pipeline.engines.tiny_whisper"
    program = f"import sys, {modules}; print(sorted({{'torch', 'whisper', 'safetensors'}} & set(sys.modules)))"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- with the real weights of the CPU profile


def real(model_id: str) -> Path:
    try:
        return locate(Settings().models.dir, model_id)
    except ConfigError as error:
        pytest.skip(error.message)


@pytest.mark.models
async def test_both_layouts_give_the_same_tensors(tmp_path: Path) -> None:
    packaged = read_whisper(real("whisper-base"))
    names = list(tensor_shapes(packaged.sizes))
    save_file({hugging_face_name(name): packaged.read(name) for name in names}, tmp_path / "model.safetensors")
    sizes = packaged.sizes
    config = {
        "model_type": "whisper",
        "d_model": sizes.width,
        "encoder_layers": sizes.n_audio_layers,
        "decoder_layers": sizes.n_text_layers,
        "encoder_attention_heads": sizes.n_heads,
        "decoder_attention_heads": sizes.n_heads,
        "num_mel_bins": sizes.n_mels,
        "vocab_size": sizes.n_vocabulary,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    heads = [list(head) for head in packaged.alignment_heads]
    (tmp_path / "generation_config.json").write_text(json.dumps({"alignment_heads": heads}), encoding="utf-8")

    converted = read_whisper(tmp_path)
    assert (converted.sizes, converted.alignment_heads) == (packaged.sizes, packaged.alignment_heads)
    assert (sizes.width, sizes.n_heads, sizes.n_text_layers) == (512, 8, 6)
    for name in names:
        assert torch.equal(converted.read(name), packaged.read(name)), name


@pytest.mark.models
async def test_an_english_model_hears_english_and_refuses_no_language(kept: Kept) -> None:
    engine = await english("whisper", kept)
    assert engine.info.languages == ("en",)
    clip = questions()[0]
    heard = await engine.transcribe(clip.audio, language="de")
    assert (plain(heard.text), heard.language) == (plain(clip.text), "en")


@pytest.mark.models
async def test_a_ctranslate2_directory_of_ones_own_serves_the_other_engine_too(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await english("faster_whisper", kept)
    clip = questions()[0]
    assert isinstance(engine, FasterWhisperAsr)
    assert engine._loaded is not None
    encode, n_encoded = engine._loaded.encode, 0

    def counted(features: Any) -> Any:
        nonlocal n_encoded
        n_encoded += 1
        return encode(features)

    monkeypatch.setattr(engine._loaded, "encode", counted)
    for transcribe in (engine.transcribe, engine.transcribe_words):
        assert plain((await transcribe(clip.audio, language=None)).text) == plain(clip.text)
    assert n_encoded == 2  # one run of the encoder each, word times or not
    # A pause in a room that is not silent: Whisper's text ends there, and the word times show that there is more.
    room = (np.random.default_rng(1).standard_normal(5 * 16_000) * 0.003).astype(np.float32)
    clips = {clip.name: clip.audio for clip in questions()}
    said = concat([clips["question_hamlet"], AudioChunk(room, 16_000), clips["question_week"]], 16_000)
    heard = await engine.transcribe_words(said, language=None)
    assert "days are there in a week" in plain(heard.text)
    assert [word.text for word in heard.words] == heard.text.split()


async def test_a_multilingual_model_refuses_a_language_that_it_does_not_know(tiny: WhisperAsr) -> None:
    with pytest.raises(InvalidInput):
        await tiny.transcribe(question(), language="xx")
