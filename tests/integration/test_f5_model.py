"""The real F5TTS class on tiny random weights: what it says is noise, in time, by seed, and the same again."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.audio import AudioChunk, Samples, file_bytes
from pipeline.engines import f5_model, f5_text
from pipeline.engines.base import CloningTts, SpeechPiece, Voice
from pipeline.engines.f5_imports import import_f5, package_directory
from pipeline.engines.f5_model import Cancelled, F5Files, F5Model
from pipeline.engines.f5_text import MIN_SPEECH_S
from pipeline.engines.tiny_f5 import write_tiny_f5
from pipeline.engines.tts_f5 import NATURE, F5Tts, F5Voice
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady, InvalidInput, OutOfMemory
from serverless.errors import JobError
from serverless.speech import Reference, Speech, default_reference, prepare_reference, synthesize

ROOT = Path(__file__).resolve().parents[2]
RATE = 24_000
STEPS = 3
TEXT = "This is one sentence. " * 3  # two chunks, of a model that speaks for at most 5 s
FRAME_S = 256 / RATE


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> F5Files:
    return F5Files.in_directories(write_tiny_f5(tmp_path_factory.mktemp("f5")))


@pytest.fixture(scope="module")
def model(files: F5Files) -> F5Model:
    return F5Model.load(files, device="cpu", threads=1)


@cache
def brief() -> Reference:
    audio = AudioChunk(default_reference().audio.samples[: RATE * 3 // 2], RATE)
    return prepare_reference(audio, "Some call me nature.")


@pytest.fixture
def reference() -> Reference:
    return brief()


def speak(model: F5Model, text: str, **options: Any) -> Samples:
    voice = options.pop("reference", None) or brief()
    settings: dict[str, Any] = {
        "seed": 1,
        "speed": 1.0,
        "nfe_step": STEPS,
        "cfg_strength": 2.0,
        "cancelled": lambda: False,
    } | options
    return model.speak_chunk(voice.audio, voice.text, text, **settings)


@pytest.fixture
def at_most_5_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of reference and new speech; with 22 s, every job of several chunks takes seconds of processor time."""
    monkeypatch.setattr(f5_text, "MAX_TOTAL_S", 5.0)


def job(model: F5Model, text: str, **options: Any) -> Speech:
    settings: dict[str, Any] = {
        "seed": 1,
        "nfe_step": STEPS,
        "cancelled": lambda: False,
        "progress": lambda *_: None,
    } | options
    return synthesize(model, brief(), text, **settings)


