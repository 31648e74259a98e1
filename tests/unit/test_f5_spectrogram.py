"""The mel spectrograms that F5-TTS was trained on; the figures are torchaudio's 2.11.0, whose result is bit-equal."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from pipeline.engines.f5_spectrogram import MelSpectrogram, torchaudio_modules  # noqa: E402


def test_a_tone_has_the_mels_that_torchaudio_gives_it() -> None:
    mels = MelSpectrogram(sample_rate=24_000, n_fft=1024, hop_length=256, n_mels=100, power=1, center=False)
    tone = torch.sin(torch.arange(24_000) * 2 * math.pi * 440 / 24_000)
    heard = mels(tone)
    assert heard.shape == (100, 90)
    expected = [0.420736, 0.215263, 0.125356, 0.069792, 0.047691, 0.033451]
    assert [float(x) for x in heard[20:26, 10]] == pytest.approx(expected, abs=2e-4)


def test_published_weights_find_their_buffers() -> None:
    mels = MelSpectrogram(sample_rate=24_000, n_fft=1024, hop_length=256, n_mels=100)
    shapes = {name: tuple(value.shape) for name, value in mels.state_dict().items()}
    assert shapes == {"spectrogram.window": (1024,), "mel_scale.fb": (513, 100)}


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(ValueError, match="without normalisation"):
        MelSpectrogram(power=2.0)


def test_the_stand_ins_have_the_names_that_are_imported() -> None:
    by_name = {module.__name__: module for module in torchaudio_modules()}
    assert by_name["torchaudio"].transforms.MelSpectrogram is MelSpectrogram
    assert by_name["torchaudio.functional.functional"]._hz_to_mel(700.0) == pytest.approx(2595 * math.log10(2))
