"""The engine at full size on a device whose values cannot be looked at, which is what a card is inside a CUDA graph.

Meta tensors have a shape, a dtype and a device, and no data: whatever needs a value on the host fails, and whatever
mixes host and device is found by looking at every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from firered.checkpoint import weights_from
from firered.codec_decoder import CodecDecoder
from firered.config import CodecConfig, LlmConfig, StackConfig
from firered.guards import GuardLimits
from firered.key_table import codec_shapes, codec_table, llm_shapes, llm_table
from firered.language_model import LanguageModel
from firered.prompt import Rows, audio_rows, text_rows
from firered.scheduler import Scheduler
from firered.segments import Segmenter
from firered.step_runner import StepRunner
from firered.stream import PieceEnd, SpeechStream, StreamEnd, StreamEvent, StreamOptions
from firered.tokenizer import FireRedTokenizer
from tests.unit.firered.test_scheduler import EndingModel

N_SLOTS = 3
CROSSINGS = ("to", "_to_copy", "copy_")  # what may have tensors of two devices


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at an operation on tensors of two devices that is no copy; keeps the copies from one to the other."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.crossings: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and the compiler's 900 modules need not be imported to skip it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) <= 1 or name in CROSSINGS, f"{name} mixes {devices}"
        self.names.append(name)
        if len(devices) > 1:
            self.crossings.append(f"{name} {tuple(tensors[0].shape)}")
        return result


class _Drawn:
    def __init__(self, codes: Tensor, samples: Tensor, code: int) -> None:
        self._shapes, self._code = (codes.shape, samples.shape), code

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        codes, samples = self._shapes
        return np.full(codes, self._code, np.int64), np.full(samples, 0.1, np.float32)


class _Downloads:
    """Stands in for the copies to the host: codes and samples that are made up, the end of speech now and then."""

    def __init__(self) -> None:
        self._n = 0

    def start(self, codes: Tensor, samples: Tensor) -> _Drawn:
        self._n += 1
        assert codes.dtype == torch.int64
        assert samples.dtype == torch.float32
        return _Drawn(codes, samples, code=int(self._n % 3 > 0))


@pytest.fixture(autouse=True)
def _inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # only with a card can memory be pinned
    with torch.inference_mode():
        yield


def full_size() -> LlmConfig:
    """Shapes of the published checkpoint, but one layer each: what a layer does, the next one does, too."""
    stack = StackConfig(n_layers=1, width=1536, n_heads=12, n_kv_heads=2, ffn_width=8960)
    return LlmConfig(backbone=stack, decoder=stack)


def language_model(
    dtype: torch.dtype = torch.bfloat16, *, int8: bool = False, kind: type[LanguageModel] = LanguageModel
) -> LanguageModel:
    config = full_size()
    tensors = {key: torch.empty(shape, device="meta") for key, shape in llm_shapes(config).items()}
    weights = weights_from(tensors, llm_table(config), "meta", dtype)
    return kind(config, weights, capacity=3100, int8_depth=int8)


def codec_decoder() -> CodecDecoder:
    config = CodecConfig(acoustic_decoder=replace(CodecConfig().acoustic_decoder, n_layers=1))
    tensors = {key: torch.empty(shape, device="meta") for key, shape in codec_shapes(config).items()}
    return CodecDecoder(config, weights_from(tensors, codec_table(config), "meta", torch.float32))


def step_runner(model: LanguageModel) -> StepRunner:
    decoder = codec_decoder()
    state, codec_state = model.new_state(N_SLOTS), decoder.new_state(N_SLOTS, 379, torch.float16)
    runner = StepRunner(model, decoder, state, codec_state, max_tokens=379, graphs=False)
    runner._downloads = _Downloads()  # type: ignore[assignment]
    return runner


@pytest.mark.parametrize("int8", [False, True])
def test_a_frame_computes_on_its_device_alone(int8: bool) -> None:
    model = language_model(int8=int8)
    runner = step_runner(model)
    runner.launch([0, 2], n_rows=100, n_tokens=20)
    with Operations() as again:
        runner.launch([0, 2], n_rows=101, n_tokens=21)
    assert again.crossings == []
    with Operations() as changed:
        runner.launch([1], n_rows=101, n_tokens=21)
    assert changed.crossings == [f"copy_ ({N_SLOTS},)"]  # who is active


def test_a_prompt_is_the_only_thing_that_crosses_to_the_device() -> None:
    model = language_model()
    state = model.new_state(N_SLOTS)
    rows = Rows.concat([text_rows([1, 2, 3]), audio_rows(np.zeros((4, 16), np.int64))])
    with Operations() as prompt:
        state.begin(1, seed=1, temperature=0.9, top_k=30, greedy=False)
        model.prefill(state, 1, rows, 0)
    assert len(prompt.crossings) == 3  # ids, and which rows are text and which audio
    with Operations() as rest:
        state.rewind(1, 3, 2)
        state.move(1, 0, 7)
    assert rest.crossings == []


def test_streams_join_speak_and_leave_without_a_value_of_the_device(checkpoint: Any) -> None:
    tokenizer = FireRedTokenizer.from_directory(checkpoint / "Qwen2.5-1.5B", 1024)
    model = language_model(kind=EndingModel)  # what its depth decoder does, the frames above show
    runner = step_runner(model)
    scheduler = Scheduler(
        model,
        runner._state,
        runner._codec_state,
        runner,
        voice_rows=lambda _: [],
        limits=GuardLimits(loop_frames=10**6),
    )
    events: list[StreamEvent] = []
    for n in range(N_SLOTS + 1):
        stream = SpeechStream(StreamOptions(seed=n, max_lead_s=None), Segmenter(tokenizer), lambda: None, events.append)
        stream.add_text("Yes.")
        stream.add_text("No.")
        stream.end()
        scheduler.add(stream)
    with Operations():
        while scheduler.tick(0.0) is not None:
            pass
    assert sum(isinstance(event, PieceEnd) for event in events) == 2 * (N_SLOTS + 1)
    assert [event for event in events if isinstance(event, StreamEnd)] == [StreamEnd(cancelled=False)] * (N_SLOTS + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_needs_precision_is_float32_in_a_model_of_16_bits(dtype: torch.dtype) -> None:
    model = language_model(dtype)
    for stack in (model.backbone, model.decoder):
        assert {stack._cos.dtype, stack._sin.dtype, stack.final_scale.dtype} == {torch.float32}
        assert {block.qkv.dtype for block in stack.blocks} == {dtype}
    state = model.new_state(N_SLOTS)
    assert {state.cache.dtype, state.depth_cache.dtype, state.hidden.dtype} == {dtype}
    assert {state.temperature.dtype, state.noise_scale.dtype} == {torch.float32}
    drawn: list[tuple[torch.dtype, ...]] = []

    def draw(codebook: int, logits: Tensor, kth: Tensor, temperature: Tensor | float, noise: Tensor) -> Tensor:
        drawn.append((logits.dtype, kth.dtype, noise.dtype))
        return logits.argmax(-1)

    model._draw = draw  # type: ignore[method-assign]
    model.frame(state, torch.ones(N_SLOTS, dtype=torch.bool, device="meta"), 128)
    assert drawn == [(torch.float32,) * 3] * 16
