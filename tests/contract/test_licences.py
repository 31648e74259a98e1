"""No GPL code may run inside the server's process: espeak-ng and Piper are programs beside it, PyAV is not needed."""

import sys
from pathlib import Path

import psutil
import pytest

from pipeline.engines.base import Asr, Llm, Tts, Vad

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

GPL_MODULES = {"phonemizer", "espeakng_loader", "espeakng", "piper", "piper_phonemize", "av", "unidecode"}
GPL_LIBRARIES = ("espeak", "libx264", "libx265", "libavcodec", "libsox.", "libfftw3", "librubberband", "libmad.")


def loaded_libraries() -> list[str]:
    """Names of the files that are mapped into this process, after a look at its modules."""
    assert GPL_MODULES.isdisjoint(name.split(".")[0] for name in sys.modules)
    return sorted({Path(library.path).name for library in psutil.Process().memory_maps()})


def free(names: list[str]) -> bool:
    return not [name for name in names if any(library in name for library in GPL_LIBRARIES)]


# One engine at a time: what they bring stays in the process, and all combinations of them would be loaded for hours.
async def test_no_detector_brings_gpl_code_into_the_process(vad: Vad) -> None:
    assert free(loaded_libraries())
    assert vad.info.kind == "vad"


async def test_no_recogniser_brings_gpl_code_into_the_process(asr: Asr) -> None:
    names = loaded_libraries()
    assert free(names)
    wanted = "ctranslate2" if asr.info.name == "faster_whisper" else "libtorch"
    assert any(wanted in name for name in names)  # the engine is really here


async def test_no_language_model_brings_gpl_code_into_the_process(llm: Llm) -> None:
    names = loaded_libraries()
    assert free(names)
    assert any("xllamacpp" in name for name in names) or llm.info.name != "llamacpp"


async def test_no_voice_brings_gpl_code_into_the_process(tts: Tts) -> None:
    assert free(loaded_libraries())
    assert tts.info.kind == "tts"
