"""The FireRedTTS-2 adapter on tiny random weights: settings, voices, and limits that keep it short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from firered import GuardLimits, VoicePrompt
from pipeline.engines.tts_firered import FireRedTts
from settings import Settings

CODEBOOK_SIZE = 64  # of the tiny checkpoint

# Random weights never end a piece themselves. Here every frame counts as silence, so that six of them end it.
BRIEF_FRAMES = 6
BRIEF = GuardLimits(silent_frames=BRIEF_FRAMES, silence_rms=10.0)


class BriefFireRed(FireRedTts):
    """Ends its pieces in an engine process too, which imports this module."""

    @classmethod
    def from_settings(cls, settings: Settings, *, limits: Any = BRIEF) -> FireRedTts:
        return FireRedTts.from_settings(settings, limits=limits)


def firered_settings(model: Path, voices: Path, **sections: dict[str, Any]) -> Settings:
    """Settings of a server that speaks with the model in `model` on one core of the CPU."""
    own: dict[str, dict[str, Any]] = {
        "models": {"tts_model_path": model},
        "voices": {"dir": voices},
        "system": {"gpu_device": "cpu"},
        "tts": {"engine": "firered", "threads": 1},
    }
    return Settings.model_validate({name: own.get(name, {}) | sections.get(name, {}) for name in own | sections})


def voice_prompt(name: str, *, seed: int = 1, codebook_size: int = CODEBOOK_SIZE) -> VoicePrompt:
    codes = np.random.default_rng(seed).integers(0, codebook_size, (10, 16)).astype(np.int16)
    codes[0, 0] = codebook_size - 1
    return VoicePrompt(codes, "these are the words of the recording", name)


def write_voice(path: Path, name: str, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(voice_prompt(name, **options).to_bytes())
