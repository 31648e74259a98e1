"""Names and shapes of the tensors in a checkpoint: what the engine takes, and in which forms a file may hold it.

Upstream's files name their tensors as its modules are nested; the engine takes them by the same names, except that
- a weight-normed convolution is one `weight` (w = g v / |v|, the norm over all dimensions but the first), and
- the heads and the audio embeddings lack the rows of the 3 special audio ids, which no codebook has an entry for.
A file may hold either form (upstream's, or that of the convert script), so every tensor has a list of forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firered.config import AdaptorConfig, CodecConfig, EncoderConfig, LlmConfig, StackConfig

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

# Both namings of torch's weight norm: parametrizations (torch >= 2.0), and the older hook. (g, v) each.
_WEIGHT_NORM_NAMES = (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("_g", "_v"))


@dataclass(frozen=True, slots=True)
class Form:
    """One way of holding a tensor: the file's keys with their shapes, and what makes the tensor of them."""

    stored: Shapes
    build: Callable[..., Tensor]


@dataclass(slots=True)
class KeyTable:
    """What a file must and may hold: the shape of each tensor taken, its forms, and training's tensors by name.

    The first form of a tensor is what the convert script writes, the second what upstream's current code writes.
    """

    shapes: Shapes = field(default_factory=dict)
    forms: dict[str, tuple[Form, ...]] = field(default_factory=dict)
    skipped: Shapes = field(default_factory=dict)

    def add(self, key: str, *shape: int) -> None:
        """A tensor that every file holds as it is."""
        self._add(key, shape)

    def add_cut(self, key: str, shape: Shape, cut: Shape, build: Callable[[Tensor], Tensor]) -> None:
        """A tensor of `shape` upstream, of which `build` takes the rows without special ids: `cut`."""
        self._add(key, cut, Form({key: shape}, build))

    def add_weight_normed(self, key: str, *shape: int) -> None:
        """The weight `key` of a convolution under weight norm."""
        forms = []
        for g_name, v_name in _WEIGHT_NORM_NAMES:
            g, v = (_renamed(key, name) for name in (g_name, v_name))
            forms.append(Form({g: (shape[0], *(1 for _ in shape[1:])), v: shape}, fuse_weight_norm))
        self._add(key, shape, *forms)

    def skip(self, key: str, *shape: int) -> None:
        """A tensor of upstream's file that only training needs."""
        self.skipped[key] = shape

    def official_shapes(self) -> Shapes:
        """All keys of upstream's own file: the second form of everything that has one, and the skipped ones."""
        stored: Shapes = {}
        for forms in self.forms.values():
            stored |= forms[min(1, len(forms) - 1)].stored
        return stored | self.skipped

    def _add(self, key: str, shape: Shape, *other_forms: Form) -> None:
        self.shapes[key] = shape
        self.forms[key] = (Form({key: shape}, as_stored), *other_forms)


def as_stored(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def fuse_weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """G v / |v| in fp32; `g` (out, 1, ...), `v` (out, in, ...), the norm over all dimensions but the first."""
    g, v = g.float(), v.float()
    norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)  # (out, 1, ...)
    fused: Tensor = g * (v / norm)
    return fused


def llm_shapes(config: LlmConfig) -> Shapes:
    """Name and shape of each tensor the language model takes."""
    return llm_table(config).shapes


def codec_shapes(config: CodecConfig) -> Shapes:
    """Name and shape of each tensor the codec takes."""
    return codec_table(config).shapes


