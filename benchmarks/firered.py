"""Speed of the FireRedTTS-2 engine on random weights: cost does not depend on their values.

    python -m benchmarks.firered --random --device cuda --streams 1,4,16,64
    python -m benchmarks.firered --random --device cpu --tiny --upstream

`--tiny` keeps the real number of layers and shrinks the widths. `--upstream` times the upstream package in the same
run, with the interpreter of tests/oracle/README.md, before and after ours, so that a busy machine shows. Writes JSON to
out/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.firered_upstream import DEEP_CODEC, DEEP_LLM, DEEP_STACK, counted, measured_by
from firered import EngineOptions, FireRedEngine, GuardLimits, SpeechAudio, StreamEnd, StreamEvent, StreamOptions
from firered.byte_tokenizer import write_byte_tokenizer
from firered.config import (
    AcousticDecoderConfig,
    AdaptorConfig,
    CodecConfig,
    DownsampleConfig,
    EncoderConfig,
    LlmConfig,
    RvqConfig,
    StackConfig,
    UpsampleConfig,
)
from firered.key_table import codec_shapes, llm_shapes
from firered.language_model import LanguageModel
from firered.random_weights import random_weights
from firered.tokenizer import FireRedTokenizer
from firered.voice import VoicePrompt

MS_PER_FRAME = 80.0
CACHE = Path(os.environ.get("VOICEPOD_CACHE", Path.home() / ".cache" / "voicepod"))
ORACLE_PYTHON = CACHE / "oracle-venv" / "bin" / "python"
OUT = Path("out")
# A voice of 6 s and a sentence of 15 s: with its frame limit of 30 s the engine never runs out of frames to make.
VOICE_FRAMES = 75
TEXT = "This is a sentence that goes on and on, as nobody ever says it in a conversation, " * 2
# Random weights fall silent or repeat themselves; a benchmark wants every frame.
UNGUARDED = GuardLimits(silent_frames=1 << 40, loop_frames=1 << 20)


def tiny_configs() -> tuple[LlmConfig, CodecConfig]:
    """Real depth, the widths of upstream's `deep` build."""
    llm = LlmConfig(StackConfig(n_layers=28, **DEEP_STACK), StackConfig(n_layers=4, **DEEP_STACK), **DEEP_LLM)
    decoder, rvq = DEEP_CODEC["acoustic_decoder"], DEEP_CODEC["rvq"]
    width, codebook_size = decoder["embed_dim"], rvq["codebook_size"]
    small = AdaptorConfig(in_width=40, width=48, out_width=24, n_layers=1, n_heads=3, ffn_width=80)
    codec = CodecConfig(
        ssl=EncoderConfig(n_mels=128, width=40, n_layers=1, n_heads=2, ffn_width=64),
        ssl_adaptor=small,
        acoustic_encoder=EncoderConfig(n_mels=128, width=32, n_layers=1, n_heads=2, ffn_width=64),
        downsample=DownsampleConfig(width=56),
        rvq=RvqConfig(in_width=56, width=width, codebook_size=codebook_size, codebook_width=rvq["codebook_dim"]),
        upsample=UpsampleConfig(width=width),
        acoustic_decoder=AcousticDecoderConfig(
            width=width, n_layers=decoder["num_layers"], n_heads=decoder["num_heads"]
        ),
        semantic_decoder=AdaptorConfig(in_width=48, width=48, out_width=40, n_layers=1, n_heads=3, ffn_width=80),
    )
    return llm, codec


def build(options: argparse.Namespace, max_streams: int) -> FireRedEngine:
    """An engine whose weights were never on a disk."""
    llm, codec = tiny_configs() if options.tiny else (LlmConfig(), CodecConfig())
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        write_byte_tokenizer(Path(folder))
        tokenizer = FireRedTokenizer.from_directory(Path(folder), llm.text_vocab_size)
    engine_options = EngineOptions(
        max_streams=max_streams,
        int8_depth=options.int8_depth,
        graphs=False if options.eager else None,
        limits=UNGUARDED,
    )
    return FireRedEngine(
        llm,
        codec,
        random_weights(llm_shapes(llm), device, dtype, seed=0),
        random_weights(codec_shapes(codec), device, torch.float32, seed=1),
        tokenizer,
        engine_options,
        encoder_weights=lambda: random_weights(codec_shapes(codec), torch.device("cpu"), torch.float32, seed=1),
    )


