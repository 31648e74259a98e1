from __future__ import annotations

import pytest
import torch
from torch import Tensor

from firered.istft import InverseStft, overlap_add

HOP, N_FFT, TRIM = 240, 960, 360
N_NEW = 8


@pytest.fixture(scope="module")
def istft() -> InverseStft:
    return InverseStft(torch.hann_window(N_FFT), N_NEW)


def random_head(n_frames: int, seed: int = 0) -> Tensor:
    return torch.randn(n_frames, N_FFT + 2, generator=torch.Generator().manual_seed(seed))


def spectrum(head: Tensor) -> Tensor:
    magnitude, phase = head.double().exp().clamp(max=100)[:, :481], head.double()[:, 481:]
    return torch.complex(magnitude * phase.cos(), magnitude * phase.sin())


def test_a_frame_is_the_windowed_inverse_transform_of_magnitude_and_phase(istft: InverseStft) -> None:
    head = random_head(5)
    expected = torch.fft.irfft(spectrum(head), N_FFT) * torch.hann_window(N_FFT, dtype=torch.float64)
    assert (istft.frames(head) - expected).abs().max() < 1e-6


def test_imaginary_parts_of_the_outer_bins_have_no_effect(istft: InverseStft) -> None:
    head = random_head(1)
    head[:, [481, 961]] = 0.0
    turned = head.clone()
    turned[:, [481, 961]] = torch.pi / 2  # only the real part, cos(pi / 2) = 0, may be heard
    silent = head.clone()
    silent[:, [0, 480]] = -torch.inf  # magnitude 0
    assert (istft.frames(turned) - istft.frames(silent)).abs().max() < 1e-7


def test_magnitudes_stop_at_100(istft: InverseStft) -> None:
    loud, limit = random_head(1), random_head(1)
    loud[:, :481], limit[:, :481] = 80.0, torch.tensor(100.0).log()
    assert (istft.frames(loud) - istft.frames(limit)).abs().max() < 1e-3 * 100


def test_an_utterance_equals_torchs_inverse_transform(istft: InverseStft) -> None:
    # torch.istft assumes frames centred on multiples of the hop; ours are half a hop later, so it cuts 480 where we cut
    # 360, and it misses 120 samples at each end.
    head = random_head(12)
    whole = istft.whole(istft.frames(head))
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    reference = torch.istft(spectrum(head).T[None], N_FFT, HOP, window=window, center=True)[0]
    assert whole.shape == (12 * HOP,)
    assert (whole[120 : 120 + len(reference)] - reference).abs().max() < 1e-5


def test_overlap_add_equals_adding_frame_by_frame() -> None:
    frames = torch.randn(2, 7, N_FFT, generator=torch.Generator().manual_seed(2))
    added = torch.zeros(2, (7 + 3) * HOP)
    for index in range(7):
        added[:, index * HOP : index * HOP + N_FFT] += frames[:, index]
    assert (overlap_add(frames) - added[:, 3 * HOP : 7 * HOP]).abs().max() < 1e-6


def test_steps_and_the_tail_of_the_last_make_the_utterance(istft: InverseStft) -> None:
    frames = istft.frames(random_head(4 * N_NEW))
    past, parts = torch.zeros(1, 3, N_FFT), []
    for step, new in enumerate(torch.split(frames, N_NEW)):
        samples, past = istft.step(past, new[None], torch.tensor([[step == 0]]))
        parts.append(samples[0, : N_NEW * HOP])
    streamed = torch.cat([*parts, samples[0, N_NEW * HOP :]])
    assert (streamed[:TRIM] == 0).all()
    assert (streamed[TRIM:] - istft.whole(frames)).abs().max() < 1e-6
