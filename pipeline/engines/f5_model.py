"""F5-TTS v1 by its own package: real classes, local files only, one stretch of text at a time.

A run is a pure function of its arguments: the same seed gives the same samples, bit for bit, on the same device with
the same number of threads. Upstream's `infer` is not called: it runs chunks in threads that share one generator, keeps
every reference for ever, prints the text and ignores the speed of short texts. Importing this module needs no torch.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml  # type: ignore[import-untyped]

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.f5_imports import import_f5, package_directory
from pipeline.engines.f5_text import SAMPLE_RATE, byte_rate, readable, reference_text, speech_seconds
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.engines.torch_device import import_torch, torch_device
from pipeline.errors import ConfigError, EngineFailed, InvalidInput, OutOfMemory, VoicepodError

AttentionBackend = Literal["torch", "flash_attn"]

HOP_SAMPLES: Final = 256
TARGET_RMS: Final = 0.1  # a quieter reference is raised to this, and the speech lowered again, as upstream does
SWAY: Final = -1.0  # upstream's: more of the steps lie at the start of the way from noise to speech
TAIL_S: Final = 0.05  # of silence after the reference, so that its last sound does not run into the new speech
MIN_REFERENCE_S: Final = 0.5
DEFAULT_CONFIG: Final = "F5TTS_v1_Base"
VOCODER_FILES: Final = ("config.yaml", "pytorch_model.bin")
# A vocoder's yaml names what is called to build it. Anything else than these, os.system say, would be called as well.
_VOCODER_PARTS: Final = {
    "feature_extractor": "vocos.feature_extractors.MelSpectrogramFeatures",
    "backbone": "vocos.models.VocosBackbone",
    "head": "vocos.heads.ISTFTHead",
}

_LOOK_S: Final = 0.1  # between two looks of who waits whether it was cancelled
_HOW_TO_GET_IT: Final = (
    "Run: python -m scripts.download_models --model f5-tts-v1-base --model vocos-mel-24khz (1.4 GB; CC-BY-NC weights)"
)


class Cancelled(VoicepodError):
    """The caller asked for an end; what was spoken so far is thrown away."""

    code = "cancelled"


@dataclass(frozen=True, slots=True)
class F5Files:
    """The files of a model. `config` is the name of one in the package (F5TTS_v1_Base), or a yaml file of one's own."""

    checkpoint: Path
    vocab: Path
    vocoder: Path
    config: str | Path = DEFAULT_CONFIG

    @classmethod
    def in_directories(cls, model: Path, vocoder: Path | None = None, *, config: str = DEFAULT_CONFIG) -> F5Files:
        """What is in a downloaded model's directory: one .safetensors file, and vocab.txt and a .yaml if it has them.

        Where it has none, the package's vocabulary and its `config` are taken, and without `vocoder` the vocoder is in
        the folder vocos. `ConfigError` says what is missing.
        """
        if not model.is_dir():
            raise ConfigError(f"F5-TTS: there is no directory {model}. {_HOW_TO_GET_IT}")
        checkpoints, configs = (sorted(model.glob(f"*.{suffix}")) for suffix in ("safetensors", "yaml"))
        if len(checkpoints) != 1 or len(configs) > 1:
            raise ConfigError(
                f"F5-TTS: {model} must hold one .safetensors file and at most one .yaml file, "
                f"not {len(checkpoints)} and {len(configs)}. {_HOW_TO_GET_IT}"
            )
        vocab = model / "vocab.txt"
        if not vocab.is_file():
            vocab = package_directory() / "infer" / "examples" / "vocab.txt"
        return cls(checkpoints[0], vocab, vocoder or model / "vocos", configs[0] if configs else config)

    def check(self) -> None:
        """`ConfigError` names the first file that is not there, or that would run code when read."""
        for path in (self.checkpoint, self.vocab, *(self.vocoder / name for name in VOCODER_FILES)):
            if not path.is_file():
                raise ConfigError(f"F5-TTS: there is no file {path}. {_HOW_TO_GET_IT}")
        configs = package_directory() / "configs"
        config = configs / f"{self.config}.yaml" if isinstance(self.config, str) else self.config
        if not config.is_file() or (isinstance(self.config, str) and config.parent != configs):
            known = ", ".join(sorted(path.stem for path in configs.glob("F5TTS_*.yaml")))
            raise ConfigError(f"F5-TTS: there is no configuration {self.config}; the package has {known}")
        if self.checkpoint.suffix != ".safetensors":
            raise ConfigError(f"F5-TTS: {self.checkpoint} is no .safetensors file; others may run code when read")
        self._check_vocoder()

    def _check_vocoder(self) -> None:
        path = self.vocoder / "config.yaml"
        try:
            parts = yaml.safe_load(path.read_bytes())
            named = {part: parts[part]["class_path"] for part in _VOCODER_PARTS}
        except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
            raise ConfigError(f"F5-TTS: {path} is damaged. {_HOW_TO_GET_IT}") from error
        if named != _VOCODER_PARTS:
            raise ConfigError(f"F5-TTS: {path} is of another vocoder than Vocos for mel spectrograms. {_HOW_TO_GET_IT}")