# --- one frame, part by part


def parts_of_a_frame(engine: FireRedEngine, n_frames: int) -> dict[str, Any]:
    """Milliseconds of the parts of one stream's frame, each part alone; `other` is what is left of the whole."""
    scheduler = engine._scheduler
    model, runner, state = scheduler._model, scheduler._runner, scheduler._state
    rows = 128
    active = torch.ones(1, dtype=torch.bool, device=model.device)
    noise = model.noise(state.seed[:1], state.frame[:1])
    codes = torch.ones(1, model.config.n_codebooks, dtype=torch.int64, device=model.device)

    def backbone() -> None:
        mask = torch.ones(1, 1, 1, rows, dtype=torch.bool, device=model.device)
        model.backbone.step(model._embed_codes(codes), state.views(1, rows), state.position[:1], mask)

    def depth() -> None:
        model._draw_codes(state, 1, noise)

    def codec() -> None:
        runner._decoder.step(codes, runner._codec_state, active, 32)

    def language_model() -> None:
        model.frame(state, active, rows)

    def whole() -> None:
        state.position[:1] = rows // 2
        runner._codec_state.position[:1] = 16
        runner.launch([0], rows - 1, 31).result()

    spent = {}
    with torch.inference_mode():
        for part in (backbone, depth, codec, language_model):
            state.position[:1] = rows // 2
            runner._codec_state.position[:1] = 16
            spent[part.__name__] = _median_ms(_repeatable(part, model, engine.options.graphs is False), n_frames)
        spent["whole"] = _median_ms(whole, n_frames)
        counts = counted(language_model) if model.device.type == "cpu" else {}
    spent["other"] = spent["whole"] - spent["backbone"] - spent["depth"] - spent["codec"]
    return {"ms": {name: round(ms, 3) for name, ms in spent.items()}, "counts": counts}


def _repeatable(work: Callable[[], None], model: LanguageModel, eager: bool) -> Callable[[], None]:
    """On a card the graph of `work`, as the engine runs it; elsewhere `work` itself."""
    if model.device.type != "cuda":
        return work
    if not eager:
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replayed = graph.replay
    else:
        replayed = work

    def measured() -> None:
        replayed()
        torch.cuda.synchronize()

    return measured


def _median_ms(work: Callable[[], None], n: int) -> float:
    spent = []
    for _ in range(n + 3):
        begin = time.perf_counter()
        work()
        spent.append(1000 * (time.perf_counter() - begin))
    return statistics.median(spent[3:])


def byte_floor(engine: FireRedEngine) -> dict[str, float]:
    """What reading the weights of a frame once (the depth decoder 15 times) takes at the bandwidth measured here."""
    model = engine._scheduler._model
    backbone, depth = _n_bytes(model.backbone.blocks), _n_bytes(model.decoder.blocks)
    heads = sum(tensor.nbytes for tensor in (model._head, model._depth_heads))
    read = backbone + (model.config.n_codebooks - 1) * depth + heads
    bandwidth = _bandwidth(model.device)
    return {
        "gb_per_frame": round(read / 1e9, 4),
        "bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "floor_ms": round(1000 * read / bandwidth, 3),
        "floor_rtf": round(1000 * read / bandwidth / MS_PER_FRAME, 4),
    }


def _n_bytes(blocks: Sequence[Any]) -> int:
    total = 0
    for block in blocks:
        total += block.qkv.nbytes + block.attention_out.nbytes
        for part in (block.gate_up, block.down):
            total += sum(value.nbytes for value in vars(part).values() if isinstance(value, Tensor))
    return total


