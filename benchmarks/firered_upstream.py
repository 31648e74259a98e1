"""Time and dispatched operations of upstream's FireRedTTS-2, frame by frame, on random weights.

Measuring needs the oracle's virtual environment (tests/oracle/README.md), so another interpreter does it:
`measured_by(python, "--part", "llm", "--size", "deep")` runs this module there and gives back its one JSON line, which
`~/.cache/voicepod/oracle-venv/bin/python -m benchmarks.firered_upstream --json` prints in a shell. Sizes: `deep` has
the real number of layers at width 64 (LLM) or 48 (codec), for CPUs; `full` has the published widths.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
N_CODEBOOKS = 16
MS_PER_FRAME = 80.0  # of sound

# Published shapes, from config_llm.json, config_codec.json and upstream's flavours.
FULL_LLM = {"audio_vocab_size": 2051, "text_vocab_size": 151_936}
FULL_STACK = {"width": 1536, "n_heads": 12, "n_kv_heads": 2, "ffn_width": 8960}
FULL_CODEC: dict[str, dict[str, Any]] = {
    "rvq": {
        "input_dim": 1536,
        "rvq_dim": 768,
        "output_dim": 768,
        "num_quantizers": N_CODEBOOKS,
        "codebook_size": 2048,
        "codebook_dim": 512,
    },
    "upsample": {"embed_dim": 768, "stride": 4},
    "acoustic_decoder": {"embed_dim": 768, "num_layers": 12, "num_heads": 12, "hop_length": 240, "causal": True},
}
DEEP_LLM = {"audio_vocab_size": 67, "text_vocab_size": 512}
DEEP_STACK = {"width": 64, "n_heads": 4, "n_kv_heads": 2, "ffn_width": 128}
DEEP_CODEC: dict[str, dict[str, Any]] = {
    "rvq": {**FULL_CODEC["rvq"], "input_dim": 56, "rvq_dim": 48, "output_dim": 48, "codebook_size": 64}
    | {"codebook_dim": 16},
    "upsample": {"embed_dim": 48, "stride": 4},
    "acoustic_decoder": {**FULL_CODEC["acoustic_decoder"], "embed_dim": 48, "num_heads": 3},
}


def measured_by(python: str | Path, *arguments: str) -> dict[str, Any]:
    """What this module prints when the given interpreter runs it; its failure is a CalledProcessError."""
    command = [str(python), "-m", "benchmarks.firered_upstream", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_llm(size: str, device: str, dtype_name: str, n_rows: int, n_frames: int) -> dict[str, Any]:
    """Prefill of `n_rows` text rows, then frames exactly as upstream's own loop makes them, its EOS check included."""
    import torch

    model = _build_llm(size, device, getattr(torch, dtype_name))
    text_column = torch.zeros(1, 1, dtype=torch.int64, device=device)
    ids = torch.zeros(1, n_rows, N_CODEBOOKS + 1, dtype=torch.int64, device=device)
    ids[..., -1] = torch.arange(n_rows) % 500
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[..., -1] = True
    state = (ids, mask, torch.arange(n_rows, device=device)[None])

    def frame() -> None:
        nonlocal state
        ids, mask, positions = state
        codes = model.generate_frame(ids, mask, positions, 0.9, 20)
        torch.all(codes == 0).item()
        ids = torch.cat([codes, text_column], dim=1)[:, None]
        mask = torch.cat([torch.ones_like(codes).bool(), text_column.bool()], dim=1)[:, None]
        state = ids, mask, positions[:, -1:] + 1

    prompt = state
    with torch.inference_mode():
        first_frame_ms = []
        for _ in range(3):  # two warm-ups
            model.reset_caches()
            state = prompt
            first_frame_ms += _timed(frame, 1, device)
        return {"first_frame_ms": round(first_frame_ms[-1], 2), **_frames(frame, n_frames, device)}


def _build_llm(size: str, device: str, dtype: Any) -> Any:
    import torch

    from tests.oracle.upstream import flavour, upstream_module

    sizes, stack = (FULL_LLM, FULL_STACK) if size == "full" else (DEEP_LLM, DEEP_STACK)
    llm = upstream_module("llm.llm")
    for name, n_layers in {"backbone": 28, "decoder": 4}.items():
        # The word embedding inside the stack is thrown away by upstream: a small one saves memory and time.
        upstream_module("llm.modules").FLAVORS[name] = flavour({**stack, "n_layers": n_layers}, 512)
    shape = {"backbone_flavor": "backbone", "decoder_flavor": "decoder", "audio_num_codebooks": N_CODEBOOKS, **sizes}
    with torch.device(device):
        model = llm.Model(llm.ModelArgs(decoder_loss_weight=0.6, use_text_loss=True, **shape))
        torch.nn.init.normal_(model.audio_head, std=0.02)
    model = model.to(dtype).eval()  # after the fact, as upstream does: its rotary tables are cast too
    model.setup_caches(1)
    return model


