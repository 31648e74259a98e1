"""The two configuration files of a model directory, read into the shapes of `model_shapes.py`.

The defaults are the published values (`config_llm.json`, `config_codec.json`); a file may replace each of them, so a
tiny model for tests is just another file. Whisper's encoder (`ssl`) is not in the published file: it is
Whisper-large-v3's.
"""

from __future__ import annotations

from pathlib import Path

from firered.config_section import Section, read_json_object
from firered.errors import CheckpointError
from firered.model_shapes import (
    ENCODER_CHUNK_SECONDS,
    FLAVORS,
    N_SPECIAL_AUDIO_IDS,
    AcousticDecoderConfig,
    AdaptorConfig,
    CodecConfig,
    DownsampleConfig,
    EncoderConfig,
    LlmConfig,
    MelConfig,
    RvqConfig,
    StackConfig,
    UpsampleConfig,
)

__all__ = [
    "CODEC_CONFIG_NAME",
    "ENCODER_CHUNK_SECONDS",
    "FLAVORS",
    "LLM_CONFIG_NAME",
    "N_SPECIAL_AUDIO_IDS",
    "AcousticDecoderConfig",
    "AdaptorConfig",
    "CodecConfig",
    "DownsampleConfig",
    "EncoderConfig",
    "LlmConfig",
    "MelConfig",
    "RvqConfig",
    "StackConfig",
    "UpsampleConfig",
    "read_codec_config",
    "read_llm_config",
    "require_same_codes",
]

LLM_CONFIG_NAME = "config_llm.json"
CODEC_CONFIG_NAME = "config_codec.json"


def read_llm_config(path: Path) -> LlmConfig:
    """The shapes in a `config_llm.json` (also one of the fine-tuning scripts, whose top key is "models")."""
    section = read_json_object(path).first_section("llm_models", "models")
    published = LlmConfig()
    audio_vocab_size = section.count("audio_vocab_size", published.audio_vocab_size)
    if audio_vocab_size <= N_SPECIAL_AUDIO_IDS:
        at_least = f"more than the {N_SPECIAL_AUDIO_IDS} special ids"
        section.fail("audio_vocab_size", "is out of range", expected=at_least, found=str(audio_vocab_size))
    n_codebooks = section.count("audio_num_codebooks", published.n_codebooks)
    if n_codebooks < 2:
        section.fail("audio_num_codebooks", "is out of range", expected="at least 2", found=str(n_codebooks))
    return LlmConfig(
        backbone=_stack(section, "backbone", "qwen-1.5b"),
        decoder=_stack(section, "decoder", "qwen-200m"),
        text_vocab_size=section.count("text_vocab_size", published.text_vocab_size),
        audio_vocab_size=audio_vocab_size,
        n_codebooks=n_codebooks,
    )


def read_codec_config(path: Path) -> CodecConfig:
    """The shapes in a `config_codec.json`; an "ssl" object, which the published file lacks, replaces Whisper's."""
    section = read_json_object(path).first_section("codec")
    published = CodecConfig()
    config = CodecConfig(
        mel=_mel(section.section("acoustic_encoder")),
        ssl=_encoder(section.section("ssl"), published.ssl),
        ssl_adaptor=_adaptor(section.section("ssl_adaptor"), published.ssl_adaptor),
        acoustic_encoder=_encoder(section.section("acoustic_encoder"), published.acoustic_encoder),
        downsample=_downsample(section.section("downsample")),
        rvq=_rvq(section.section("rvq")),
        upsample=_upsample(section.section("upsample")),
        acoustic_decoder=_acoustic_decoder(section.section("acoustic_decoder")),
        semantic_decoder=_adaptor(section.section("semantic_decoder"), published.semantic_decoder),
    )
    _require_parts_fit(section, config)
    return config


def require_same_codes(llm: LlmConfig, codec: CodecConfig, directory: Path) -> None:
    """Fail unless the language model speaks the codec's codes: as many codebooks, each as large."""
    file = directory / CODEC_CONFIG_NAME
    pairs = {
        "codec.rvq.num_quantizers": (llm.n_codebooks, codec.rvq.n_quantizers),
        "codec.rvq.codebook_size": (llm.codebook_size, codec.rvq.codebook_size),
    }
    for key, (expected, found) in pairs.items():
        if expected != found:
            problem = f"does not fit {LLM_CONFIG_NAME}"
            raise CheckpointError(file, problem, key=key, expected=str(expected), found=str(found))


def _stack(section: Section, part: str, default_flavor: str) -> StackConfig:
    """The `part`_shape object where there is one, else the shapes that the name in `part`_flavor stands for."""
    if f"{part}_shape" in section:
        return _stack_shape(section.section(f"{part}_shape"))
    name = section.string(f"{part}_flavor", default_flavor)
    if name not in FLAVORS:
        section.fail(f"{part}_flavor", "is unknown", expected=" or ".join(FLAVORS), found=repr(name))
    return FLAVORS[name]


