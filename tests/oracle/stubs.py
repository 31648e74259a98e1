"""Stand-ins for the packages that upstream and torchtune import but never need here (about 500 MB together)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

# torchtune's dataset and download code imports the first nine; upstream's FireRedTTS2 imports torchaudio.
STUBBED = {"datasets", "torchdata", "pyarrow", "pandas", "omegaconf", "sentencepiece", "tiktoken", "blobfile"}
STUBBED |= {"kagglehub", "torchaudio"}


class _Anything(ModuleType):
    """A module of which every name can be imported: as an empty class, generic or not."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


class _StubFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in STUBBED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "torchaudio":
            module.__dict__["load"] = load_audio
        if module.__name__ == "torchaudio.functional":
            module.__dict__["resample"] = resample


def load_audio(path: str) -> tuple[Tensor, int]:
    """Like torchaudio.load: (channels, n) float32 and the rate."""
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(samples.T)), int(sample_rate)


def resample(audio: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Another resampler than torchaudio's: only the codes of re-encoded history depend on it."""
    if source_rate == target_rate:
        return audio
    return torch.from_numpy(soxr.resample(audio.numpy().T, source_rate, target_rate).T.copy())


def install_stubs() -> None:
    """Call before the first import of `fireredtts2`."""
    if not any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StubFinder())
        importlib.import_module("torchaudio.functional")
