"""Parity with upstream on the same weights, and what continuous batching promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from firered.checkpoint import open_llm
from firered.config import LlmConfig, read_llm_config
from firered.language_model import LanguageModel, SlotState
from firered.prompt import Rows, audio_rows, text_rows
from tests.support.firered_tiny import FIXTURES, write_checkpoint

CAPACITY = 256
GREEDY_CASES = [
    "dialogue",
    "dialogue_prompted",
    "dialogue_history",
    "monologue",
    "monologue_prompted",
    "monologue_prompted_without_punctuation",
]


class RecordingModel(LanguageModel):
    """Keeps the logits of every draw."""

    logits: list[Tensor]

    def _draw(self, codebook: int, logits: Tensor, kth: Tensor, temperature: Any, noise: Tensor) -> Tensor:
        if codebook == 0:
            self.logits = []
        self.logits.append(logits.clone())
        return super()._draw(codebook, logits, kth, temperature, noise)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def load(directory: Path, variant: Any = "dialogue", **options: Any) -> RecordingModel:
    config = read_llm_config(directory / "config_llm.json")
    weights = open_llm(directory, config, "cpu", torch.float32, variant=variant)
    return RecordingModel(config, weights, capacity=CAPACITY, **options)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> RecordingModel:
    return load(checkpoint)


@pytest.fixture(scope="module")
def monologue_model(checkpoint: Path) -> RecordingModel:
    return load(checkpoint, "monologue")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray[Any, Any]]:
    return dict(np.load(FIXTURES / "llm.npz"))


def rows_of(golden: dict[str, np.ndarray[Any, Any]], case: str) -> Rows:
    return Rows(golden[f"{case}/ids"], golden[f"{case}/mask"])


def begin(state: SlotState, slot: int, *, seed: int = 0, greedy: bool = True) -> None:
    state.begin(slot, seed=seed, temperature=0.9, top_k=20, greedy=greedy)


def draw(model: LanguageModel, state: SlotState, slots: list[int], n_batch: int, noise: Tensor | None = None) -> Tensor:
    active = torch.zeros(n_batch, dtype=torch.bool)
    active[slots] = True
    return model.frame(state, active, CAPACITY, noise)


def speak(model: LanguageModel, rows: Rows, n_frames: int, *, seed: int = 0, greedy: bool = True) -> Tensor:
    """Codes (n_frames, 16) of a single stream."""
    state = model.new_state(1)
    begin(state, 0, seed=seed, greedy=greedy)
    model.prefill(state, 0, rows, 0)
    return torch.cat([draw(model, state, [0], 1) for _ in range(n_frames)])


@pytest.mark.parametrize("case", GREEDY_CASES)
def test_greedy_codes_are_upstreams(
    case: str,
    model: RecordingModel,
    monologue_model: RecordingModel,
    golden: dict[str, np.ndarray[Any, Any]],
) -> None:
    codes = golden[f"{case}/codes"]
    spoken = speak(monologue_model if case.startswith("monologue") else model, rows_of(golden, case), len(codes))
    np.testing.assert_array_equal(spoken.numpy(), codes)
    assert len(np.unique(codes)) > 10


@pytest.mark.parametrize("case", GREEDY_CASES[:5])
def test_logits_are_upstreams(
    case: str,
    model: RecordingModel,
    monologue_model: RecordingModel,
    golden: dict[str, np.ndarray[Any, Any]],
) -> None:
    chosen = monologue_model if case.startswith("monologue") else model
    state = chosen.new_state(1)
    begin(state, 0)
    chosen.prefill(state, 0, rows_of(golden, case), 0)
    logits = []
    for _ in range(int(golden[f"{case}/frames"].max()) + 1):
        draw(chosen, state, [0], 1)
        logits.append(torch.cat(chosen.logits).numpy())
    for frame, expected in zip(golden[f"{case}/frames"], golden[f"{case}/logits"], strict=True):
        np.testing.assert_allclose(logits[frame], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames_at_depth", [20])
def test_codes_are_upstreams_at_full_depth(frames_at_depth: int, tmp_path: Path) -> None:
    golden = dict(np.load(FIXTURES / "llm_deep.npz"))
    deep = load(write_checkpoint(tmp_path / "deep", "deep"))
    assert len(deep.backbone.blocks) == 28
    assert len(deep.decoder.blocks) == 4
    np.testing.assert_array_equal(speak(deep, rows_of(golden, "deep"), frames_at_depth).numpy(), golden["deep/codes"])


def test_sampled_codes_are_upstreams_with_upstreams_noise(
    model: RecordingModel, golden: dict[str, np.ndarray[Any, Any]]
) -> None:
    state = model.new_state(1)
    begin(state, 0, greedy=False)
    model.prefill(state, 0, rows_of(golden, "dialogue_sampled"), 0)
    size = model.config.codebook_size
    for exponential, codes in zip(golden["dialogue_sampled/noise"], golden["dialogue_sampled/codes"], strict=True):
        gumbel = -torch.from_numpy(exponential[None, :, :size]).log()
        np.testing.assert_array_equal(draw(model, state, [0], 1, gumbel)[0].numpy(), codes)


def prompts() -> list[Rows]:
    """Prompts of three lengths, one with audio."""
    generator = np.random.default_rng(7)
    audio = audio_rows(generator.integers(0, 64, (9, 16)))
    return [
        text_rows([5, 17, 80, 3]),
        Rows.concat([text_rows([9] * 12), audio, text_rows([70, 71])]),
        text_rows(list(range(40, 61))),
    ]


@pytest.mark.parametrize("greedy", [True, False])
def test_a_batch_gives_the_codes_of_single_streams(model: RecordingModel, greedy: bool) -> None:
    single = [speak(model, rows, 8, seed=seed, greedy=greedy) for seed, rows in enumerate(prompts())]
    state = model.new_state(4)
    for slot, rows in enumerate(prompts()):
        begin(state, slot, seed=slot, greedy=greedy)
        model.prefill(state, slot, rows, 0)
    together = torch.stack([draw(model, state, [0, 1, 2], 4) for _ in range(8)], 1)
    for slot, codes in enumerate(single):
        assert torch.equal(together[slot], codes)


def test_streams_that_join_pause_and_move_keep_their_codes(model: RecordingModel) -> None:
    rows = prompts()
    expected = [speak(model, rows[seed], 11, seed=seed, greedy=False) for seed in range(3)]
    state = model.new_state(3)
    spoken: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}

    def join(slot: int, seed: int) -> None:
        begin(state, slot, seed=seed, greedy=False)
        model.prefill(state, slot, rows[seed], 0)

    def step(streams: dict[int, int]) -> None:
        codes = draw(model, state, list(streams), 3)
        for slot, stream in streams.items():
            spoken[stream].append(codes[slot])

    join(0, 0)
    step({0: 0})
    join(1, 1)
    step({0: 0, 1: 1})
    step({1: 1})  # the first pauses
    join(2, 2)
    for _ in range(4):
        step({0: 0, 1: 1, 2: 2})
    state.move(2, 0, len(rows[2]) + 4)  # the first leaves, the last takes its slot
    for _ in range(5):
        step({0: 2, 1: 1})
    for stream, codes in spoken.items():
        assert torch.equal(torch.stack(codes), expected[stream][: len(codes)]), stream


def test_a_seed_repeats_the_codes_and_another_does_not(model: RecordingModel) -> None:
    rows = prompts()[1]
    first = speak(model, rows, 6, seed=11, greedy=False)
    assert torch.equal(first, speak(model, rows, 6, seed=11, greedy=False))
    assert not torch.equal(first, speak(model, rows, 6, seed=12, greedy=False))


def test_rows_appended_later_continue_the_cache(model: RecordingModel) -> None:
    rows = Rows.concat([prompts()[1], prompts()[2]])
    whole = speak(model, rows, 5)
    state = model.new_state(1)
    begin(state, 0)
    model.prefill(state, 0, prompts()[1], 0)
    model.prefill(state, 0, prompts()[2], len(prompts()[1]))
    assert torch.equal(torch.cat([draw(model, state, [0], 1) for _ in range(5)]), whole)


def test_the_frame_of_zeros_is_fed_as_end_of_speech_row(model: RecordingModel) -> None:
    """What lets the engine read the end one frame late without repairing the cache."""

    class Ending(LanguageModel):
        def _draw_codes(self, state: SlotState, n_batch: int, noise: Tensor) -> Tensor:
            return torch.zeros_like(super()._draw_codes(state, n_batch, noise))

    rows = prompts()[0]
    fed = model.new_state(1)
    begin(fed, 0)
    model.prefill(fed, 0, rows, 0)
    Ending.frame(as_ending(model, Ending), fed, torch.ones(1, dtype=torch.bool), CAPACITY)
    prefilled = model.new_state(1)
    begin(prefilled, 0)
    model.prefill(prefilled, 0, Rows.concat([rows, audio_rows(np.zeros((1, 16), np.int64))]), 0)
    assert int(fed.position[0]) == int(prefilled.position[0])
    torch.testing.assert_close(fed.hidden, prefilled.hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(fed.cache, prefilled.cache, atol=1e-5, rtol=0)


def as_ending(model: LanguageModel, kind: type[LanguageModel]) -> LanguageModel:
    """The same weights under another class."""
    copy = object.__new__(kind)
    copy.__dict__.update(model.__dict__)
    return copy


def test_bfloat16_is_close_to_float32(checkpoint: Path) -> None:
    config = read_llm_config(checkpoint / "config_llm.json")
    logits = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = RecordingModel(config, open_llm(checkpoint, config, "cpu", dtype), capacity=CAPACITY)
        speak(model, prompts()[1], 1)
        logits[dtype] = model.logits[0]
    difference = (logits[torch.bfloat16] - logits[torch.float32]).norm() / logits[torch.float32].norm()
    assert 0 < difference < 0.03
    assert logits[torch.bfloat16].dtype == torch.float32


def test_an_8_bit_depth_decoder_is_close_to_the_whole_one(checkpoint: Path, model: RecordingModel) -> None:
    whole, rough = model, load(checkpoint, int8_depth=True)
    rows = prompts()[1]
    for each in (whole, rough):
        speak(each, rows, 1)
    assert torch.equal(whole.logits[0], rough.logits[0])  # the backbone is left alone
    difference = (whole.logits[1] - rough.logits[1]).norm() / whole.logits[1].norm()
    assert 0 < difference < 0.05


def test_special_audio_ids_have_no_logit(model: RecordingModel) -> None:
    config: LlmConfig = model.config
    speak(model, prompts()[0], 1)
    assert {logits.shape[-1] for logits in model.logits} == {config.audio_vocab_size - 3}
