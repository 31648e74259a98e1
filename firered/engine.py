"""The engine: loads a model directory, owns the device's thread, opens streams of speech and encodes voices."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from firered.checkpoint import TOKENIZER_NAME, Variant, Weights, open_codec, open_llm
from firered.codec_decoder import CodecDecoder
from firered.codec_encoder import CodecEncoder
from firered.config import (
    CODEC_CONFIG_NAME,
    LLM_CONFIG_NAME,
    CodecConfig,
    LlmConfig,
    read_codec_config,
    read_llm_config,
    require_same_codes,
)
from firered.errors import EngineClosedError, FireRedError, GenerationError
from firered.guards import GuardLimits
from firered.language_model import LanguageModel
from firered.prompt import MAX_ROWS, Rows, check_speaker, check_voices, voice_segment
from firered.prompt_audio import prepare_prompt_audio
from firered.scheduler import Scheduler, SchedulerStats
from firered.segments import Segmenter
from firered.step_runner import StepRunner
from firered.stream import SpeechAudio, SpeechStream, StreamEvent, StreamOptions
from firered.text import MAX_SEGMENT_FRAMES, prepare_transcript
from firered.tokenizer import FireRedTokenizer
from firered.voice import VoicePrompt

logger = logging.getLogger(__name__)

# A segment's frames, the end-of-speech frame, and the one that may be under way when it is seen.
_MAX_TOKENS = MAX_SEGMENT_FRAMES + 4
# How long the end of the program waits for a frame under way, or a prompt: seconds on a busy CPU.
_EXIT_WAIT_S = 10.0

_running: weakref.WeakSet[FireRedEngine] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stops engines that nobody closed: a thread inside torch while the interpreter goes down aborts the process."""
    for engine in list(_running):
        engine._stop(_EXIT_WAIT_S)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine uses its device.

    `max_streams` slots are allocated at the start: about 0.2 GB each on a card (89 MB of keys and values for 3100 rows,
    and the codec's for 30 s). `graphs` None: on an NVIDIA card. `int8_depth` keeps the depth decoder's feed-forward
    weights in 8 bits. The codec computes in float32; `codec_kv_dtype` is what its keys and values are kept in (None:
    float16 on a card). `encoder_device` is where voices are encoded ("cpu" spares 2.6 GB of the card).
    """

    max_streams: int = 16
    capacity: int = MAX_ROWS
    graphs: bool | None = None
    int8_depth: bool = False
    codec_kv_dtype: torch.dtype | None = None
    encoder_device: str = "cpu"
    limits: GuardLimits = field(default_factory=GuardLimits)


class FireRedEngine:
    """FireRedTTS-2 for many streams at once. Any thread may call its methods; `close` it, or use it in a `with`."""

    sample_rate = 24000

    def __init__(
        self,
        llm_config: LlmConfig,
        codec_config: CodecConfig,
        llm_weights: Weights,
        codec_weights: Weights,
        tokenizer: FireRedTokenizer,
        options: EngineOptions,
        encoder_weights: Callable[[], Weights],
    ) -> None:
        self.llm_config, self.codec_config, self.options = llm_config, codec_config, options
        self._tokenizer, self._segmenter = tokenizer, Segmenter(tokenizer)
        self._encoder_weights, self._encoder_lock = encoder_weights, threading.Lock()
        self._encoder: CodecEncoder | None = None
        with _current(llm_weights.device), torch.inference_mode():
            self._scheduler = self._build(llm_weights, codec_weights)
        self._changed = threading.Condition()
        self._added: list[SpeechStream] = []
        self._awake = self._closing = False
        self._error: FireRedError | None = None
        self._thread = threading.Thread(target=self._run, name="firered", daemon=True)
        self._thread.start()
        _running.add(self)

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        *,
        variant: Variant = "dialogue",
        options: EngineOptions | None = None,
    ) -> FireRedEngine:
        """Reads an official model directory, or one made by `scripts.convert_firered`. `dtype` is the language model's.

        Raises CheckpointError, which names the file and the key, for anything that is not as it should be.
        """
        directory, options = Path(directory), options or EngineOptions()
        llm_config = read_llm_config(directory / LLM_CONFIG_NAME)
        codec_config = read_codec_config(directory / CODEC_CONFIG_NAME)
        require_same_codes(llm_config, codec_config, directory)
        tokenizer = FireRedTokenizer.from_directory(directory / TOKENIZER_NAME, llm_config.text_vocab_size)
        target = torch.device(device)

        def codec_weights(on: torch.device) -> Weights:
            return open_codec(directory, codec_config, on, torch.float32)

        return cls(
            llm_config,
            codec_config,
            open_llm(directory, llm_config, target, dtype, variant=variant),
            codec_weights(target),
            tokenizer,
            options,
            encoder_weights=lambda: codec_weights(torch.device(options.encoder_device)),
        )

    def _build(self, llm_weights: Weights, codec_weights: Weights) -> Scheduler:
        """Models, slots, and for a card the graphs."""
        options = self.options
        model = LanguageModel(self.llm_config, llm_weights, capacity=options.capacity, int8_depth=options.int8_depth)
        self._device = model.device
        decoder = CodecDecoder(self.codec_config, codec_weights)
        on_card = model.device.type == "cuda"
        kv_dtype = options.codec_kv_dtype or (torch.float16 if on_card else torch.float32)
        state = model.new_state(options.max_streams)
        codec_state = decoder.new_state(options.max_streams, _MAX_TOKENS, kv_dtype)
        runner = StepRunner(
            model,
            decoder,
            state,
            codec_state,
            max_tokens=_MAX_TOKENS,
            graphs=on_card if options.graphs is None else options.graphs,
        )
        n_graphs = runner.capture_all()
        logger.info("ready: %d slots of %d rows, %d graphs", options.max_streams, options.capacity, n_graphs)
        return Scheduler(model, state, codec_state, runner, voice_rows=self._voice_rows, limits=options.limits)

    @property
    def stats(self) -> SchedulerStats:
        """Counters since the start."""
        return self._scheduler.stats

    @property
    def n_streams(self) -> int:
        """Streams that speak or wait."""
        return self._scheduler.n_streams + len(self._added)

    def open(
        self, options: StreamOptions | None = None, sink: Callable[[StreamEvent], None] | None = None
    ) -> SpeechStream:
        """A new stream. With more streams than slots the newest wait. `sink` is called on the engine's thread.

        Raises InputError for voices that do not fit, EngineClosedError after `close`, GenerationError once the device
        has failed.
        """
        options = options or StreamOptions()
        stream = SpeechStream(options, self._segmenter, self._wake, sink)
        for voice in options.voices.values():
            voice.check_codebook_size(self.llm_config.codebook_size)
        check_voices(self._voice_rows(stream))
        with self._changed:
            if self._closing:
                raise EngineClosedError("the engine is closed")
            if self._error is not None:
                raise self._error
            self._added.append(stream)
        return stream

    def generate(self, text: str, options: StreamOptions | None = None) -> NDArray[np.float32]:
        """The whole speech for a text: (n,) float32 at 24 kHz, empty if the model chose to say nothing."""
        stream = self.open(options or StreamOptions(max_lead_s=None))
        try:
            stream.add_text(text)
            stream.end()
            chunks = [event.samples for event in stream if isinstance(event, SpeechAudio)]
        finally:
            stream.cancel()  # a text that was refused, a reader who was interrupted
        return np.concatenate([np.zeros(0, np.float32), *chunks])

    def encode_voice(
        self, samples: NDArray[np.float32], sample_rate: int, transcript: str, name: str = ""
    ) -> VoicePrompt:
        """A voice from a recording, (n,) or (n, channels), and the words spoken in it. Takes seconds on a CPU.

        Raises InputError for a recording that cannot serve, and says why.
        """
        prepared = prepare_prompt_audio(samples, sample_rate)
        for warning in prepared.warnings:
            logger.warning("voice recording: %s", warning)
        with self._encoder_lock, torch.inference_mode():
            if self._encoder is None:
                self._encoder = CodecEncoder(self.codec_config, self._encoder_weights())
            codes = self._encoder.encode(prepared.samples)
        words = prepare_transcript(transcript, prepared.kept_share)
        return VoicePrompt(codes.cpu().numpy().astype(np.int16), words, name)

    def close(self) -> None:
        """Ends all streams with EngineClosedError and the thread. May be called twice."""
        self._stop(None)

    def _stop(self, wait_s: float | None) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(wait_s)

    def __enter__(self) -> FireRedEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _voice_rows(self, stream: SpeechStream) -> list[Rows]:
        voices = sorted(stream.options.voices.items())
        return [voice_segment(self._tokenizer, voice, check_speaker(speaker)) for speaker, voice in voices]

    def _wake(self) -> None:
        with self._changed:
            self._awake = True
            self._changed.notify()

    # --- the engine's thread

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            with _current(self._device):
                while self._take_added():
                    self._sleep(self._scheduler.tick(time.monotonic()))
        except Exception as error:  # the device is in an unknown state: end the streams, refuse new ones
            logger.exception("the engine failed")
            with self._changed:
                self._error = GenerationError(f"the engine failed: {error}")
            self._take_added()
            self._scheduler.fail_all(self._error)

    def _take_added(self) -> bool:
        """Hands new streams to the scheduler; False when the engine is to close, all streams ended."""
        with self._changed:
            added, self._added = self._added, []
            closing = self._closing
        for stream in added:
            self._scheduler.add(stream)
        if closing:
            self._scheduler.fail_all(EngineClosedError("the engine was closed"))
        return not closing

    def _sleep(self, seconds: float | None) -> None:
        """Waits until there is work: at most `seconds`, None for as long as nothing changes."""
        with self._changed:
            if seconds != 0.0 and not self._awake and not self._closing:
                self._changed.wait(seconds)
            self._awake = False


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a card the thread's own: streams, events and graphs are made on the current one, whatever the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
