"""Writes tests/fixtures/firered/*.npz and text.json with upstream's code, or checks that they still follow from it.

Runs in the oracle's own virtual environment: see README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.oracle.golden_codec import codec_cases
from tests.oracle.golden_llm import deep_case, tiny_cases
from tests.oracle.golden_text import text_tables
from tests.oracle.recording import Array
from tests.support.firered_tiny import FIXTURES, write_checkpoint

FLOAT_TOLERANCE = 1e-6  # upstream against itself, on another machine at most


def golden() -> tuple[dict[str, dict[str, Array]], dict[str, Any]]:
    """The arrays of each .npz file, and the text tables."""
    with tempfile.TemporaryDirectory() as scratch:
        tiny = write_checkpoint(Path(scratch) / "tiny")
        deep = write_checkpoint(Path(scratch) / "deep", "deep")
        llm = tiny_cases(tiny, Path(scratch))
        codec = codec_cases(tiny, llm["dialogue/codes"])
        assert np.array_equal(llm.pop("dialogue/pcm"), codec["decode/pcm"])  # the whole path and its last part agree
        return {"llm": llm, "llm_deep": deep_case(deep), "codec": codec}, text_tables()


def write(files: dict[str, dict[str, Array]], text: dict[str, Any]) -> None:
    for name, arrays in files.items():
        np.savez_compressed(FIXTURES / f"{name}.npz", allow_pickle=False, **arrays)
    (FIXTURES / "text.json").write_text(json.dumps(text, ensure_ascii=False, indent=1) + "\n")


def differences(files: dict[str, dict[str, Array]], text: dict[str, Any]) -> list[str]:
    """One line for everything that is not as committed: integers exactly, floats within the tolerance."""
    found = [] if json.loads((FIXTURES / "text.json").read_text()) == json.loads(json.dumps(text)) else ["text.json"]
    for name, arrays in files.items():
        with np.load(FIXTURES / f"{name}.npz") as committed:
            for key in sorted(set(committed) | set(arrays)):
                if key not in committed or key not in arrays:
                    found.append(f"{name}.npz {key}: only in {'the file' if key in committed else 'the new run'}")
                elif problem := _difference(committed[key], arrays[key]):
                    found.append(f"{name}.npz {key}: {problem}")
    return found


def _difference(committed: Array, now: Array) -> str:
    if (committed.shape, committed.dtype) != (now.shape, now.dtype):
        return f"{committed.dtype}{committed.shape} became {now.dtype}{now.shape}"
    if committed.dtype.kind != "f":
        return "" if np.array_equal(committed, now) else f"{np.sum(committed != now)} of {now.size} values changed"
    largest = float(np.abs(committed - now).max())
    return "" if largest <= FLOAT_TOLERANCE else f"differs by up to {largest:.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    files, text = golden()
    if not check:
        write(files, text)
        return 0
    found = differences(files, text)
    print("\n".join(found) or "all golden vectors follow from upstream")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
