from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from firered.config import MelConfig
from firered.mel import LogMel, hz_to_mel, mel_filters, mel_to_hz
from tests.support.firered_codec import golden
from tests.support.firered_tiny import speech_like

CPU = torch.device("cpu")


def test_the_filters_are_upstreams() -> None:
    assert np.abs(mel_filters(MelConfig()) - golden()["mel/filters"]).max() < 1e-9


def test_each_filter_that_spans_several_bins_has_about_unit_area() -> None:
    areas = mel_filters(MelConfig()).sum(0) * 40.0  # bins are 40 Hz apart
    assert np.abs(areas[80:] - 1).max() < 0.1


def test_the_mel_scale_is_linear_below_1000_hz_and_inverts() -> None:
    assert np.allclose([hz_to_mel(500.0), hz_to_mel(1000.0), hz_to_mel(6400.0)], [7.5, 15.0, 42.0], rtol=1e-12)
    frequencies = [0.0, 440.0, 999.0, 1000.0, 1001.0, 8000.0]
    back = mel_to_hz(np.array([hz_to_mel(frequency) for frequency in frequencies]))
    assert np.allclose(back, frequencies, rtol=1e-12)


def test_frames_equal_upstreams_at_the_start_the_end_and_the_seam_to_padding() -> None:
    audio = F.pad(torch.from_numpy(speech_like(112_000, "d")), (0, 80_000)).view(2, 96_000)
    mel = LogMel(MelConfig(), CPU)(audio).numpy()
    assert mel.shape == (2, 600, 128)
    pieces = {"first_chunk_start": mel[0, :6], "first_chunk_end": mel[0, -6:], "second_chunk_seam": mel[1, 96:104]}
    for name, piece in pieces.items():
        assert np.abs(piece - golden()[f"mel/{name}"]).max() < 1e-5, name


def test_silence_is_minus_one_and_a_half_everywhere() -> None:
    assert (LogMel(MelConfig(), CPU)(torch.zeros(1, 8000)) == -1.5).all()


def test_a_chunk_is_scaled_by_its_own_loudest_bin() -> None:
    quiet, loud = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-3], [1.0]])
    mel = LogMel(MelConfig(), CPU)
    together = mel(torch.stack([quiet, loud]))
    assert torch.allclose(together[:1], mel(quiet[None]), atol=1e-6)
    assert torch.allclose(together[1:], mel(loud[None]), atol=1e-6)
