"""Names and shapes of every tensor in an official FireRedTTS-2 file, those that the engine never reads included.

They are written down a second time on purpose: from upstream's state dicts, not from the tables of `firered`.
"""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[int, ...]]


def llm_state_shapes(config: dict[str, Any]) -> Shapes:
    """Every tensor of an official LLM file."""
    width, decoder_width = config["backbone_shape"]["width"], config["decoder_shape"]["width"]
    text, audio, codebooks = config["text_vocab_size"], config["audio_vocab_size"], config["audio_num_codebooks"]
    return {
        **_stack_shapes("backbone", **config["backbone_shape"]),
        **_stack_shapes("decoder", **config["decoder_shape"]),
        "text_embeddings.weight": (text, width),
        "audio_embeddings.weight": (audio * codebooks, width),
        "projection.weight": (decoder_width, width),
        "text_head.weight": (text, width),
        "codebook0_head.weight": (audio, width),
        "audio_head": (codebooks - 1, decoder_width, audio),
    }


def _stack_shapes(name: str, n_layers: int, width: int, n_heads: int, n_kv_heads: int, ffn_width: int) -> Shapes:
    kv_width = width // n_heads * n_kv_heads
    layer = {
        "attn.q_proj.weight": (width, width),
        "attn.q_proj.bias": (width,),
        "attn.k_proj.weight": (kv_width, width),
        "attn.k_proj.bias": (kv_width,),
        "attn.v_proj.weight": (kv_width, width),
        "attn.v_proj.bias": (kv_width,),
        "attn.output_proj.weight": (width, width),
        "mlp.w1.weight": (ffn_width, width),
        "mlp.w2.weight": (width, ffn_width),
        "mlp.w3.weight": (ffn_width, width),
        "sa_norm.scale": (width,),
        "mlp_norm.scale": (width,),
    }
    shapes: Shapes = {f"{name}.layers.{n}.{key}": shape for n in range(n_layers) for key, shape in layer.items()}
    return shapes | {f"{name}.norm.scale": (width,)}


def codec_state_shapes(config: dict[str, Any]) -> Shapes:
    """Every tensor of an official codec file, weight norm not fused."""
    return {
        **_whisper_shapes("ssl", config["ssl"]),
        **_adaptor_shapes("ssl_adaptor", config["ssl_adaptor"]),
        **_whisper_shapes("acoustic_encoder", config["acoustic_encoder"]),
        **_downsample_shapes(**config["downsample"]),
        **_rvq_shapes(config["rvq"]),
        **_upsample_shapes(**config["upsample"]),
        **_adaptor_shapes("semantic_decoder", config["semantic_decoder"]),
        **_acoustic_decoder_shapes(config["acoustic_decoder"]),
    }


def _affine(name: str, *weight: int, n_out: int | None = None) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": (weight[0] if n_out is None else n_out,)}


def _blocks(name: str, n_layers: int, width: int, ffn_width: int) -> Shapes:
    shapes: Shapes = {}
    for block in (f"{name}.{n}" for n in range(n_layers)):
        shapes[f"{block}.self_attn.k_proj.weight"] = (width, width)
        for projection in ("q_proj", "v_proj", "out_proj"):
            shapes |= _affine(f"{block}.self_attn.{projection}", width, width)
        shapes |= _affine(f"{block}.self_attn_layer_norm", width) | _affine(f"{block}.final_layer_norm", width)
        shapes |= _affine(f"{block}.fc1", ffn_width, width) | _affine(f"{block}.fc2", width, ffn_width)
    return shapes


def _whisper_shapes(name: str, part: dict[str, Any]) -> Shapes:
    width = part["embed_dim"]
    return {
        **_affine(f"{name}.conv1", width, part["num_mels"], 3),
        **_affine(f"{name}.conv2", width, width, 3),
        f"{name}.embed_positions.weight": (part["max_positions"], width),
        **_blocks(f"{name}.layers", part["num_layers"], width, part["ffn_dim"]),
        **_affine(f"{name}.layer_norm", width),
    }


def _adaptor_shapes(name: str, part: dict[str, Any]) -> Shapes:
    width = part["embed_dim"]
    return {
        **_affine(f"{name}.in_proj", width, part["in_dim"]),
        **_blocks(f"{name}.layers", part["num_layers"], width, part["ffn_dim"]),
        **_affine(f"{name}.layer_norm", width),
        **_affine(f"{name}.out_proj", part["out_dim"], width),
    }


def _downsample_shapes(embed_dim: int, avg_pooler: int) -> Shapes:
    inner = embed_dim * avg_pooler
    return {
        "downsample.gate_proj.weight": (inner, embed_dim, avg_pooler),
        "downsample.up_proj.weight": (inner, embed_dim, avg_pooler),
        "downsample.down_proj.weight": (inner, inner),
        **_affine("downsample.layer_norm", inner),
        **_affine("downsample.out_proj", embed_dim, inner),
    }


def _weight_normed(name: str, n_out: int, n_in: int) -> Shapes:
    """A 1x1 convolution: original0 is the length g of each output's row, original1 its direction v."""
    return {
        f"{name}.bias": (n_out,),
        f"{name}.parametrizations.weight.original0": (n_out, 1, 1),
        f"{name}.parametrizations.weight.original1": (n_out, n_in, 1),
    }


def _rvq_shapes(part: dict[str, Any]) -> Shapes:
    width, n_codes, code_width = part["rvq_dim"], part["codebook_size"], part["codebook_dim"]
    shapes = _weight_normed("rvq.input_proj", width, part["input_dim"])
    for quantizer in (f"rvq.quantizers.{n}" for n in range(part["num_quantizers"])):
        shapes |= {
            f"{quantizer}.codebook": (n_codes, code_width),
            f"{quantizer}.inited": (1,),
            f"{quantizer}.cluster_size": (n_codes,),
            f"{quantizer}.embed_avg": (n_codes, code_width),
            **_weight_normed(f"{quantizer}.in_project", code_width, width),
            **_weight_normed(f"{quantizer}.out_project", width, code_width),
        }
    return shapes


def _upsample_shapes(embed_dim: int, stride: int) -> Shapes:
    inner = embed_dim * stride
    return {
        **_affine("upsample.in_proj", inner, embed_dim),
        "upsample.up_conv.weight": (inner, embed_dim, stride),  # transposed: (in, out, kernel)
    }


def _acoustic_decoder_shapes(part: dict[str, Any]) -> Shapes:
    width, n_fft = part["embed_dim"], 4 * part["hop_length"]
    shapes: Shapes = {
        **_affine("acoustic_decoder.upsample_conv.0", width, width, 3),  # transposed: (in, out, kernel)
        **_affine("acoustic_decoder.upsample_conv.2", width, width, 3),
        **_affine("acoustic_decoder.backbone.in_proj", width, width, 7),
        **_blocks("acoustic_decoder.backbone.transformers", part["num_layers"], width, 4 * width),
        **_affine("acoustic_decoder.backbone.final_norm", width),
        **_affine("acoustic_decoder.isift.out", n_fft + 2, width),
        "acoustic_decoder.isift.istft.window": (n_fft,),
    }
    for net in ("prior_net.0", "prior_net.1", "post_net.0", "post_net.1"):
        block = f"acoustic_decoder.backbone.{net}"
        shapes |= _affine(f"{block}.block1.1", width) | _affine(f"{block}.block1.4", width, width, 3)
        shapes |= _affine(f"{block}.block2.1", width) | _affine(f"{block}.block2.5", width, width, 3)
    return shapes
