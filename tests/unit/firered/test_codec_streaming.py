from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from firered.checkpoint import weights_from
from firered.codec_decoder import CodecDecoder
from firered.codec_state import DecoderState
from firered.config import CodecConfig
from firered.key_table import codec_shapes, codec_table
from tests.support.firered_codec import LAG_SAMPLES, TOKEN_SAMPLES, config, decoder, golden, random_codes

N_MAX = 24  # tokens a slot holds


class Stream:
    """One utterance on its way through a slot."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes
        self.n_done = 0
        self.samples = torch.zeros(0)
        self.tail = torch.zeros(0)

    @property
    def ended(self) -> bool:
        return self.n_done == len(self.codes)

    def take(self, output: Tensor) -> None:
        """`output` (2280,) of the step that decoded this stream's next token."""
        self.samples = torch.cat([self.samples, output[LAG_SAMPLES if self.n_done == 0 else 0 : TOKEN_SAMPLES]])
        self.tail = output[TOKEN_SAMPLES:]
        self.n_done += 1

    def error(self) -> float:
        """Largest difference to the full decode of the tokens so far."""
        full = decoder().decode(self.codes[: self.n_done])
        return float((torch.cat([self.samples, self.tail]) - full).abs().max())


def step(state: DecoderState, streams: dict[int, Stream], n_batch: int, n_kv_tokens: int = N_MAX) -> None:
    """Decodes the next token of each stream; keys are slots, other slots of the batch are idle with odd codes."""
    codes = torch.full((n_batch, config().rvq.n_quantizers), 7)
    active = torch.zeros(n_batch, dtype=torch.bool)
    for slot, stream in streams.items():
        codes[slot], active[slot] = stream.codes[stream.n_done], True
    output = decoder().step(codes, state, active, n_kv_tokens)
    assert output.shape == (n_batch, TOKEN_SAMPLES + LAG_SAMPLES)
    assert output.dtype == torch.float32
    for slot, stream in streams.items():
        stream.take(output[slot])


def new_state(n_slots: int, kv_dtype: torch.dtype = torch.float32) -> DecoderState:
    return decoder().new_state(n_slots, N_MAX, kv_dtype)


def contents(state: DecoderState, slot: int, n_tokens: int) -> list[Tensor]:
    """A copy of all that a slot holds after `n_tokens` tokens."""
    n_frames = n_tokens * state.shape.n_frames
    parts = [state.position[slot], state.carry[slot], state.inputs[:, slot, :6], state.spectral[slot]]
    return [part.clone() for part in (*parts, state.kv[:, slot, :, :, :n_frames])]


def test_chunks_and_tails_are_upstreams() -> None:
    codes = torch.from_numpy(golden()["stream/codes"])
    stream, state = Stream(codes), new_state(1)
    lengths = []
    for n in range(len(codes)):
        before = len(stream.samples)
        step(state, {0: stream}, 1)
        lengths.append(len(stream.samples) - before)
        assert np.abs(stream.tail.numpy() - golden()["stream/tails"][n]).max() < 5e-6
    lengths[-1] += len(stream.tail)
    assert lengths == list(golden()["stream/lengths"])
    streamed = torch.cat([stream.samples, stream.tail])
    assert np.abs(streamed.numpy() - golden()["stream/pcm"]).max() < 5e-6


def test_a_stream_of_one_token_is_complete() -> None:
    stream = Stream(torch.from_numpy(golden()["stream/codes"][:1]))
    step(new_state(1), {0: stream}, 1)
    streamed = torch.cat([stream.samples, stream.tail])
    assert np.abs(streamed.numpy() - golden()["stream/single_token_pcm"]).max() < 5e-6


def test_the_state_is_upstreams_caches() -> None:
    stream, state = Stream(torch.from_numpy(golden()["stream/codes"])), new_state(1)
    for _ in range(3):
        step(state, {0: stream}, 1)
    inputs = state.inputs[:, 0, :6].transpose(1, 2)  # (convolutions, d, 6 frames), as upstream has them
    caches = {name: golden()[f"stream/{name}"] for name in ("up_conv_cache", "bb_conv_cache1", "bb_conv_cache2")}
    assert np.abs(inputs[0, :, 4:].numpy() - caches["up_conv_cache"][:, 1:]).max() < 1e-5
    assert np.abs(inputs[1].numpy() - caches["bb_conv_cache1"]).max() < 1e-5
    assert np.abs(inputs[2:, :, 4:].flatten(0, 1).numpy() - caches["bb_conv_cache2"]).max() < 1e-5
    keys, values = state.kv[:, 0, :, :, : 3 * 8].unbind(1)  # (layers, H, 24, D) each
    assert np.abs(torch.cat([keys, values], -1).numpy() - golden()["stream/bb_kv_cache"]).max() < 1e-5
    assert np.abs(state.spectral[0].T.numpy() - golden()["stream/is_cache"]).max() < 1e-5


def test_streams_that_join_pause_and_leave_at_any_time_sound_as_if_decoded_alone() -> None:
    streams = [Stream(random_codes(n, seed)) for seed, n in enumerate((20, 9, 24, 13, 7, 5))]
    state, waiting = new_state(3), list(streams)
    slots: dict[int, Stream] = {}
    moments = np.random.default_rng(5)
    while waiting or slots:
        for slot in range(3):
            if slot not in slots and waiting and moments.random() < 0.5:
                state.reset(slot)
                slots[slot] = waiting.pop(0)
        step(state, {slot: stream for slot, stream in slots.items() if moments.random() < 0.7}, 3)
        slots = {slot: stream for slot, stream in slots.items() if not stream.ended}
    assert max(stream.error() for stream in streams) < 1e-5