@pytest.fixture
def at_step(model: F5Model) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Does something before the n-th step of the model from now on, counted from 1."""
    handles = []

    def plan(n: int, act: Callable[[], None]) -> None:
        steps = iter(range(1, 10_000))
        handles.append(model._transformer.register_forward_pre_hook(lambda *_: act() if next(steps) == n else None))

    yield plan
    for handle in handles:
        handle.remove()


# --- speech


@pytest.mark.usefixtures("at_most_5_s")
def test_a_job_of_several_chunks_is_the_same_for_the_same_seed_bit_for_bit(model: F5Model) -> None:
    first, again, other = (job(model, TEXT, seed=seed) for seed in (42, 42, 43))
    assert len(first.chunks) == 2
    np.testing.assert_array_equal(first.audio.samples, again.audio.samples)
    assert not np.array_equal(first.audio.samples, other.audio.samples)


def test_the_same_seed_gives_the_same_in_two_threads_at_once(model: F5Model) -> None:
    alone = [speak(model, "One text.", seed=3), speak(model, "Another text, longer.", seed=4)]
    together: dict[int, Samples] = {}

    def run(n: int, text: str) -> None:
        together[n] = speak(model, text, seed=3 + n)

    threads = [
        threading.Thread(target=run, args=(n, text)) for n, text in enumerate(["One text.", "Another text, longer."])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, samples in enumerate(alone):
        np.testing.assert_array_equal(together[n], samples)


def test_the_text_and_the_steps_and_the_guidance_act(model: F5Model) -> None:
    plain = speak(model, "These are the words.")
    for other in (
        speak(model, "These are mine words."),
        speak(model, "These are the words.", nfe_step=STEPS + 1),
        speak(model, "These are the words.", cfg_strength=0.0),
    ):
        assert other.shape == plain.shape or other.size
        assert not np.array_equal(other[: plain.size], plain[: other.size])


@pytest.mark.parametrize("text", ["A sentence of some length is spoken here.", "Hi.", "Yes"])
def test_the_length_is_inverse_to_the_speed_for_short_texts_as_well(model: F5Model, text: str) -> None:
    slow, plain, fast = (speak(model, text, speed=speed).size / RATE for speed in (0.5, 1.0, 2.0))
    assert slow == pytest.approx(2 * plain, abs=3 * FRAME_S)
    assert fast == pytest.approx(plain / 2, abs=3 * FRAME_S)


def test_a_word_has_its_time_and_a_sentence_that_of_the_reference(model: F5Model, reference: Reference) -> None:
    assert speak(model, "Hi.").size / RATE == pytest.approx(MIN_SPEECH_S, abs=2 * FRAME_S)
    text = "A sentence of some length is spoken here."
    rate = (len(reference.text) + 1) / reference.audio.seconds
    assert len(text) / rate > 2
    assert speak(model, text).size / RATE == pytest.approx(len(text) / rate, abs=3 * FRAME_S)


def test_a_reference_of_more_letters_than_frames_does_not_make_the_speech_longer(model: F5Model) -> None:
    wordy = Reference("w", brief().audio, "word " * 60)
    plain = Reference("p", brief().audio, "word " * 20)  # as fast as anybody is taken to speak
    assert speak(model, "Hello there.", reference=wordy).size == speak(model, "Hello there.", reference=plain).size


def test_audio_is_float32_finite_and_audible(model: F5Model) -> None:
    samples = speak(model, "Hello there, how are you?")
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert 0.05 < np.abs(samples).max() < 1


def test_speech_is_as_quiet_as_the_reference(model: F5Model, reference: Reference) -> None:
    def quiet(factor: float) -> Samples:
        audio = AudioChunk(reference.audio.samples * np.float32(factor), RATE)
        return speak(model, "Hello there.", reference=Reference("q", audio, reference.text))

    np.testing.assert_allclose(quiet(0.5), 2 * quiet(0.25), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    "text", ["今天天气不错，我们去公园吧。", "Ünïcödé — “quotes” ‘n’ such…", "日本語です", "١٢٣ عربي", "😀 a"]
)
def test_any_script_is_spoken_or_hummed_without_failing(model: F5Model, text: str) -> None:
    assert speak(model, text).size


def test_a_reference_longer_than_12_s_is_cut_and_spoken_with(model: F5Model) -> None:
    audio, text = default_reference().audio, default_reference().text
    long = AudioChunk(np.tile(audio.samples, 3), RATE)
    assert long.seconds > 12
    reference = prepare_reference(long, " ".join([text] * 3))
    assert reference.audio.seconds <= 12
    assert reference.text == " ".join([text] * round(reference.audio.seconds / audio.seconds))
    assert speak(model, "Hello there.", reference=reference).size


@pytest.mark.parametrize(
    "samples", [np.zeros(RATE, np.float32), np.full(100, 0.1, np.float32)], ids=["silent", "short"]
)
def test_a_reference_that_is_none_is_refused(model: F5Model, samples: Samples) -> None:
    with pytest.raises(InvalidInput):
        speak(model, "Hello.", reference=Reference("x", AudioChunk(samples, RATE), "Words."))


def test_the_speech_is_what_upstream_says_with_the_same_noise_and_length(model: F5Model, reference: Reference) -> None:
    text = "Here are the same words for both of us."
    ours = speak(model, text, seed=11)
    audio = torch.from_numpy(reference.audio.samples).unsqueeze(0)
    n_reference = audio.shape[-1] // 256
    frames = n_reference + 1 + round(ours.size / 256) + 1  # the vocoder gives one frame less than it gets
    torch.manual_seed(11)
    samples, rate, _ = next(
        sys.modules["f5_tts.infer.utils_infer"].infer_batch_process(
            (audio, RATE),
            reference.text,  # gets its space there
            [text],
            model._flow,
            model._vocoder,
            progress=None,
            nfe_step=STEPS,
            fix_duration=(frames + 0.5) * FRAME_S,
            device="cpu",
        )
    )
    assert rate == RATE
    theirs = samples[256:]  # they give the last frame of the reference as well
    assert theirs.size == ours.size
    inner = slice(2048, -2048)  # at the ends the vocoder sees what is cut off
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-4)
    assert np.abs(ours[inner]).max() > 0.05


# --- ending early


def test_a_run_is_cancelled_between_two_steps_and_the_next_one_is_as_ever(model: F5Model) -> None:
    before = speak(model, "Some other text.")
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) == 5

    with pytest.raises(Cancelled):
        speak(model, "A text that is never finished.", nfe_step=32, cancelled=cancelled)
    assert len(asked) == 5
    np.testing.assert_array_equal(speak(model, "Some other text."), before)


@pytest.mark.usefixtures("at_most_5_s")
def test_a_job_that_is_cancelled_within_a_run_says_so(model: F5Model, at_step: Any) -> None:
    flag: list[bool] = []
    at_step(STEPS + 2, lambda: flag.append(True))
    with pytest.raises(JobError) as caught:
        job(model, TEXT, cancelled=lambda: bool(flag))
    assert caught.value.code == "CANCELLED"


def test_a_deadline_that_the_cancel_check_raises_comes_out_of_the_run(model: F5Model) -> None:
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        if len(asked) > 3:
            raise JobError("TIMEOUT", "the job took too long")
        return False

    with pytest.raises(JobError) as caught:
        job(model, "Some text.", nfe_step=16, cancelled=cancelled)
    assert caught.value.code == "TIMEOUT"
    assert len(asked) == 4


def test_who_waits_for_another_run_can_be_cancelled(model: F5Model) -> None:
    with model._one_at_a_time, pytest.raises(Cancelled):
        speak(model, "Some text.", cancelled=lambda: True)
    assert speak(model, "Some text.").size


def raises(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_after_running_out_of_memory_a_run_knows_nothing_of_the_text_before(model: F5Model, at_step: Any) -> None:
    before = speak(model, "Some other text.")
    at_step(2, raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")))
    with pytest.raises(OutOfMemory):
        speak(model, "A text that is never finished.")
    np.testing.assert_array_equal(speak(model, "Some other text."), before)


@pytest.mark.usefixtures("at_most_5_s")
def test_a_job_that_ran_out_of_memory_once_is_done_in_smaller_chunks(model: F5Model, at_step: Any) -> None:
    at_step(STEPS + 2, raises(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")))
    said = job(model, TEXT)
    assert said.n_oom_retries == 1
    assert len(said.chunks) > 2
    assert " ".join(chunk.text for chunk in said.chunks) == TEXT.strip()


def test_another_failure_of_the_model_is_told_without_the_text(model: F5Model, at_step: Any) -> None:
    at_step(1, raises(RuntimeError("mat1 and mat2 cannot be multiplied")))
    with pytest.raises(EngineFailed) as caught:
        speak(model, "A secret text.")
    assert "secret" not in caught.value.message


def test_what_is_not_a_number_is_no_speech(model: F5Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model._vocoder, "decode", lambda mel: torch.full((1, 256 * mel.shape[-1]), torch.nan))
    with pytest.raises(EngineFailed):
        speak(model, "Hello there.")


# --- what it leaves behind


def test_nothing_is_printed_no_file_is_left_and_no_cache_grows(
    model: F5Model, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    audio = default_reference().audio
    for n in range(3):
        voice = Reference(str(n), AudioChunk(audio.samples[: RATE * (1 + n)], RATE), "Some call me nature.")
        speak(model, "A confidential text.", reference=voice)
    inference, modules = (sys.modules[f"f5_tts.{name}"] for name in ("infer.utils_infer", "model.modules"))
    assert not inference._ref_audio_cache
    assert not inference._ref_text_cache
    assert len(modules.vocos_mel_stft_cache) == 1
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not model._transformer._forward_pre_hooks
    assert model._transformer.text_cond is None


def test_loading_prints_nothing(files: F5Files, capfd: pytest.CaptureFixture[str]) -> None:
    F5Model.load(files, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_others_draw_on_from_the_generator_as_if_nothing_had_been_said(model: F5Model) -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    speak(model, "Hello there.")
    assert torch.equal(torch.rand(3), expected)


def test_no_stand_in_stays_and_transformers_is_the_real_one(model: F5Model) -> None:
    modules = {name: module for name, module in sys.modules.items() if issubclass(type(module), ModuleType)}
    assert not [name for name, module in modules.items() if str(module.__doc__).startswith("Stands in for")]
    import transformers
    from transformers.utils import is_accelerate_available, is_librosa_available, is_torchaudio_available

    assert transformers.__version__
    looked = (is_accelerate_available, is_librosa_available, is_torchaudio_available)
    installed = ("accelerate", "librosa", "torchaudio")
    assert [look() for look in looked] == [bool(importlib.util.find_spec(name)) for name in installed]
    assert "PYTORCH_ENABLE_MPS_FALLBACK" not in os.environ
    assert not [path for path in sys.path if "BigVGAN" in path]
    assert import_f5() is import_f5()


# --- files


def copied(files: F5Files, tmp_path: Path) -> Path:
    return Path(shutil.copytree(files.checkpoint.parent, tmp_path / "model"))


@pytest.mark.parametrize("name", ["model_tiny.safetensors", "vocos/config.yaml", "vocos/pytorch_model.bin"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_files_that_are_missing_or_damaged_say_what_to_do(
    files: F5Files, tmp_path: Path, name: str, damage: str
) -> None:
    directory = copied(files, tmp_path)
    path = directory / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 300 if damage == "cut" else 0])
    with pytest.raises(ConfigError, match=r"scripts\.download_models"):
        F5Model.load(F5Files.in_directories(directory), device="cpu")


def test_weights_of_another_size_are_refused(files: F5Files, tmp_path: Path) -> None:
    directory = copied(files, tmp_path)
    config = directory / "model.yaml"
    config.write_text(config.read_text().replace("depth: 2", "depth: 3"))
    with pytest.raises(ConfigError, match="another model"):
        F5Model.load(F5Files.in_directories(directory), device="cpu")


def test_a_configuration_of_ones_own_is_found_from_a_package_behind_a_link(
    files: F5Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path.joinpath(*["deeper"] * 12, "f5_tts")
    package.parent.mkdir(parents=True)
    package.symlink_to(package_directory())
    monkeypatch.setattr(f5_model, "package_directory", lambda: package)
    # As upstream and OmegaConf make a path of it.
    found = os.path.abspath(package / "configs" / f"{f5_model._config_name(files.config)}.yaml")
    assert found == str(Path(files.config).resolve())


def test_a_vocoder_file_that_would_run_code_is_refused_and_runs_nothing(files: F5Files, tmp_path: Path) -> None:
    directory = copied(files, tmp_path)

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Payload(), directory / "vocos" / "pytorch_model.bin")
    with pytest.raises(ConfigError):
        F5Model.load(F5Files.in_directories(directory), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("part", "called"),
    [("feature_extractor", "os.system"), ("backbone", "os.system"), ("head", "vocos.pretrained.instantiate_class")],
)
def test_a_vocoder_config_that_names_other_code_is_refused_and_calls_nothing(
    files: F5Files, tmp_path: Path, part: str, called: str
) -> None:
    directory = copied(files, tmp_path)
    command = {"command": f"touch {tmp_path}/ran"}
    arguments = command if called == "os.system" else {"init": {"class_path": "os.system", "init_args": command}}
    config = directory / "vocos" / "config.yaml"
    blocks = re.split(r"(?m)^(?=\w)", config.read_text())
    other = f"{part}: {json.dumps({'class_path': called, 'init_args': arguments})}\n"
    config.write_text("".join(other if block.startswith(f"{part}:") else block for block in blocks))
    with pytest.raises(ConfigError, match="another vocoder"):
        F5Model.load(F5Files.in_directories(directory), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_only_safetensors_are_read(files: F5Files, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"x")
    with pytest.raises(ConfigError, match="safetensors"):
        F5Model.load(F5Files(checkpoint, files.vocab, files.vocoder), device="cpu")
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"scripts\.download_models"):
            F5Files.in_directories(directory)


@pytest.mark.parametrize("config", ["F5TTS_v9", "../../../secret", "F5TTS_v1_Base/../x"])
def test_a_configuration_that_the_package_lacks_is_refused(files: F5Files, config: str) -> None:
    with pytest.raises(ConfigError, match="F5TTS_v1_Base"):
        F5Files(files.checkpoint, files.vocab, files.vocoder, config).check()


def test_flash_attention_needs_its_package_and_a_card(files: F5Files) -> None:
    with pytest.raises(ConfigError, match="flash"):
        F5Model.load(files, device="cpu", attention="flash_attn")


def test_a_card_that_is_not_there_is_refused(files: F5Files) -> None:
    with pytest.raises(ConfigError, match="no card"):
        F5Model.load(files, device="cuda:7")


def test_the_tiny_weights_are_the_same_for_the_same_seed(files: F5Files, tmp_path: Path) -> None:
    again, other = write_tiny_f5(tmp_path / "again"), write_tiny_f5(tmp_path / "other", seed=6)
    name = files.checkpoint.name
    assert (again / name).read_bytes() == files.checkpoint.read_bytes() != (other / name).read_bytes()


def test_the_tiny_weights_are_written_without_torch_and_torch_writes_the_same(files: F5Files, tmp_path: Path) -> None:
    """The local endpoint's demonstration writes them at each start."""
    code = "import sys; from pathlib import Path; from pipeline.engines.tiny_f5 import write_tiny_f5; "
    code += "write_tiny_f5(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tiny")], cwd=ROOT, check=True)
    path = tmp_path / "tiny" / "vocos" / "pytorch_model.bin"
    assert path.read_bytes() == (files.vocoder / path.name).read_bytes()
    ours = torch.load(path, weights_only=True)
    torch.save(ours, path)
    again = torch.load(path, weights_only=True)
    assert list(ours) == list(again)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert [one.stride() for one in ours.values()] == [one.contiguous().stride() for one in again.values()]


