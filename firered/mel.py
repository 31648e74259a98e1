"""Log-mel spectrogram: Whisper's front end on chunks of any length, without its padding to 30 s."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from firered.config import MelConfig

# Slaney's mel scale (Auditory Toolbox): linear below 1000 Hz with 3 mel per 200 Hz, so 15 mel at the break; above it, a
# factor 6.4 takes 27 mel.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0

# Whisper's compression (openai/whisper, audio.py): floor of the power, dynamic range of 8 decades below the loudest bin
# of the chunk, then a shift and scale to about -1..1.
_POWER_FLOOR = 1e-10
_DECADES = 8.0
_SHIFT_AND_SCALE = 4.0


class LogMel:
    """Log-mel frames of equally long chunks, on one device, in float32."""

    def __init__(self, config: MelConfig, device: torch.device) -> None:
        self._config = config
        self._window = torch.hann_window(config.n_fft, device=device)  # periodic
        self._filters = torch.from_numpy(mel_filters(config)).to(device)  # (bins, mels)

    def __call__(self, chunks: Tensor) -> Tensor:
        """`chunks` (items, samples) float32 -> (items, samples // hop, mels) float32; silence is -1.5 everywhere."""
        spectrum = torch.stft(
            chunks,
            self._config.n_fft,
            self._config.hop_length,
            window=self._window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )  # (items, bins, frames + 1)
        power = spectrum[..., :-1].abs().square()  # (items, bins, frames): the last one is centred behind the end
        mel = power.transpose(1, 2) @ self._filters  # (items, frames, mels)
        log_mel = mel.clamp_min(_POWER_FLOOR).log10()
        loudest = log_mel.amax((1, 2), keepdim=True)  # (items, 1, 1)
        return (log_mel.maximum(loudest - _DECADES) + _SHIFT_AND_SCALE) / _SHIFT_AND_SCALE


def mel_filters(config: MelConfig) -> NDArray[np.float32]:
    """Triangles between neighbouring edges equally spaced in mel, each of area 1 in Hz: (bins, mels) float32."""
    bins = np.linspace(0.0, config.sample_rate / 2, config.n_fft // 2 + 1)  # (bins,) Hz
    edges = mel_to_hz(
        np.linspace(hz_to_mel(config.f_min), hz_to_mel(config.f_max), config.n_mels + 2)
    )  # (mels + 2,) Hz
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)  # (bins, mels)
    falling = (upper - bins[:, None]) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (upper - lower)).astype(np.float32)


def hz_to_mel(frequency: float) -> float:
    """Slaney mel of a frequency in Hz."""
    if frequency < _BREAK_HZ:
        return frequency / _HZ_PER_MEL
    return float(_BREAK_MEL + np.log(frequency / _BREAK_HZ) / _LOG_STEP)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequencies in Hz of Slaney mels."""
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, above)