def _bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy: as many are read as are written."""
    n = 1 << (30 if device.type == "cuda" else 27)
    source, target = (torch.zeros(n, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * n / _median_ms(copy, 10) * 1000


# --- streams through the engine


@dataclass
class Listener:
    """What one stream's listener sees, on the engine's thread."""

    opened_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    cancelled_s: float = 0.0
    ended_s: float = 0.0
    enough: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    n_wanted: int = 0

    def hear(self, event: StreamEvent) -> None:
        """Takes the time of every event."""
        now = time.perf_counter()
        if isinstance(event, SpeechAudio):
            self.arrivals_s.append(now)
            self.audio_s += len(event.samples) / FireRedEngine.sample_rate
            if len(self.arrivals_s) >= self.n_wanted:
                self.enough.set()
        elif isinstance(event, StreamEnd):
            self.ended_s = now
            self.ended.set()

    @property
    def underruns(self) -> int:
        """Chunks that came after the audio before them had been played, had playback begun with the first chunk."""
        played_until, n = self.arrivals_s[0], 0
        for index, arrival in enumerate(self.arrivals_s):
            n += arrival > played_until + 1e-3
            played_until = max(played_until, arrival) + (0.065 if index == 0 else 0.08)
        return n


def talk(engine: FireRedEngine, n_streams: int, n_frames: int) -> dict[str, Any]:
    """Streams opened 20 ms apart, as fast as the engine makes them, each cancelled once it made n_frames."""
    voice = VoicePrompt(torch.randint(0, 60, (VOICE_FRAMES, 16)).numpy(), "A voice that nobody has.", "random")
    options = StreamOptions(voices={"[S1]": voice}, max_lead_s=1.0 if n_streams > 1 else None)
    listeners = [Listener(n_wanted=n_frames) for _ in range(n_streams)]
    before, begin = engine.stats.n_frames, time.perf_counter()
    streams = []
    for listener in listeners:
        listener.opened_s = time.perf_counter()
        stream = engine.open(options, listener.hear)
        stream.add_text(TEXT)
        streams.append(stream)
        if n_streams > 1:
            threading.Event().wait(0.02)
    for stream, listener in zip(streams, listeners, strict=True):
        listener.enough.wait()
        listener.cancelled_s = time.perf_counter()
        stream.cancel()
    for listener in listeners:
        listener.ended.wait()
    wall_s, n_made = time.perf_counter() - begin, engine.stats.n_frames - before
    return _summary(listeners, wall_s, n_made)


def _summary(listeners: Sequence[Listener], wall_s: float, n_made: int) -> dict[str, Any]:
    ttfa = [1000 * (each.arrivals_s[0] - each.opened_s) for each in listeners]
    times = [each.arrivals_s for each in listeners]
    gaps = [1000 * (b - a) for arrivals in times for a, b in itertools.pairwise(arrivals)]
    stops = [1000 * (each.ended_s - each.cancelled_s) for each in listeners]
    return {
        "ttfa_ms_p50": percentile(ttfa, 50),
        "ttfa_ms_p95": percentile(ttfa, 95),
        "rtf_per_stream": round(wall_s / max(each.audio_s for each in listeners), 4),
        "audio_s_per_s": round(n_made * 0.08 / wall_s, 2),
        "gap_ms_p95": percentile(gaps, 95),
        "underruns": sum(each.underruns for each in listeners),
        "stop_ms_p50": percentile(stops, 50),
        "stop_ms_p95": percentile(stops, 95),
    }


def percentile(values: Sequence[float], p: int) -> float:
    """Nearest-rank percentile, rounded for a table."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-p * len(ordered) // 100) - 1)], 2)


def one_stream(engine: FireRedEngine, n_repeats: int, n_frames: int) -> dict[str, Any]:
    """Talks one after the other; the first one, which reads the voice, is left out."""
    talk(engine, 1, 2)
    results = [talk(engine, 1, n_frames) for _ in range(n_repeats)]
    first = [result["ttfa_ms_p50"] for result in results]
    merged = {name: round(statistics.median(result[name] for result in results), 4) for name in results[0]}
    return {**merged, "ttfa_ms_p50": percentile(first, 50), "ttfa_ms_p95": percentile(first, 95)}


# --- upstream, and the report


def upstream(options: argparse.Namespace) -> dict[str, Any]:
    """Upstream's own frame and codec step, measured by its own interpreter."""
    size = "deep" if options.tiny else "full"
    common = ["--size", size, "--device", options.device, "--frames", str(options.frames)]
    common += ["--threads", str(torch.get_num_threads())]
    python = options.upstream
    llm = measured_by(python, "--part", "llm", "--dtype", options.dtype, *common)
    return {"llm": llm, "codec": measured_by(python, "--part", "codec", *common)}


