"""A chat model read from a directory in Hugging Face layout: weights, tokeniser, chat template and end tokens.

Nothing here asks the network, runs code that lies beside the weights, or unpickles: safetensors only. The template is
rendered by transformers in jinja's immutable sandbox. Importing this module imports torch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.engines.base import Message
from pipeline.engines.chat_sampling import Sampling
from pipeline.engines.out_of_memory import is_out_of_memory
from pipeline.engines.small_weights import Bits, shrink
from pipeline.errors import ConfigError, InvalidInput

Precision = Literal["auto", "bf16", "fp16", "fp32"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Where the model's generation_config.json says nothing: as for llama.cpp, what Qwen2.5 recommends for itself.
TOP_P, TOP_K = 0.8, 20

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HOW_TO_GET_IT = (
    "Run: python -m scripts.download_models, or point llm.path to a directory with config.json, tokenizer.json, "
    "tokenizer_config.json and *.safetensors of a chat model"
)


@dataclass(frozen=True, slots=True, eq=False)
class ChatModel:
    """A loaded model. `network` is transformers' module in eval mode; `end_tokens` end an answer.

    `is_exact`: it computes in fp32 with the weights as they were stored.
    """

    network: Any
    tokenizer: Any
    device: torch.device
    end_tokens: frozenset[int]
    sampling: Sampling
    window: int
    limits_logits: bool
    special: re.Pattern[str]
    is_exact: bool

    def count(self, text: str) -> int:
        """Tokens of the text alone."""
        return len(self._encoded(text))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the talk in the model's own template. `InvalidInput` where the template refuses the talk.

        Special tokens that somebody wrote into a message are cut out: they would end it and begin another's.
        """
        talk = [{"role": m.role, "content": self.special.sub(" ", m.content)} for m in messages]
        try:
            return self._encoded(self._rendered(talk))
        except jinja2.TemplateError:
            pass  # many templates know no system role, or want user and assistant in turn
        try:
            return self._encoded(self._rendered(alternating(talk)))
        except jinja2.TemplateError as error:
            raise InvalidInput("the language model's template does not take this conversation") from error

    def forward(self, tokens: Sequence[Sequence[int]], cache: Any, **more: Any) -> torch.Tensor:
        """Logits of the last position, float32 (n_talks, n_tokens). `cache` grows by the tokens."""
        last = {"logits_to_keep": 1} if self.limits_logits else {}
        fed = torch.tensor(tokens, device=self.device)
        logits: torch.Tensor = self.network(fed, past_key_values=cache, use_cache=True, **last, **more).logits
        return logits[:, -1].float()

    def _rendered(self, talk: Sequence[Mapping[str, str]]) -> str:
        # What thinks before it speaks is of no use in a talk; templates that know no such switch ignore it.
        text = self.tokenizer.apply_chat_template(
            list(talk), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(text)

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def alternating(talk: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The talk as user and assistant in turn: the system's words go to the first user, neighbours are joined."""
    joined: list[dict[str, str]] = []
    for message in talk:
        role = "user" if message["role"] == "system" else message["role"]
        if joined and joined[-1]["role"] == role:
            joined[-1]["content"] += "\n\n" + message["content"]
        else:
            joined.append({"role": role, "content": message["content"]})
    return joined


def read_chat_model(
    directory: Path, *, device: str, precision: Precision, bits: Bits, window: int, temperature: float
) -> ChatModel:
    """The model in `directory` on `device`. `ConfigError` says what is missing, damaged or not supported."""
    _check_files(directory)
    # Its warnings speak to who trains models, and its progress bars would write over the log.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    place = torch.device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        network, found = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=_dtype(precision, place),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        _check_weights(found)
        if bits != 16:
            shrink(network, bits)
        network = network.to(place).eval()
    except ConfigError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ConfigError(
                f"the language model in {directory} does not fit into the memory of {device}: lower llm.bits, choose "
                "a smaller model or free the device"
            ) from error
        raise ConfigError(f"the language model in {directory} cannot be loaded: {_first_line(error)}") from error
    return _checked(network, tokenizer, directory, place, bits, window, temperature)


def _checked(
    network: Any, tokenizer: Any, directory: Path, device: torch.device, bits: Bits, window: int, temperature: float
) -> ChatModel:
    takes = inspect.signature(network.forward).parameters
    if "past_key_values" not in takes:
        raise ConfigError(f"the language model in {directory} keeps no keys and values: its kind is not supported")
    if not tokenizer.chat_template:
        raise ConfigError(f"the language model in {directory} has no chat template: it is no chat model")
    config, asked = network.config.get_text_config(), network.generation_config
    longest = getattr(config, "max_position_embeddings", None) or window
    if window > longest:
        raise ConfigError(f"llm.context_tokens is {window}, but the model in {directory} takes {longest} at most")
    if len(tokenizer) > network.get_input_embeddings().weight.shape[0]:
        raise ConfigError(f"the tokeniser in {directory} is of another model: it has more tokens than the weights")
    ends = frozenset(
        token for token in (*_listed(asked.eos_token_id), *_listed(tokenizer.eos_token_id)) if token is not None
    )
    if not ends:
        raise ConfigError(f"the language model in {directory} names no end token: it would never stop")
    special = sorted((str(t) for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True)
    sampling = Sampling(temperature, asked.top_k or TOP_K, asked.top_p or TOP_P, asked.repetition_penalty or 1.0)
    model = ChatModel(
        network=network,
        tokenizer=tokenizer,
        device=device,
        end_tokens=ends,
        sampling=sampling,
        window=window,
        limits_logits="logits_to_keep" in takes,
        special=re.compile("|".join(map(re.escape, special)) or r"(?!)"),
        is_exact=network.dtype == torch.float32 and bits == 16,
    )
    _check_template(model, directory)
    return model


def _check_template(model: ChatModel, directory: Path) -> None:
    try:
        model.prompt([Message("system", "Be brief."), Message("user", "Hi")])
    except (InvalidInput, ValueError, TypeError) as error:
        raise ConfigError(f"the chat template in {directory} does not work: {_first_line(error)}") from error


def _check_files(directory: Path) -> None:
    """Refuse, in our own words, what transformers would explain at length or fetch from elsewhere."""
    if not directory.is_dir():
        raise ConfigError(f"there is no language model in {directory}. {_HOW_TO_GET_IT}")
    for name in ("config.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise ConfigError(f"the language model in {directory} has no {name}. {_HOW_TO_GET_IT}")
    if not any((directory / name).is_file() for name in _VOCABULARIES):  # transformers would go on with an empty one
        raise ConfigError(f"the language model in {directory} has no tokenizer.json. {_HOW_TO_GET_IT}")
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(
            f"the language model in {directory} has no .safetensors file; weights in other formats (.bin, .pt, .gguf) "
            f"are not read here. {_HOW_TO_GET_IT}"
        )


def _check_weights(found: Mapping[str, Any]) -> None:
    """Transformers fills what a file lacks with random numbers and only says so in a warning."""
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if wrong := found.get(what):
            name = sorted(map(str, wrong))[0]
            raise ConfigError(f"the weights of the language model are damaged: {what.replace('_', ' ')}, first {name}")


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return _DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _listed(tokens: int | Sequence[int] | None) -> Sequence[int | None]:
    return tokens if isinstance(tokens, Sequence) else (tokens,)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