def measure_codec(size: str, device: str, n_frames: int) -> dict[str, Any]:
    """`decode_one_token` in fp32, upstream's only type for the codec; its caches grow with every token."""
    import torch

    codec = _build_codec(FULL_CODEC if size == "full" else DEEP_CODEC, device)
    n_codes = (FULL_CODEC if size == "full" else DEEP_CODEC)["rvq"]["codebook_size"]
    token = torch.randint(0, n_codes, (1, N_CODEBOOKS, 1), device=device)
    cache: dict[str, Any] = {}

    def frame() -> None:
        nonlocal cache
        audio, cache = codec.decode_one_token(token, cache, last_token=False)
        audio.cpu()

    with torch.inference_mode():
        return _frames(frame, n_frames, device)


def _build_codec(config: dict[str, dict[str, Any]], device: str) -> Any:
    """The decoding half only."""
    import torch

    from tests.oracle.upstream import upstream_module

    models = upstream_module("codec.model")
    encoding = dict.fromkeys(("ssl", "ssl_adaptor", "acoustic_encoder", "downsample", "semantic_decoder"))
    with torch.device(device):
        codec = models.RedCodec(
            rvq=models.ResidualVQ(**config["rvq"]),
            upsample=models.UpConv(**config["upsample"]),
            acoustic_decoder=models.AcousticDecoder(**config["acoustic_decoder"]),
            **encoding,
        )
    return models.RedCodecInfer(codec).eval()


def _frames(frame: Callable[[], None], n_frames: int, device: str) -> dict[str, Any]:
    """Warm-up, timed frames, then one counted frame: counting itself costs time."""
    _timed(frame, 3, device)
    spent_ms = _timed(frame, n_frames, device)
    median = statistics.median(spent_ms)
    return {
        "n_frames": n_frames,
        "frame_ms_median": round(median, 3),
        "frame_ms_p95": round(sorted(spent_ms)[max(0, -(-95 * n_frames // 100) - 1)], 3),
        "frame_ms_mean": round(statistics.fmean(spent_ms), 3),
        "rtf": round(median / MS_PER_FRAME, 4),
        "counts": counted(frame),
    }


def _timed(frame: Callable[[], None], n_frames: int, device: str) -> list[float]:
    """Milliseconds of each call, the device's work included."""
    import torch

    spent_ms = []
    for _ in range(n_frames):
        begin = time.perf_counter()
        frame()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent_ms.append(1000 * (time.perf_counter() - begin))
    return spent_ms


def counted(frame: Callable[[], None]) -> dict[str, int]:
    """What one call dispatches: `ops` are leaves, `host_syncs` every read of a device value by the host.

    The rest comes from the profiler: operations that are made of others, such as is_nonzero, are no leaves.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: Counter[str] = Counter()
    views: Counter[bool] = Counter()

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[func.overloadpacket.__name__] += 1
            views[func.is_view] += 1
            return func(*args, **(kwargs or {}))

    with Counting():  # type: ignore[no-untyped-call]
        frame()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        frame()
    events = {event.key: event.count for event in profile.key_averages()}
    return {
        "ops": seen.total(),
        "ops_not_views": views[False],
        "host_syncs": events.get("aten::_local_scalar_dense", 0),
        "is_nonzero": events.get("aten::is_nonzero", 0),
        "item": events.get("aten::item", 0),
        "linear": events.get("aten::linear", 0),
        "attention": events.get("aten::scaled_dot_product_attention", 0),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what was measured as JSON."""
    parser = argparse.ArgumentParser(description="Times upstream's FireRedTTS-2 on random weights.")
    parser.add_argument("--part", choices=("llm", "codec"), default="llm")
    parser.add_argument("--size", choices=("deep", "full"), default="deep")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the LLM")
    parser.add_argument("--rows", type=int, default=100, help="of the prompt")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--json", action="store_true", help="one line instead of an indented block")
    options = parser.parse_args(arguments)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.part == "llm":
        measured = measure_llm(options.size, options.device, options.dtype, options.rows, options.frames)
    else:
        measured = measure_codec(options.size, options.device, options.frames)
    about = {"part": options.part, "size": options.size, "device": options.device, "torch": torch.__version__}
    if options.part == "llm":
        about |= {"dtype": options.dtype, "rows": options.rows}
    print(json.dumps({**about, **measured}, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