def report(result: dict[str, Any]) -> None:
    """Prints the tables."""
    ours, floor = result["frame"]["ms"], result["floor"]
    print(f"{result['device']}, {result['size']} weights, {result['dtype']}, torch {torch.__version__}")
    print(
        f"one frame, ms: whole {ours['whole']} (RTF {ours['whole'] / MS_PER_FRAME:.4f}) = backbone {ours['backbone']}"
    )
    print(f"  + depth {ours['depth']} + codec {ours['codec']} + other {ours['other']:.3f}")
    print(f"  floor {floor['floor_ms']} ms (RTF {floor['floor_rtf']}): {floor['gb_per_frame']} GB at", end=" ")
    print(f"{floor['bandwidth_gb_s']} GB/s")
    print("streams  TTFA p50/p95  RTF      audio s/s  gap p95  underruns  stop p50/p95")
    for n, row in result["streams"].items():
        print(
            f"{n:>7}  {row['ttfa_ms_p50']:.0f}/{row['ttfa_ms_p95']:.0f} ms  {row['rtf_per_stream']:<7}  "
            f"{row['audio_s_per_s']:<9}  {row['gap_ms_p95']:<7}  {row['underruns']:<9}  "
            f"{row['stop_ms_p50']}/{row['stop_ms_p95']} ms"
        )
    if result.get("vram_gb"):
        print(f"VRAM {result['vram_gb']} GB with {result['max_streams']} slots")
    if "upstream" in result:
        _report_upstream(result)


def _report_upstream(result: dict[str, Any]) -> None:
    ours, counts = result["frame"]["ms"], result["frame"]["counts"]
    theirs = [each["llm"]["frame_ms_median"] for each in result["upstream"]]
    codec = [each["codec"]["frame_ms_median"] for each in result["upstream"]]
    print("                      upstream (before, after)   ours      ratio")
    for name, pair, own in (("LLM frame", theirs, ours["language_model"]), ("codec step", codec, ours["codec"])):
        print(f"  {name:<12} ms     {pair[0]:>9} {pair[1]:>9}      {own:>9}   {statistics.mean(pair) / own:.2f}x")
    if counts:
        upstream_counts = result["upstream"][0]["llm"]["counts"]
        for name in ("ops", "ops_not_views", "linear", "attention", "host_syncs", "is_nonzero", "item"):
            print(f"  {name:<19} {upstream_counts[name]:>9}                {counts[name]:>9}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes out/firered-<date>.json."""
    parser = argparse.ArgumentParser(description="Times the FireRedTTS-2 engine on random weights.")
    parser.add_argument("--random", action="store_true", required=True, help="random weights (no others are timed)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the LLM; bfloat16 on a card")
    parser.add_argument("--tiny", action="store_true", help="real depth, tiny widths")
    parser.add_argument("--streams", default="1,4", help="numbers of streams at once, as 1,4,16")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5, help="of the single stream")
    parser.add_argument("--int8-depth", action="store_true")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--upstream", nargs="?", type=Path, const=ORACLE_PYTHON, help="interpreter that has it")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.upstream and not options.upstream.exists():
        parser.error(f"{options.upstream} is missing: tests/oracle/README.md says how to make it")
    report_of_run(options)


def report_of_run(options: argparse.Namespace) -> None:
    """One run: upstream, ours, upstream again."""
    numbers = [int(n) for n in options.streams.split(",")]
    compared = [upstream(options)] if options.upstream else []
    with build(options, max(numbers)) as engine:
        result: dict[str, Any] = {
            "date": date.today().isoformat(),
            "device": _device_name(options.device),
            "size": "tiny" if options.tiny else "full-size",
            "dtype": options.dtype + (", int8 depth" if options.int8_depth else ""),
            "max_streams": max(numbers),
            "floor": byte_floor(engine),
            "frame": parts_of_a_frame(engine, options.frames),
            "streams": {
                n: one_stream(engine, options.repeats, options.frames) if n == 1 else talk(engine, n, options.frames)
                for n in numbers
            },
        }
        if options.device.startswith("cuda"):
            result["vram_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    if compared:
        result["upstream"] = [*compared, upstream(options)]
    report(result)
    OUT.mkdir(exist_ok=True)
    path = OUT / f"firered-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