# --- the app's adapter


@pytest.fixture
async def tts(files: F5Files, tmp_path: Path) -> AsyncIterator[F5Tts]:
    voices = tmp_path / "voices"
    voices.mkdir()
    own = F5Voice(default_reference().audio, "Some words.", "Anna")
    (voices / "anna.voice").write_bytes(own.to_bytes())
    (voices / "broken.voice").write_bytes(b"FireRed or whatever")
    engine = F5Tts(
        models_dir=tmp_path,
        directory=files.checkpoint.parent,
        voices_dir=voices,
        device="cpu",
        threads=1,
        n_steps=2,
    )
    await engine.load()
    yield engine
    await engine.close()


async def said(tts: F5Tts, text: str, voice: Voice) -> Samples:
    async def pieces() -> AsyncIterator[SpeechPiece]:
        yield SpeechPiece(0, text, 0, len(text))

    async with aclosing(tts.synthesize(pieces(), voice=voice)) as chunks:
        return np.concatenate([chunk.audio.samples async for chunk in chunks])


async def test_the_adapter_clones_adds_and_forgets_voices(tts: F5Tts) -> None:
    assert isinstance(tts, CloningTts)
    assert [voice.id for voice in tts.info.voices] == ["nature", "anna"]
    audio = default_reference().audio
    data = await tts.clone(AudioChunk(audio.samples[: RATE * 3], RATE), "Some call me nature.", name="Mine")
    voice = Voice("mine", "Mine", "en", seed=4, cloned=True)
    with pytest.raises(InvalidInput):
        await said(tts, "Hello there.", voice)
    await tts.add_voice(voice, data)
    first, again = await said(tts, "Hello there.", voice), await said(tts, "Hello there.", voice)
    np.testing.assert_array_equal(first, again)
    assert first.size
    await tts.remove_voice("mine")
    await tts.remove_voice("mine")
    with pytest.raises(InvalidInput):
        await said(tts, "Hello there.", voice)


