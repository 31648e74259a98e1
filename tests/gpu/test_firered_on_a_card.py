"""What only an NVIDIA card can show: graphs equal the eager path, streams share the card, memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from firered import EngineOptions, FireRedEngine, GuardLimits, SpeechAudio, StreamEnd, StreamOptions
from tests.support.firered_tiny import write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA card"),
]

LOOSE = GuardLimits(silent_frames=10**9, loop_frames=10**6)
GREEDY = StreamOptions(greedy=True, max_lead_s=None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("firered") / "tiny")


def engine(
    checkpoint: Path, device: str = "cuda", dtype: torch.dtype = torch.float32, **options: object
) -> FireRedEngine:
    chosen = EngineOptions(max_streams=4, capacity=1024, limits=LOOSE, codec_kv_dtype=torch.float32, **options)  # type: ignore[arg-type]
    return FireRedEngine.from_pretrained(checkpoint, device, dtype, options=chosen)


@pytest.fixture(scope="module")
def with_graphs(checkpoint: Path) -> Iterator[FireRedEngine]:
    with engine(checkpoint) as made:
        yield made


def test_graphs_give_what_the_eager_path_gives(checkpoint: Path, with_graphs: FireRedEngine) -> None:
    with engine(checkpoint, graphs=False) as eager:
        for text in ("Yes.", "A somewhat longer sentence."):
            np.testing.assert_allclose(with_graphs.generate(text, GREEDY), eager.generate(text, GREEDY), atol=1e-4)


def test_the_card_gives_what_the_cpu_gives(checkpoint: Path, with_graphs: FireRedEngine) -> None:
    with engine(checkpoint, "cpu") as on_cpu:
        np.testing.assert_allclose(with_graphs.generate("Yes.", GREEDY), on_cpu.generate("Yes.", GREEDY), atol=1e-3)


def test_streams_in_company_sound_as_they_do_alone(with_graphs: FireRedEngine) -> None:
    texts = ["Yes.", "No, not at all.", "One, two, three, four."]
    alone = [with_graphs.generate(text, GREEDY) for text in texts]
    streams = [with_graphs.open(GREEDY) for _ in texts]
    for stream, text in zip(streams, texts, strict=True):
        stream.add_text(text)
        stream.end()
    for stream, expected in zip(streams, alone, strict=True):
        heard = np.concatenate([event.samples for event in stream if isinstance(event, SpeechAudio)])
        np.testing.assert_allclose(heard, expected, atol=1e-4)


def test_a_seed_repeats_the_audio_on_a_card(with_graphs: FireRedEngine) -> None:
    options = StreamOptions(seed=5, max_lead_s=None)
    np.testing.assert_array_equal(with_graphs.generate("Yes.", options), with_graphs.generate("Yes.", options))


def test_a_cancelled_stream_frees_its_slot(with_graphs: FireRedEngine) -> None:
    for _ in range(8):  # twice as many as there are slots
        stream = with_graphs.open(GREEDY)
        stream.add_text("A sentence that nobody wants to hear to its end, however long it may become.")
        events = iter(stream)
        next(events)
        stream.cancel()
        assert list(events)[-1] == StreamEnd(cancelled=True)


def test_memory_does_not_grow_with_use(with_graphs: FireRedEngine) -> None:
    with_graphs.generate("Yes.", GREEDY)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        with_graphs.generate("Yes.", GREEDY)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize("int8_depth", [False, True])
def test_bfloat16_speaks_and_is_finite(checkpoint: Path, int8_depth: bool) -> None:
    with engine(checkpoint, dtype=torch.bfloat16, int8_depth=int8_depth) as made:
        audio = made.generate("Yes.", GREEDY)
    assert len(audio) > 0
    assert np.isfinite(audio).all()
