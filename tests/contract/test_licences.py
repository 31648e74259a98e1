"""No GPL code may run inside the server's process: espeak-ng and Piper are programs beside it, PyAV is not needed."""

import sys
from pathlib import Path

import psutil
import pytest

from pipeline.engines.base import Asr, Llm, Tts, Vad

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

GPL_MODULES = {"phonemizer", "espeakng_loader", "espeakng", "piper", "piper_phonemize", "av", "unidecode"}
GPL_LIBRARIES = ("espeak", "libx264", "libx265", "libavcodec", "libsox.", "libfftw3", "librubberband", "libmad.")


async def test_all_engines_together_bring_no_gpl_code_into_the_process(vad: Vad, asr: Asr, llm: Llm, tts: Tts) -> None:
    assert GPL_MODULES.isdisjoint(name.split(".")[0] for name in sys.modules)
    names = sorted({Path(library.path).name for library in psutil.Process().memory_maps()})
    assert any("ctranslate2" in name for name in names)  # the engines are really here
    assert any("xllamacpp" in name for name in names)
    assert [name for name in names if any(library in name for library in GPL_LIBRARIES)] == []