def test_a_batch_of_the_first_slots_leaves_the_others_alone() -> None:
    first, second, state = Stream(random_codes(4, 1)), Stream(random_codes(4, 2)), new_state(2)
    step(state, {0: first, 1: second}, 2)
    kept = contents(state, 1, 1)
    step(state, {0: first}, 1)
    assert all(map(torch.equal, kept, contents(state, 1, 1)))
    step(state, {0: first, 1: second}, 2)
    assert max(first.error(), second.error()) < 1e-5


@pytest.mark.parametrize("n_tokens", [0, 5, N_MAX])
def test_an_idle_slot_keeps_its_state_to_the_bit_even_when_full(n_tokens: int) -> None:
    idle, busy, state = Stream(random_codes(N_MAX, 1)), Stream(random_codes(3, 2)), new_state(2)
    for _ in range(n_tokens):
        step(state, {1: idle}, 2)
    kept = contents(state, 1, n_tokens)
    for _ in range(3):
        step(state, {0: busy}, 2)
    assert all(map(torch.equal, kept, contents(state, 1, n_tokens)))
    assert busy.error() < 1e-5


def test_a_slot_that_was_reset_knows_nothing_of_the_stream_before() -> None:
    before, after, state = Stream(random_codes(6, 1)), Stream(random_codes(4, 2)), new_state(1)
    for _ in range(6):
        step(state, {0: before}, 1)
    state.reset(0)
    for _ in range(4):
        step(state, {0: after}, 1)
    fresh, untouched = Stream(after.codes), new_state(1)
    for _ in range(4):
        step(untouched, {0: fresh}, 1)
    assert torch.equal(after.samples, fresh.samples)


@pytest.mark.parametrize("moved", [False, True])
def test_not_a_number_in_a_slot_does_not_outlive_its_stream(moved: bool) -> None:
    stream, state = Stream(random_codes(6, 1)), new_state(2)
    with torch.inference_mode():
        for part in (state.kv.transpose(0, 1), state.inputs.transpose(0, 1), state.carry, state.spectral):
            part[0] = torch.nan
    if not moved:
        state.reset(0)
    for n in range(6):
        if moved and n == 3:
            state.move(1, 0, 3)
        step(state, {0 if n >= 3 or not moved else 1: stream}, 2)
    assert stream.error() < 1e-5


@pytest.mark.parametrize("n_known", [None, 5])
def test_a_stream_goes_on_in_the_slot_it_was_moved_to(n_known: int | None) -> None:
    stream, bystander, state = Stream(random_codes(9, 1)), Stream(random_codes(9, 2)), new_state(3)
    for _ in range(5):
        step(state, {2: stream, 1: bystander}, 3)
    state.move(2, 0, n_known)
    state.reset(2)
    for _ in range(4):
        step(state, {0: stream, 1: bystander}, 2)
    assert max(stream.error(), bystander.error()) < 1e-5


def test_how_many_keys_are_read_beyond_the_position_does_not_matter() -> None:
    tight, wide = Stream(random_codes(6, 1)), Stream(random_codes(6, 1))
    states = new_state(1), new_state(1)
    for position in range(6):
        step(states[0], {0: tight}, 1, position + 1)
        step(states[1], {0: wide}, 1, N_MAX)
    assert (tight.samples - wide.samples).abs().max() < 1e-6
    assert tight.error() < 1e-5


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.bfloat16])
def test_keys_and_values_of_16_bits_change_the_sound_little(kv_dtype: torch.dtype) -> None:
    stream, state = Stream(random_codes(12, 1)), new_state(1, kv_dtype)
    for _ in range(12):
        step(state, {0: stream}, 1)
    exact = decoder().decode(stream.codes)
    error = torch.cat([stream.samples, stream.tail]) - exact
    assert state.kv.dtype == kv_dtype
    assert error.square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_a_full_size_step_on_data_that_cannot_be_looked_at_has_the_shapes_of_64_streams() -> None:
    # Meta tensors have shapes and no data: whatever would ask the device for a value fails.
    shapes = codec_shapes(CodecConfig())
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    weights = weights_from(tensors, codec_table(CodecConfig()), "meta", torch.float16)
    full_size = CodecDecoder(CodecConfig(), weights)
    state = full_size.new_state(64, 375, torch.float16)
    codes = torch.empty(64, 16, dtype=torch.int64, device="meta")
    active = torch.empty(64, dtype=torch.bool, device="meta")
    samples = full_size.step(codes, state, active, 256)
    assert samples.shape == (64, 2280)
    assert samples.dtype == torch.float32
    assert state.kv.shape == (12, 64, 2, 12, 8 * 376, 64)


def test_a_step_works_in_place_so_that_a_graph_can_be_replayed() -> None:
    state = new_state(2)
    tensors = {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    addresses = {name: value.data_ptr() for name, value in tensors.items()}
    step(state, {0: Stream(random_codes(2, 1))}, 2)
    assert {name: getattr(state, name).data_ptr() for name in tensors} == addresses
