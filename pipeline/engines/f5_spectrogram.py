"""What F5-TTS and Vocos use of torchaudio: mel spectrograms, in plain torch. Importing this module imports torch.

torchaudio itself stays out of the environment. Its newest wheel is compiled for one build of another torch, and where
it is installed transformers imports it, which then fails for every engine. The modules here have its names and its
buffers, so that published weights, which hold the buffers, load. The mel scale is HTK's without normalisation.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def hz_to_mel(hz: float, mel_scale: str = "htk") -> float:
    """HTK's mel of a frequency in hertz; Vocos imports the name and never asks for another scale."""
    return 2595.0 * math.log10(1.0 + hz / 700.0)


def mel_to_hz(mels: Tensor, mel_scale: str = "htk") -> Tensor:
    """The other way round."""
    back: Tensor = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return back


def mel_filters(n_freqs: int, n_mels: int, sample_rate: int) -> Tensor:
    """Triangles between 0 Hz and half the rate: float32 (n_freqs, n_mels)."""
    frequencies = torch.linspace(0, sample_rate // 2, n_freqs)
    corners = mel_to_hz(torch.linspace(0.0, hz_to_mel(float(sample_rate // 2)), n_mels + 2))
    widths = corners[1:] - corners[:-1]
    distances = corners[None, :] - frequencies[:, None]  # (n_freqs, n_mels + 2)
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0)


class _Spectrogram(nn.Module):
    window: Tensor

    def __init__(self, n_fft: int, win_length: int, hop_length: int, center: bool) -> None:
        super().__init__()
        self._n_fft, self._hop_length, self._center = n_fft, hop_length, center
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, waveform: Tensor) -> Tensor:
        *batch, n_samples = waveform.shape
        spectrum = torch.stft(
            waveform.reshape(-1, n_samples),
            self._n_fft,
            self._hop_length,
            self.window.numel(),
            self.window,
            center=self._center,
            pad_mode="reflect",
            return_complex=True,
        ).abs()
        return spectrum.reshape(*batch, *spectrum.shape[-2:])


class _MelScale(nn.Module):
    fb: Tensor

    def __init__(self, n_freqs: int, n_mels: int, sample_rate: int) -> None:
        super().__init__()
        self.register_buffer("fb", mel_filters(n_freqs, n_mels, sample_rate))

    def forward(self, spectrum: Tensor) -> Tensor:
        return torch.matmul(spectrum.transpose(-1, -2), self.fb).transpose(-1, -2)


class MelSpectrogram(nn.Module):
    """Magnitudes on the mel scale: waveform (..., n_samples) to (..., n_mels, n_frames)."""

    def __init__(
        self,
        sample_rate: int = 16_000,
        n_fft: int = 400,
        win_length: int | None = None,
        hop_length: int | None = None,
        n_mels: int = 128,
        power: float = 1.0,
        center: bool = True,
        normalized: bool = False,
        norm: str | None = None,
    ) -> None:
        if power != 1.0 or normalized or norm is not None:
            raise ValueError("only magnitudes without normalisation are made here")
        super().__init__()
        length = win_length or n_fft
        self.spectrogram = _Spectrogram(n_fft, length, hop_length or length // 2, center)
        self.mel_scale = _MelScale(n_fft // 2 + 1, n_mels, sample_rate)

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class."""
        mels: Tensor = self.mel_scale(self.spectrogram(waveform))
        return mels


def torchaudio_modules() -> list[ModuleType]:
    """Stand-ins for torchaudio and the parts of it that F5-TTS and Vocos name."""

    def module(name: str, **contents: Any) -> ModuleType:
        made = ModuleType(name, f"Stands in for {name}.")
        made.__dict__.update(contents)
        return made

    scales = module("torchaudio.functional.functional", _hz_to_mel=hz_to_mel, _mel_to_hz=mel_to_hz)
    functional = module("torchaudio.functional", functional=scales, __path__=[])
    transforms = module("torchaudio.transforms", MelSpectrogram=MelSpectrogram)
    return [
        module("torchaudio", functional=functional, transforms=transforms, __path__=[]),
        functional,
        scales,
        transforms,
    ]
