"""WebRTC's VAD: no model file and microseconds a frame, for machines where 0.2 ms is too much. Noise fools it more."""

from __future__ import annotations

from collections import deque

import webrtcvad

from pipeline.audio import AudioChunk, Samples
from pipeline.engines.base import EngineInfo, VadStream
from pipeline.errors import EngineFailed, EngineNotReady
from settings import Settings

SAMPLE_RATE = 16_000
FRAME_SAMPLES = 320  # 20 ms; the library takes 10, 20 or 30
MODE = 3  # 0 takes most for speech, 3 least

# The library says yes or no. The share of yes among the last 160 ms stands for a probability: a click of one or two
# frames stays below a threshold of 0.5, speech passes it after 80 ms.
WINDOW_FRAMES = 8

# Yes and no come from the spectrum's shape; hiss far below any voice can have the shape. -50 dB of full scale is
# quieter than a whisper into a laptop.
FLOOR_DB = -50.0


class WebrtcVad:
    """Makes streams; holds nothing."""

    def __init__(self, *, mode: int = MODE) -> None:
        self._mode = mode
        self._ready = False

    @classmethod
    def from_settings(cls, settings: Settings) -> WebrtcVad:
        """Unloaded; no setting of the tree concerns it."""
        return cls()

    @property
    def info(self) -> EngineInfo:
        """Takes 16 kHz."""
        return EngineInfo(kind="vad", name="webrtc", model=f"webrtcvad mode {self._mode}", sample_rate=SAMPLE_RATE)

    @property
    def frame_samples(self) -> int:
        """320 samples, 20 ms."""
        return FRAME_SAMPLES

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for the engine: none, a frame is a plain call."""
        return 0

    async def load(self) -> None:
        """Nothing to read."""
        self._ready = True

    async def close(self) -> None:
        """Refuse new talks."""
        self._ready = False

    def stream(self) -> VadStream:
        """Fresh state for one talk."""
        if not self._ready:
            raise EngineNotReady("voice detection is still loading, or was closed", stage="vad")
        return WebrtcStream(self._mode)


class WebrtcStream:
    """The library's noise estimate of one talk, and the last answers."""

    def __init__(self, mode: int) -> None:
        self._vad = webrtcvad.Vad(mode)
        self._answers: deque[bool] = deque([False] * WINDOW_FRAMES, maxlen=WINDOW_FRAMES)

    def probability(self, frame: Samples) -> float:
        """Share of speech among the last 8 frames, in [0, 1]; `frame` is float32 (320,)."""
        if frame.shape != (FRAME_SAMPLES,):
            raise EngineFailed("the audio frame has the wrong size", stage="vad")
        audible = float((frame * frame).mean()) > 10 ** (FLOOR_DB / 10)
        try:
            speech = self._vad.is_speech(AudioChunk(frame, SAMPLE_RATE).to_pcm16(), SAMPLE_RATE)
        except Exception as error:
            raise EngineFailed("voice detection failed", stage="vad") from error
        self._answers.append(audible and speech)
        return sum(self._answers) / WINDOW_FRAMES