def llm_table(config: LlmConfig) -> KeyTable:
    """The tensors of `llm_posttrain.pt` and `llm_pretrain.pt`. Linear weights are (out, in)."""
    table = KeyTable()
    _add_stack(table, "backbone", config.backbone)
    _add_stack(table, "decoder", config.decoder)
    width, decoder_width = config.backbone.width, config.decoder.width
    n_codebooks, vocab, size = config.n_codebooks, config.audio_vocab_size, config.codebook_size
    table.add("text_embeddings.weight", config.text_vocab_size, width)
    # Row = code + vocab * codebook; after the cut, code + size * codebook.
    table.add_cut(
        "audio_embeddings.weight",
        (n_codebooks * vocab, width),
        (n_codebooks * size, width),
        lambda rows: rows.view(n_codebooks, vocab, width)[:, :size].reshape(-1, width),
    )
    table.add("projection.weight", decoder_width, width)
    table.add_cut("codebook0_head.weight", (vocab, width), (size, width), lambda head: head[:size])
    # Used as hidden @ audio_head[i - 1]: (codebook, in, out).
    further = n_codebooks - 1
    stored, cut = (further, decoder_width, vocab), (further, decoder_width, size)
    table.add_cut("audio_head", stored, cut, lambda heads: heads[..., :size])
    table.skip("text_head.weight", config.text_vocab_size, width)
    return table


def codec_table(config: CodecConfig) -> KeyTable:
    """The tensors of `codec.pt`. Convolutions are (out, in, kernel), transposed ones (in, out, kernel)."""
    table = KeyTable()
    _add_encoder(table, "ssl", config.ssl)
    _add_adaptor(table.add, "ssl_adaptor", config.ssl_adaptor)
    _add_encoder(table, "acoustic_encoder", config.acoustic_encoder)
    _add_downsample(table, config)
    _add_rvq(table, config)
    _add_linear(table.add, "upsample.in_proj", config.upsample.inner_width, config.upsample.width)
    table.add("upsample.up_conv.weight", config.upsample.inner_width, config.upsample.width, config.upsample.factor)
    _add_acoustic_decoder(table, config)
    _add_adaptor(table.skip, "semantic_decoder", config.semantic_decoder)
    return table


_Add = Callable[..., None]


def _add_stack(table: KeyTable, name: str, stack: StackConfig) -> None:
    """Qwen2 decoder blocks: q, k, v with bias, everything else without."""
    width, ffn_width = stack.width, stack.ffn_width
    for layer in (f"{name}.layers.{n}" for n in range(stack.n_layers)):
        _add_linear(table.add, f"{layer}.attn.q_proj", width, width)
        _add_linear(table.add, f"{layer}.attn.k_proj", stack.kv_width, width)
        _add_linear(table.add, f"{layer}.attn.v_proj", stack.kv_width, width)
        table.add(f"{layer}.attn.output_proj.weight", width, width)
        table.add(f"{layer}.mlp.w1.weight", ffn_width, width)  # gate
        table.add(f"{layer}.mlp.w3.weight", ffn_width, width)  # up
        table.add(f"{layer}.mlp.w2.weight", width, ffn_width)  # down
        table.add(f"{layer}.sa_norm.scale", width)
        table.add(f"{layer}.mlp_norm.scale", width)
    table.add(f"{name}.norm.scale", width)


def _add_linear(add: _Add, name: str, n_out: int, n_in: int) -> None:
    add(f"{name}.weight", n_out, n_in)
    add(f"{name}.bias", n_out)


def _add_conv(add: _Add, name: str, n_out: int, n_in: int, kernel: int) -> None:
    add(f"{name}.weight", n_out, n_in, kernel)
    add(f"{name}.bias", n_out)


def _add_norm(add: _Add, name: str, width: int) -> None:
    add(f"{name}.weight", width)
    add(f"{name}.bias", width)


def _add_block(add: _Add, name: str, width: int, ffn_width: int) -> None:
    """Whisper's transformer block: k_proj is the one linear layer without bias."""
    for projection in ("q_proj", "v_proj", "out_proj"):
        _add_linear(add, f"{name}.self_attn.{projection}", width, width)
    add(f"{name}.self_attn.k_proj.weight", width, width)
    _add_norm(add, f"{name}.self_attn_layer_norm", width)
    _add_linear(add, f"{name}.fc1", ffn_width, width)
    _add_linear(add, f"{name}.fc2", width, ffn_width)
    _add_norm(add, f"{name}.final_layer_norm", width)


