"""Codes, intermediate values and sound of upstream's codec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.oracle.recording import Array
from tests.oracle.upstream import load_codec, upstream_module
from tests.support.firered_tiny import speech_like

CACHED_AFTER = 3  # tokens
LONG_SEED = "d"  # of eight tried, the sound whose codes are decided most clearly (smallest_code_margin 5.9e-4)
# What decode_one_token carries over, by its own names.
CACHES = ("up_conv_cache", "bb_conv_cache1", "bb_conv_cache2", "bb_kv_cache", "is_cache")


def codec_cases(directory: Path, codes: Array) -> dict[str, Array]:
    """`codes` (n, 16) are decoded; the sounds that are encoded are made here."""
    codec = load_codec(directory)
    with torch.inference_mode():
        return {
            **_front_end(codec),
            **_encoded(codec, "encode_short", speech_like(8000, "short")),  # 0.5 s: 6.25 frames
            **_encoded(codec, "encode_long", speech_like(112_000, LONG_SEED)),  # 7 s: two chunks of 6 s
            **_decoded(codec, codes),
            **_streamed(codec, codes[:5]),
        }


@contextlib.contextmanager
def _outputs(modules: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Output of each module's latest call, by the given names."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: object, _args: object, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _front_end(codec: Any) -> dict[str, Array]:
    """Log-mels where they differ in kind: start and reflected end of a full chunk, the seam to the zero padding."""
    extract = codec.acoustic_encoder.feature_extractor
    audio = torch.from_numpy(speech_like(112_000, LONG_SEED))
    chunks = torch.stack([audio[:96_000], torch.nn.functional.pad(audio[96_000:], (0, 80_000))])
    mel = extract.extract_fbank(chunks).transpose(1, 2).numpy()  # (2, 600, 128)
    silence = extract.extract_fbank(torch.zeros(1, 96_000)).numpy()
    assert (silence == -1.5).all()
    return {
        "mel/filters": extract.mel_filters.astype(np.float32),
        "mel/first_chunk_start": mel[0, :6],
        "mel/first_chunk_end": mel[0, -6:],
        "mel/second_chunk_seam": mel[1, 96:104],
    }


def _encoded(codec: Any, case: str, audio: Array) -> dict[str, Array]:
    """Codes of all frames; the last chunk's intermediate values in short pieces."""
    parts = {"ssl": codec.ssl.layer_norm, "ssl_adaptor": codec.ssl_adaptor, "acoustic_encoder": codec.acoustic_encoder}
    parts |= {"downsample": codec.downsample, "rvq_input": codec.rvq.input_proj}
    with _outputs(parts) as seen:
        codes, length = codec.encode(torch.from_numpy(audio)[None], batch_size=48)
    assert length.item() == codes.shape[2]
    pieces = {name: value[-1, :5].numpy() for name, value in seen.items() if name != "rvq_input"}
    pieces["rvq_input"] = seen["rvq_input"][-1, :, :5].T.numpy()  # upstream has channels first
    return {f"{case}/codes": codes[0].T.numpy()} | {f"{case}/{name}": value for name, value in pieces.items()}


def _decoded(codec: Any, codes: Array) -> dict[str, Array]:
    decoder = codec.acoustic_decoder
    parts = {"latents": codec.upsample, "upsampled": decoder.upsample_conv, "backbone": decoder.backbone}
    parts |= {"spectrum": decoder.isift.out}
    tokens = torch.from_numpy(codes.T[None].copy())  # (1, 16, n)
    with _outputs(parts) as seen:
        pcm = codec.decode(tokens)[0]
    n_frames = 8 * len(codes)
    return {
        "decode/codes": codes,
        "decode/rvq_output": codec.rvq.decode_codes(tokens.permute(1, 0, 2))[0].T.numpy(),
        "decode/latents": seen["latents"][0].numpy(),
        "decode/upsampled": seen["upsampled"][0, :, :n_frames].T.numpy(),
        "decode/backbone": seen["backbone"][0].numpy(),
        "decode/spectrum": seen["spectrum"][0, :2].numpy(),
        "decode/pcm": pcm.numpy(),
    }


def _streamed(codec: Any, codes: Array) -> dict[str, Array]:
    """One token a call; each also decoded as if it were the last one, for its tail."""
    cache: dict[str, torch.Tensor] = {}
    chunks, tails = [], []
    arrays: dict[str, Array] = {}
    for n, row in enumerate(codes):
        token = torch.from_numpy(row[None, :, None].copy())  # (1, 16, 1)
        ended, _ = codec.decode_one_token(token, cache, last_token=True)
        chunk, cache = codec.decode_one_token(token, cache, last_token=False)
        tails.append(ended[0, -360:].numpy())
        chunks.append(ended[0].numpy() if n == len(codes) - 1 else chunk[0].numpy())
        if n == CACHED_AFTER - 1:
            arrays |= {f"stream/{name}": cache[name][0].numpy() for name in CACHES}
    first = torch.from_numpy(codes[:1].T[None].copy())
    arrays["stream/single_token_pcm"] = codec.decode_one_token(first, {}, last_token=True)[0][0].numpy()
    arrays |= {"stream/codes": codes, "stream/pcm": np.concatenate(chunks), "stream/tails": np.stack(tails)}
    return arrays | {"stream/lengths": np.array([len(chunk) for chunk in chunks])}


def smallest_code_margin(directory: Path, audio: Array) -> float:
    """Least gap between the nearest and second nearest codebook row, of all decisions for `audio`."""
    codec, margins = load_codec(directory), []
    quantizer = upstream_module("codec.rvq").VectorQuantize
    encode_code = quantizer.encode_code

    def watched(self: Any, z: torch.Tensor) -> Any:
        encodings = self.in_project(z).transpose(1, 2)  # (chunks, frames, width)
        distances = torch.cdist(encodings, self.codebook[None]).square().sort(dim=-1).values
        margins.append(float((distances[..., 1] - distances[..., 0]).min()))
        return encode_code(self, z)

    quantizer.encode_code = watched
    try:
        with torch.inference_mode():
            codec.encode(torch.from_numpy(audio)[None], batch_size=48)
    finally:
        quantizer.encode_code = encode_code
    return min(margins)