def _stack_shape(section: Section) -> StackConfig:
    width, n_heads, n_kv_heads = section.count("width"), section.count("n_heads"), section.count("n_kv_heads")
    section.require_divides("n_heads", n_heads, "width", width)
    section.require_divides("n_kv_heads", n_kv_heads, "n_heads", n_heads)
    if (width // n_heads) % 2:  # rotary positions turn the two halves of a head
        section.fail("n_heads", "gives heads of odd width", expected="heads of even width", found=str(width // n_heads))
    return StackConfig(
        n_layers=section.count("n_layers"),
        width=width,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_width=section.count("ffn_width"),
        max_positions=section.count("max_positions", 4096),
        norm_eps=section.number("norm_eps", 1e-6, minimum=0.0),
        rope_base=section.number("rope_base", 1e6, minimum=0.0),
    )


def _mel(section: Section) -> MelConfig:
    default = MelConfig()
    config = MelConfig(
        sample_rate=section.count("sampling_rate", default.sample_rate),
        n_mels=section.count("num_mels", default.n_mels),
        n_fft=section.count("n_fft", default.n_fft),
        hop_length=section.count("hop_length", default.hop_length),
        f_min=section.number("fmin", default.f_min, minimum=0.0, inclusive=True),
        f_max=section.number("fmax", default.f_max, minimum=0.0),
    )
    if not config.f_min < config.f_max <= config.sample_rate / 2:
        expected = f"above fmin and at most {config.sample_rate / 2:g}"
        section.fail("fmax", "is out of range", expected=expected, found=f"{config.f_max:g}")
    return config


def _heads(section: Section, width: int, default: int) -> int:
    n_heads = section.count("num_heads", default)
    section.require_divides("num_heads", n_heads, "embed_dim", width)
    return n_heads


def _encoder(section: Section, default: EncoderConfig) -> EncoderConfig:
    width = section.count("embed_dim", default.width)
    return EncoderConfig(
        n_mels=section.count("num_mels", default.n_mels),
        width=width,
        n_layers=section.count("num_layers", default.n_layers),
        n_heads=_heads(section, width, default.n_heads),
        ffn_width=section.count("ffn_dim", default.ffn_width),
        max_positions=section.count("max_positions", default.max_positions),
    )


def _adaptor(section: Section, default: AdaptorConfig) -> AdaptorConfig:
    width = section.count("embed_dim", default.width)
    return AdaptorConfig(
        in_width=section.count("in_dim", default.in_width),
        width=width,
        out_width=section.count("out_dim", default.out_width),
        n_layers=section.count("num_layers", default.n_layers),
        n_heads=_heads(section, width, default.n_heads),
        ffn_width=section.count("ffn_dim", default.ffn_width),
    )


def _downsample(section: Section) -> DownsampleConfig:
    default = DownsampleConfig()
    return DownsampleConfig(section.count("embed_dim", default.width), section.count("avg_pooler", default.factor))


def _rvq(section: Section) -> RvqConfig:
    default = RvqConfig()
    config = RvqConfig(
        in_width=section.count("input_dim", default.in_width),
        width=section.count("rvq_dim", default.width),
        n_quantizers=section.count("num_quantizers", default.n_quantizers),
        codebook_size=section.count("codebook_size", default.codebook_size),
        codebook_width=section.count("codebook_dim", default.codebook_width),
    )
    # A projection exists in the file only between different widths; all models known have these two and no third.
    for key, width in (("input_dim", config.in_width), ("codebook_dim", config.codebook_width)):
        if width == config.width:
            section.fail(key, "leaves no projection", expected=f"other than rvq_dim ({config.width})", found=str(width))
    section.require_equal("output_dim", section.count("output_dim", config.width), "rvq_dim", config.width)
    return config


def _upsample(section: Section) -> UpsampleConfig:
    default = UpsampleConfig()
    return UpsampleConfig(section.count("embed_dim", default.width), section.count("stride", default.factor))


def _acoustic_decoder(section: Section) -> AcousticDecoderConfig:
    if not section.flag("causal", True):
        section.fail("causal", "is not supported", expected="true (a decoder that can stream)", found="false")
    default = AcousticDecoderConfig()
    width = section.count("embed_dim", default.width)
    return AcousticDecoderConfig(
        width=width,
        n_layers=section.count("num_layers", default.n_layers),
        n_heads=_heads(section, width, default.n_heads),
        hop_length=section.count("hop_length", default.hop_length),
    )


def _require_parts_fit(section: Section, config: CodecConfig) -> None:
    """Each part takes what the part before it gives."""
    features = config.ssl_adaptor.out_width + config.acoustic_encoder.width
    section.require_equal("ssl.num_mels", config.ssl.n_mels, "acoustic_encoder.num_mels", config.mel.n_mels)
    section.require_equal("ssl_adaptor.in_dim", config.ssl_adaptor.in_width, "ssl.embed_dim", config.ssl.width)
    n_frames = ENCODER_CHUNK_SECONDS * config.mel.sample_rate // config.mel.hop_length // 2  # conv2 has stride 2
    for name, encoder in (("ssl", config.ssl), ("acoustic_encoder", config.acoustic_encoder)):
        if encoder.max_positions < n_frames:
            expected, found = f"at least {n_frames}", str(encoder.max_positions)
            section.fail(f"{name}.max_positions", "is too small for one chunk", expected=expected, found=found)
    after_concat = "ssl_adaptor.out_dim + acoustic_encoder.embed_dim"
    section.require_equal("downsample.embed_dim", config.downsample.width, after_concat, features)
    section.require_equal("rvq.input_dim", config.rvq.in_width, "downsample.embed_dim", config.downsample.width)
    section.require_equal("upsample.embed_dim", config.upsample.width, "rvq.output_dim", config.rvq.width)
    decoder_width = config.acoustic_decoder.width
    section.require_equal("acoustic_decoder.embed_dim", decoder_width, "upsample.embed_dim", config.upsample.width)