def _add_encoder(table: KeyTable, name: str, encoder: EncoderConfig) -> None:
    _add_conv(table.add, f"{name}.conv1", encoder.width, encoder.n_mels, 3)
    _add_conv(table.add, f"{name}.conv2", encoder.width, encoder.width, 3)
    table.add(f"{name}.embed_positions.weight", encoder.max_positions, encoder.width)
    for n in range(encoder.n_layers):
        _add_block(table.add, f"{name}.layers.{n}", encoder.width, encoder.ffn_width)
    _add_norm(table.add, f"{name}.layer_norm", encoder.width)


def _add_adaptor(add: _Add, name: str, adaptor: AdaptorConfig) -> None:
    _add_linear(add, f"{name}.in_proj", adaptor.width, adaptor.in_width)
    for n in range(adaptor.n_layers):
        _add_block(add, f"{name}.layers.{n}", adaptor.width, adaptor.ffn_width)
    _add_norm(add, f"{name}.layer_norm", adaptor.width)
    _add_linear(add, f"{name}.out_proj", adaptor.out_width, adaptor.width)


def _add_downsample(table: KeyTable, config: CodecConfig) -> None:
    width, inner, factor = config.downsample.width, config.downsample.inner_width, config.downsample.factor
    table.add("downsample.gate_proj.weight", inner, width, factor)
    table.add("downsample.up_proj.weight", inner, width, factor)
    table.add("downsample.down_proj.weight", inner, inner)
    _add_norm(table.add, "downsample.layer_norm", inner)
    _add_linear(table.add, "downsample.out_proj", width, inner)


def _add_rvq(table: KeyTable, config: CodecConfig) -> None:
    """Weight-normed 1x1 convolutions around 16 codebooks, which are buffers beside those of their training."""
    rvq = config.rvq
    table.add_weight_normed("rvq.input_proj.weight", rvq.width, rvq.in_width, 1)
    table.add("rvq.input_proj.bias", rvq.width)
    for name in (f"rvq.quantizers.{n}" for n in range(rvq.n_quantizers)):
        table.add_weight_normed(f"{name}.in_project.weight", rvq.codebook_width, rvq.width, 1)
        table.add(f"{name}.in_project.bias", rvq.codebook_width)
        table.add_weight_normed(f"{name}.out_project.weight", rvq.width, rvq.codebook_width, 1)
        table.add(f"{name}.out_project.bias", rvq.width)
        table.add(f"{name}.codebook", rvq.codebook_size, rvq.codebook_width)
        table.skip(f"{name}.embed_avg", rvq.codebook_size, rvq.codebook_width)
        table.skip(f"{name}.cluster_size", rvq.codebook_size)
        table.skip(f"{name}.inited", 1)


def _add_acoustic_decoder(table: KeyTable, config: CodecConfig) -> None:
    decoder, name = config.acoustic_decoder, "acoustic_decoder"
    width, backbone = decoder.width, f"{name}.backbone"
    for n in (0, 2):  # 1 and 3 are the activations
        _add_conv(table.add, f"{name}.upsample_conv.{n}", width, width, 3)
    _add_conv(table.add, f"{backbone}.in_proj", width, width, 7)
    for net in (f"{backbone}.{part}.{n}" for part in ("prior_net", "post_net") for n in (0, 1)):
        _add_norm(table.add, f"{net}.block1.1", width)
        _add_conv(table.add, f"{net}.block1.4", width, width, 3)
        _add_norm(table.add, f"{net}.block2.1", width)
        _add_conv(table.add, f"{net}.block2.5", width, width, 3)
    for n in range(decoder.n_layers):
        _add_block(table.add, f"{backbone}.transformers.{n}", width, decoder.ffn_width)
    _add_norm(table.add, f"{backbone}.final_norm", width)
    # "isift" is upstream's spelling. Out: log magnitudes, then phases, of n_fft / 2 + 1 bins each.
    _add_linear(table.add, f"{name}.isift.out", decoder.n_fft + 2, width)
    table.add(f"{name}.isift.istft.window", decoder.n_fft)


def _renamed(key: str, name: str) -> str:
    """`conv.weight` -> `conv.<name>`, or `conv.weight_g` for the old names, which are suffixes."""
    return key + name if name.startswith("_") else key.removesuffix("weight") + name