async def test_a_piece_longer_than_one_run_is_spoken_whole(tts: F5Tts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f5_text, "MAX_TOTAL_S", 10.0)
    samples = await said(tts, "This is one of many clauses, " * 4, Voice("nature", "", "en", seed=1))
    assert samples.size / RATE > 8


async def test_a_recording_without_words_and_voice_data_that_is_damaged_make_no_voice(tts: F5Tts) -> None:
    with pytest.raises(InvalidInput):
        await tts.clone(AudioChunk.silence(5, RATE), "Some words.", name="Mine")
    with pytest.raises(InvalidInput):
        await tts.add_voice(NATURE, b"FireRed or whatever")


MAGIC = b"voicepod-f5-voice 1\n"


def voice_file(**fields: str) -> bytes:
    head = json.dumps({"text": "Some words.", "name": "Mine"} | fields).encode()
    return MAGIC + head + b"\n" + file_bytes(brief().audio, "flac")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC + b"{}\nx",
        MAGIC + b"{",
        MAGIC + b"[" * 100_000,
        b"x" * 2_000_000,
        voice_file(text="... !"),
        voice_file(text="word " * 1000),
        voice_file(text="\ud800a"),
        voice_file(name="\ud800"),
    ],
    ids=["empty", "no fields", "cut", "deep", "large", "no words", "too many words", "text no UTF-8", "name no UTF-8"],
)
def test_voice_data_that_is_damaged_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        F5Voice.from_bytes(data)
    assert F5Voice.from_bytes(voice_file()).text == "Some words."


async def test_closing_within_a_piece_ends_it_at_the_next_step_and_what_follows_is_refused(tts: F5Tts) -> None:
    speaking = asyncio.create_task(said(tts, "A long text is spoken here. " * 20, NATURE))
    while not tts._lane.n_running:
        await asyncio.sleep(0.01)
    await tts.close()
    with pytest.raises((EngineNotReady, Cancelled)):
        await speaking
    with pytest.raises(EngineNotReady):
        await said(tts, "Hello.", NATURE)


async def test_without_models_the_adapter_says_what_to_download(tmp_path: Path) -> None:
    engine = F5Tts(models_dir=tmp_path, directory=None, voices_dir=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="f5-tts-v1-base"):
        await engine.load()
    await engine.close()
