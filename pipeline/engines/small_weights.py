"""Weights of 8 or 4 bits: bitsandbytes in place of a network's linear layers, at load, on a card or a CPU.

8 bits are LLM.int8() (arXiv 2208.07339), 4 bits NF4 (arXiv 2305.14314) in blocks of 64 weights. Embeddings and the
output head keep their precision. Importing this module imports torch.
"""

from __future__ import annotations

import logging
import warnings
from types import ModuleType
from typing import Any, Literal

from torch import nn

from pipeline.errors import ConfigError

Bits = Literal[16, 8, 4]


def shrink(network: Any, bits: Bits) -> None:
    """Replace the linear layers of a network that lies on the CPU; they shrink as they move to their device."""
    library = _library()
    head = network.get_output_embeddings()
    n_replaced = 0
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and layer is not head:
                setattr(module, name, _small(library, layer, bits))
                n_replaced += 1
    if not n_replaced:
        raise ConfigError(f"llm.bits {bits}: this model has no plain linear layers; leave llm.bits at 16")


def _small(library: ModuleType, layer: nn.Linear, bits: Bits) -> Any:
    shape, weight = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data
    if bits == 4:
        small = library.nn.Linear4bit(*shape, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        small.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        small = library.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
        small.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        small.bias = layer.bias
    return small


def _library() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit of its optimisers, which are not used here
        try:
            import bitsandbytes
        except ImportError as error:
            raise ConfigError(
                "llm.bits 8 and 4 need what the GPU profile installs. "
                "Run: .venv/bin/pip install -r requirements/gpu.txt"
            ) from error
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a warning for each product of bf16 by int8
    module: ModuleType = bitsandbytes
    return module
