"""What the two requirement documents call things, and what this project calls them. Data only.

Keys and variables that have another name here, keys that cannot act and say so at start, and variables that a library
reads by itself. `docs/admin-guide-map.md` says the same for people; a test compares the two.
"""

from __future__ import annotations

from typing import Final

# Environment variable -> the settings it sets. One variable may set several: OpenMP's thread count is
# meant for every engine that computes on the CPU.
VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "GRADIO_SERVER_NAME": ("network.host",),
    "GRADIO_SERVER_PORT": ("network.port",),
    "LOG_LEVEL": ("system.log_level",),
    "MODEL_CACHE_DIR": ("models.dir",),
    "AUDIO_CACHE_DIR": ("cache.dir",),
    "OMP_NUM_THREADS": ("asr.threads", "llm.threads", "tts.threads"),
    "OPENAI_API_KEY": ("llm.api_key",),
}

# Variables that stay in the environment because the library named here reads them itself, at import or at the first
# use of the GPU, which is before any setting could be handed over.
LIBRARY_VARIABLES: Final[dict[str, str]] = {
    "CUDA_VISIBLE_DEVICES": "the CUDA driver",
    "PYTORCH_CUDA_ALLOC_CONF": "PyTorch's CUDA allocator",
    "TOKENIZERS_PARALLELISM": "Hugging Face tokenizers",
    "HF_HOME": "huggingface_hub",
    "HF_HUB_CACHE": "huggingface_hub",
    "TRANSFORMERS_CACHE": "transformers",
    "TORCH_HOME": "torch.hub",
}

# Key of a configuration file -> the key that replaces it, with the same meaning.
ALIASES: Final[dict[str, str]] = {
    "system.model_cache_size": "system.max_loaded_models",
}

# Key that cannot act -> what to use instead. Accepted with a notice, so that the guide's files load unchanged.
RETIRED: Final[dict[str, str]] = {
    "audio.buffer_size": "frames have a fixed length of 20 ms; set audio.sample_rate",
    "security.input_validation": "input is always validated",
    "model_optimization.enable_pruning": "pruning happens before a model is published; choose the model "
    "with models.whisper_model or models.llm_model",
    "model_optimization.enable_distillation": "distillation happens before a model is published; choose the "
    "model with models.whisper_model or models.llm_model",
    "model_optimization.batch_size_optimization": "a batch is as large as the talks that speak; set "
    "system.max_concurrent_users",
    "model_optimization.model_parallelism": "every model fits one card; set system.gpu_device",
    "model_optimization.gradient_checkpointing": "it saves memory in training only; set "
    "performance.gpu_memory_fraction",
    "scaling_config.auto_scale_workers": "a card holds each model once; set system.engine_processes",
    "scaling_config.min_workers": "a card holds each model once; set system.engine_processes",
    "scaling_config.max_workers": "a card holds each model once; set system.engine_processes",
    "scaling_config.queue_size": "the queue is bounded by time, not by length; set scaling_config.max_wait_s",
}

# Retired keys that protect something: only this value is accepted.
RETIRED_VALUES: Final[dict[str, object]] = {"security.input_validation": True}