class F5Model:
    """A loaded model. `speak_chunk` may be called from any thread; calls run one after the other."""

    def __init__(self, upstream: Any, device: str) -> None:
        self.device = device
        self._transformer = upstream.ema_model.transformer
        self._flow, self._vocoder = upstream.ema_model, upstream.vocoder
        self._torch = import_torch("F5-TTS")
        self._one_at_a_time = threading.Lock()

    @classmethod
    def load(
        cls,
        files: F5Files,
        *,
        device: str = "auto",
        attention: AttentionBackend = "torch",
        threads: int | None = None,
    ) -> F5Model:
        """Read the weights; fp16 on cards of compute capability 7 and more, else fp32.

        `device` is auto, cpu, cuda or cuda:N. `threads` CPU threads for all of torch; None leaves it as it is.
        `ConfigError` says what is missing, damaged or does not fit into memory.
        """
        files.check()
        torch = import_torch("F5-TTS")
        upstream = import_f5()
        device = torch_device(device, torch, setting="device")
        if device == "cpu" and threads is not None:
            torch.set_num_threads(threads)
        if device != "cpu":  # as upstream's seed_everything: the same seed gives the same samples
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        try:
            loaded = upstream.F5TTS(
                model=_config_name(files.config),
                ckpt_file=str(files.checkpoint),
                vocab_file=str(files.vocab),
                vocoder_local_path=str(files.vocoder),
                device=device,
            )
        except VoicepodError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise ConfigError(
                    f"F5-TTS does not fit into the memory of {device}: free it, or take another"
                ) from None
            raise ConfigError(
                f"F5-TTS cannot load {files.checkpoint.name} with {files.vocoder.name}: the files are damaged or of "
                f"another model ({type(error).__name__}). {_HOW_TO_GET_IT}"
            ) from error
        if loaded.mel_spec_type != "vocos" or loaded.target_sample_rate != SAMPLE_RATE:
            raise ConfigError("F5-TTS: only models with the vocos vocoder at 24 kHz can be used")
        model = cls(loaded, device)
        model._attend_by(attention)
        return model

    def _attend_by(self, attention: AttentionBackend) -> None:
        if attention == "torch":
            return
        if not hasattr(importlib.import_module("f5_tts.model.modules"), "flash_attn_func"):
            raise ConfigError("attention flash_attn needs the package flash-attn, which is not installed; take torch")
        if next(self._flow.parameters()).dtype != self._torch.float16:
            raise ConfigError("attention flash_attn needs a card that computes in fp16; take torch")
        for block in self._transformer.transformer_blocks:
            block.attn.processor.attn_backend = attention

    def speak_chunk(
        self,
        reference: AudioChunk,
        reference_text: str,
        text: str,
        *,
        seed: int,
        speed: float,
        nfe_step: int,
        cfg_strength: float,
        cancelled: Callable[[], bool],
    ) -> Samples:
        """`text` in the voice of `reference`, mono float32 (n_samples,) at 24 kHz, not limited to [-1, 1].

        `cancelled` is asked before every step of the model: true, and `Cancelled` is raised; what it raises comes out.
        `OutOfMemory` leaves the model usable; `EngineFailed` when the result is not audio.
        """
        raised, rms = _raised(reference)
        with self._alone(cancelled), self._stops_when(cancelled):
            try:
                samples = self._speak(
                    raised, reference_text, text, seed=seed, speed=speed, nfe_step=nfe_step, cfg_strength=cfg_strength
                )
            except BaseException as error:
                self._transformer.clear_cache()  # or the next run would speak this text
                if isinstance(error, VoicepodError) or not isinstance(error, Exception):
                    raise
                if not is_out_of_memory(error):
                    raise EngineFailed("the voice failed", stage="tts") from error
                error.__traceback__ = None  # its frames hold the tensors
                if self.device != "cpu":
                    self._torch.cuda.empty_cache()
                raise OutOfMemory("the voice ran out of memory", stage="tts") from None
        if not samples.size or not np.isfinite(samples).all():
            raise EngineFailed("the voice gave something that is not audio", stage="tts")
        return samples * np.float32(min(rms / TARGET_RMS, 1.0))

    def _speak(
        self,
        raised: Samples,
        said: str,
        text: str,
        *,
        seed: int,
        speed: float,
        nfe_step: int,
        cfg_strength: float,
    ) -> Samples:
        from f5_tts.model.utils import convert_char_to_pinyin

        torch = self._torch
        seconds = speech_seconds(readable(text), byte_rate(raised.size / SAMPLE_RATE, said), speed)
        # The last frame of the centred spectrogram still hears the reference, so it belongs to it.
        n_reference = raised.size // HOP_SAMPLES + 1
        n_new = max(round(seconds * SAMPLE_RATE / HOP_SAMPLES), 1)
        cards = [] if self.device == "cpu" else [self.device]
        # The generator is the process's own, and other engines draw from it as well: they go on where they were.
        with torch.inference_mode(), torch.random.fork_rng(cards):
            mel, _ = self._flow.sample(
                cond=torch.from_numpy(raised).unsqueeze(0).to(self.device),
                text=convert_char_to_pinyin([reference_text(said) + readable(text)]),
                duration=n_reference + n_new,
                steps=nfe_step,
                cfg_strength=cfg_strength,
                sway_sampling_coef=SWAY,
                seed=seed,
            )
            # More tokens than frames make it longer than it was told to be.
            new = mel.to(torch.float32)[:, n_reference : n_reference + n_new, :].permute(0, 2, 1)
            samples: Samples = self._vocoder.decode(new).reshape(-1).cpu().numpy().astype(np.float32)
        return samples

    @contextmanager
    def _alone(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        while not self._one_at_a_time.acquire(timeout=_LOOK_S):
            if cancelled():
                raise Cancelled("the speech was cancelled")
        try:
            yield
        finally:
            self._one_at_a_time.release()

    @contextmanager
    def _stops_when(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        def look(*_: object) -> None:
            if cancelled():
                raise Cancelled("the speech was cancelled")

        hook = self._transformer.register_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()


def _raised(reference: AudioChunk) -> tuple[Samples, float]:
    """The reference at 24 kHz, as loud as the model wants it, with its silent tail; and how loud it was."""
    samples = reference.resampled(SAMPLE_RATE).samples
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
    if samples.size < MIN_REFERENCE_S * SAMPLE_RATE or not np.isfinite(rms) or rms < 1e-4:
        raise InvalidInput("the reference recording is too short or silent", code="voice_not_usable", param="voice")
    tail = np.zeros(round(TAIL_S * SAMPLE_RATE), np.float32)
    if not samples[-tail.size :].any():
        tail = tail[:0]
    louder = np.float32(max(TARGET_RMS / rms, 1.0))
    return np.concatenate((samples * louder, tail)).astype(np.float32), rms


def _config_name(config: str | Path) -> str:
    """As upstream wants it: without the suffix, from the package's `configs`.

    That one is not resolved: OmegaConf takes each `..` off the path as it is written, through links as well.
    """
    if isinstance(config, str):
        return config
    return os.path.relpath(config.resolve().with_suffix(""), os.path.abspath(package_directory() / "configs"))
