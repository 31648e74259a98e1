"""Tiny models of random weights for the engines of the GPU profile: `--random-tiny` starts it on any machine.

The real loading code reads them, so what is tried is all but the sense: the recogniser hears one sentence whatever is
said, the language model answers with one text, and the voice makes noise. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError
from settings_sources import RANDOM_TINY, RANDOM_TINY_F5


def write_tiny_models(root: Path) -> None:
    """Write all of them below `root`; what is there is written again, which takes two seconds."""
    try:
        from firered.random_checkpoint import write_random_checkpoint
        from pipeline.engines.tiny_chat import write_tiny_chat
        from pipeline.engines.tiny_f5 import write_tiny_f5
        from pipeline.engines.tiny_whisper import write_tiny_whisper
    except ImportError as error:
        raise ConfigError(
            "--random-tiny needs what the GPU profile installs. Run: scripts/setup.sh gpu --no-models"
        ) from error

    write_tiny_whisper(root / RANDOM_TINY["asr.path"])
    write_tiny_chat(root / RANDOM_TINY["llm.path"])
    write_random_checkpoint(root / RANDOM_TINY["models.tts_model_path"], "tiny")
    write_tiny_f5(root / RANDOM_TINY_F5)
