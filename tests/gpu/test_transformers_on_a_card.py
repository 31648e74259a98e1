"""What only an NVIDIA card can show of the transformers engine: number formats, small weights, shared steps."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines.base import Message
from pipeline.engines.llm_transformers import TransformersLlm
from pipeline.engines.tiny_chat import write_tiny_chat

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA card"),
]

TALK = [Message("system", "Be brief."), Message("user", "Tell me a long story about the sea.")]
# The shape of Qwen2.5-0.5B, with the tiny model's few tokens: 0.36 billion weights.
SHAPE = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}


@pytest.fixture(scope="module")
def half_a_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = write_tiny_chat(tmp_path_factory.mktemp("chat") / "half")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SHAPE))
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=torch.bfloat16)
    end, network.config.eos_token_id = network.config.eos_token_id, None
    network.generation_config.eos_token_id = end
    network.save_pretrained(directory)
    return directory


@asynccontextmanager
async def loaded(directory: Path, **options: Any) -> AsyncIterator[TransformersLlm]:
    chosen: dict[str, Any] = {"capacity": 4, "temperature": 0, "device": "cuda", "max_tokens": 32} | options
    llm = TransformersLlm(models_dir=Path("unused"), directory=directory, **chosen)
    try:
        await llm.load()
        yield llm
    finally:
        await llm.close()


async def answer(llm: TransformersLlm, talk: list[Message]) -> str:
    async with asyncio.timeout(60), aclosing(llm.reply(talk)) as reply:
        return "".join([delta async for delta in reply])


def network(llm: TransformersLlm) -> Any:
    assert llm._running is not None
    return llm._running.model.network


async def test_auto_is_bfloat16_where_the_card_has_it(half_a_billion: Path) -> None:
    async with loaded(half_a_billion) as llm:
        assert network(llm).dtype == (torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16)
        assert llm.info.device == "cuda"
        assert llm._running is not None
        assert llm._running.batch.joins
        assert await answer(llm, TALK)


async def test_talks_at_once_say_what_each_says_alone(half_a_billion: Path) -> None:
    talks = [[TALK[0], Message("user", f"Tell me about {what}.")] for what in ("ships", "two short words", "me", "a")]
    async with loaded(half_a_billion, precision="fp32") as llm:
        alone = [await answer(llm, talk) for talk in talks]
        assert await asyncio.gather(*(answer(llm, talk) for talk in talks)) == alone


async def test_the_next_turn_reads_only_what_is_new_and_says_the_same(half_a_billion: Path) -> None:
    async with loaded(half_a_billion, precision="fp32") as llm:
        further = [*TALK, Message("assistant", await answer(llm, TALK)), Message("user", "And then?")]
        shapes: list[tuple[int, ...]] = []
        hook = network(llm).register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
        again = await answer(llm, further)
        hook.remove()
        assert llm._running is not None
        model = llm._running.model
        assert sum(n for _, n in shapes if n > 1) <= len(model.prompt(further)) - len(model.prompt(TALK))
    async with loaded(half_a_billion, precision="fp32") as fresh:
        assert await answer(fresh, further) == again


async def test_small_weights_take_less_of_the_card_and_speak(half_a_billion: Path) -> None:
    held = []
    for bits in (16, 8, 4):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        async with loaded(half_a_billion, bits=bits) as llm:
            held.append(torch.cuda.memory_allocated() - before)
            talks = [[*TALK, Message("user", word)] for word in ("one", "two", "three")]
            assert all(await asyncio.gather(*(answer(llm, talk) for talk in talks)))
    assert held[1] < 0.7 * held[0]
    assert held[2] < 0.7 * held[1]


async def test_a_full_card_costs_the_answer_and_not_the_engine(half_a_billion: Path) -> None:
    from pipeline.errors import OutOfMemory

    async with loaded(half_a_billion, context_tokens=32_000) as llm:
        expected = await answer(llm, TALK)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(max(free - (64 << 20), 0), dtype=torch.uint8, device="cuda")
        with pytest.raises(OutOfMemory):
            await answer(llm, [Message("user", "sea " * 30_000)])
        del hog
        torch.cuda.empty_cache()
        assert await answer(llm, TALK) == expected
