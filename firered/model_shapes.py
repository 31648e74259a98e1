"""Shapes of the language model and of the codec. The defaults are those of the published checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

# The audio vocabulary ends with three special ids that have an embedding and a logit but no codebook entry.
N_SPECIAL_AUDIO_IDS = 3

# The encoders see audio in independent chunks of this length, zero-padded (upstream codec/model.py).
ENCODER_CHUNK_SECONDS = 6


@dataclass(frozen=True, slots=True)
class StackConfig:
    """One stack of Qwen2 decoder blocks."""

    n_layers: int
    width: int
    n_heads: int
    n_kv_heads: int
    ffn_width: int
    max_positions: int = 4096
    norm_eps: float = 1e-6
    rope_base: float = 1e6

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.n_heads

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_width


# Qwen2.5's sizes, and the 200 M cut that is the depth decoder. The published checkpoints use qwen-1.5b and qwen-200m.
FLAVORS = {
    "qwen-200m": StackConfig(n_layers=4, width=1536, n_heads=12, n_kv_heads=2, ffn_width=8960),
    "qwen-500m": StackConfig(n_layers=24, width=896, n_heads=14, n_kv_heads=2, ffn_width=4864),
    "qwen-1.5b": StackConfig(n_layers=28, width=1536, n_heads=12, n_kv_heads=2, ffn_width=8960),
    "qwen-3b": StackConfig(n_layers=36, width=2048, n_heads=16, n_kv_heads=2, ffn_width=11008),
    "qwen-7b": StackConfig(n_layers=28, width=3584, n_heads=28, n_kv_heads=4, ffn_width=18944),
}


@dataclass(frozen=True, slots=True)
class LlmConfig:
    """The backbone, the depth decoder of a frame's further codebooks, and the vocabularies."""

    backbone: StackConfig = FLAVORS["qwen-1.5b"]
    decoder: StackConfig = FLAVORS["qwen-200m"]
    text_vocab_size: int = 151936
    audio_vocab_size: int = 2051
    n_codebooks: int = 16

    @property
    def codebook_size(self) -> int:
        """Codes that have a codebook entry; the ids from here on are the special ones."""
        return self.audio_vocab_size - N_SPECIAL_AUDIO_IDS


@dataclass(frozen=True, slots=True)
class MelConfig:
    """Log-mel front end, the same for both encoders."""

    sample_rate: int = 16000
    n_mels: int = 128
    n_fft: int = 400
    hop_length: int = 160
    f_min: float = 0.0
    f_max: float = 8000.0


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """A Whisper encoder: two convolutions, stored positions, transformer blocks."""

    n_mels: int
    width: int
    n_layers: int
    n_heads: int
    ffn_width: int
    max_positions: int = 1500

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.n_heads


@dataclass(frozen=True, slots=True)
class AdaptorConfig:
    """Transformer blocks between two linear layers."""

    in_width: int
    width: int
    out_width: int
    n_layers: int
    n_heads: int
    ffn_width: int

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.n_heads


@dataclass(frozen=True, slots=True)
class DownsampleConfig:
    """Gated convolution from 50 Hz to one token (12.5 Hz): `factor` frames become one."""

    width: int = 1536
    factor: int = 4

    @property
    def inner_width(self) -> int:
        """Width of `factor` frames side by side."""
        return self.width * self.factor


@dataclass(frozen=True, slots=True)
class RvqConfig:
    """Residual vector quantizer: `width` is that of the residual."""

    in_width: int = 1536
    width: int = 768
    n_quantizers: int = 16
    codebook_size: int = 2048
    codebook_width: int = 512


@dataclass(frozen=True, slots=True)
class UpsampleConfig:
    """One token to `factor` latents."""

    width: int = 768
    factor: int = 4

    @property
    def inner_width(self) -> int:
        """Width between the linear layer and the transposed convolution."""
        return self.width * self.factor


@dataclass(frozen=True, slots=True)
class AcousticDecoderConfig:
    """Causal transformer vocoder with an inverse STFT of `n_fft` = window = 4 hops."""

    width: int = 768
    n_layers: int = 12
    n_heads: int = 12
    hop_length: int = 240

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.n_heads

    @property
    def ffn_width(self) -> int:
        """Width inside the feed-forward layers: upstream's default for a block, which no file sets here."""
        return 4 * self.width

    @property
    def n_fft(self) -> int:
        """Window length in samples."""
        return 4 * self.hop_length


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """All parts of the codec. `semantic_decoder` is a training part: only its keys in the file are known."""

    mel: MelConfig = MelConfig()
    ssl: EncoderConfig = EncoderConfig(n_mels=128, width=1280, n_layers=32, n_heads=20, ffn_width=5120)
    ssl_adaptor: AdaptorConfig = AdaptorConfig(1280, 768, 768, n_layers=4, n_heads=12, ffn_width=3072)
    acoustic_encoder: EncoderConfig = EncoderConfig(n_mels=128, width=768, n_layers=12, n_heads=12, ffn_width=3072)
    downsample: DownsampleConfig = DownsampleConfig()
    rvq: RvqConfig = RvqConfig()
    upsample: UpsampleConfig = UpsampleConfig()
    acoustic_decoder: AcousticDecoderConfig = AcousticDecoderConfig()
    semantic_decoder: AdaptorConfig = AdaptorConfig(768, 768, 1280, n_layers=4, n_heads=12, ffn_width=3072)
