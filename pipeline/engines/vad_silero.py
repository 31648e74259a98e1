"""Silero VAD 6 (ONNX) at 16 kHz: 32 ms frames, one probability each, about 0.2 ms of CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnxruntime

from pipeline.audio import Samples
from pipeline.engines.base import EngineInfo, VadStream
from pipeline.errors import ConfigError, EngineFailed, EngineNotReady
from pipeline.models import locate
from settings import Settings

MODEL_ID = "silero-vad"
SAMPLE_RATE = 16_000
FRAME_SAMPLES = 512
CONTEXT_SAMPLES = 64  # end of the frame before, which the network at 16 kHz wants in front of each frame
STATE_SHAPE = (2, 1, 128)  # of its recurrent layers


class SileroVad:
    """The weights, shared by all talks; a talk has its own `SileroStream`. Runs on the event loop, without a lane."""

    def __init__(self, *, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._session: onnxruntime.InferenceSession | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> SileroVad:
        """Unloaded; reads `models.dir`."""
        return cls(models_dir=settings.models.dir)

    @property
    def info(self) -> EngineInfo:
        """A VAD takes any number of talks: its capacity of 1 is a frame at a time."""
        return EngineInfo(kind="vad", name="silero", model=MODEL_ID, sample_rate=SAMPLE_RATE)

    @property
    def frame_samples(self) -> int:
        """512 samples, 32 ms."""
        return FRAME_SAMPLES

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the engine: none, a frame is a plain call."""
        return 0

    async def load(self) -> None:
        """Read the 2 MB file, in a thread."""
        if self._session is None:
            self._session = await asyncio.to_thread(self._read)

    async def close(self) -> None:
        """Refuse new talks; a running one keeps the weights until it ends."""
        self._session = None

    def stream(self) -> VadStream:
        """Fresh state for one talk."""
        if self._session is None:
            raise EngineNotReady("voice detection is still loading, or was closed", stage="vad")
        return SileroStream(self._session)

    def _read(self) -> onnxruntime.InferenceSession:
        directory = locate(self._models_dir, MODEL_ID)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the frame is too small to share
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(directory / "silero_vad.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ConfigError(f"the model {MODEL_ID} in {directory} cannot be loaded: {error}") from error
        SileroStream(session).probability(np.zeros(FRAME_SAMPLES, np.float32))
        return session


class SileroStream:
    """What the network remembers of one talk."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._rate = np.array(SAMPLE_RATE, np.int64)
        self._state = np.zeros(STATE_SHAPE, np.float32)
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)

    def probability(self, frame: Samples) -> float:
        """Speech probability in [0, 1] of one frame, float32 (512,). Non-finite samples are `EngineFailed`."""
        heard = np.concatenate((self._context, frame))
        if heard.shape != (CONTEXT_SAMPLES + FRAME_SAMPLES,) or not np.isfinite(heard).all():
            raise EngineFailed("the audio frame has the wrong size or is not finite", stage="vad")
        try:
            output, state = self._session.run(
                None, {"input": heard[np.newaxis], "state": self._state, "sr": self._rate}
            )
        except Exception as error:
            raise EngineFailed("voice detection failed", stage="vad") from error
        self._state, self._context = state, heard[-CONTEXT_SAMPLES:]
        return float(output[0, 0])
