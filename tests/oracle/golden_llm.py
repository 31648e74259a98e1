"""Prompt rows, hidden states, logits and codes of upstream's language model and its two modes."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from tests.oracle.recording import Array, Recorder, Sentence
from tests.oracle.upstream import load_engine, load_llm
from tests.support.firered_tiny import POSTTRAIN, speech_like

VOICES = {"one": 32000, "two": 16480}  # samples at 16 kHz; the second is no whole number of frames (12.875)
VOICE_TEXTS = {"one": "[S1]I do not know.", "two": "[S2]Neither do I!"}
SEED = 7
N_CODES = 64


def tiny_cases(directory: Path, scratch: Path) -> dict[str, Array]:
    """`<case>/<what>` for every case of both modes; the README beside the files says what each is."""
    wavs = {name: _write_voice(scratch / f"{name}.wav", name, n_samples) for name, n_samples in VOICES.items()}
    return {**_dialogues(directory, wavs), **_monologues(directory, wavs["one"])}


def _write_voice(path: Path, name: str, n_samples: int) -> str:
    samples = np.round(speech_like(n_samples, seed=name) * 32768).astype(np.int16)
    soundfile.write(path, samples, 16000, subtype="PCM_16")
    return str(path)


def _dialogues(directory: Path, wavs: dict[str, str]) -> dict[str, Array]:
    engine = load_engine(directory, "dialogue")
    prompts = {"prompt_wav_list": list(wavs.values()), "prompt_text_list": list(VOICE_TEXTS.values())}
    plain, pcm = _run(engine, [12], True, engine.generate_dialogue, ["[S1]Hello there."])
    greeting = ["[S2]Good morning, how are you?"]
    prompted, _ = _run(engine, [12], True, engine.generate_dialogue, greeting, **prompts)
    both = ["[S1]First sentence.", "[S2]And an answer."]
    history, _ = _run(engine, [14, 12], True, engine.generate_dialogue, both, **prompts)
    sampled, _ = _run(engine, [12], False, engine.generate_dialogue, greeting, temperature=0.9, topk=20, **prompts)
    return {
        **_arrays("dialogue", plain[0]),
        "dialogue/pcm": pcm,
        **_arrays("dialogue_prompted", prompted[0]),
        **_arrays("dialogue_history", history[1]),
        "dialogue_history/first_codes": np.stack(history[0].codes),
        **_arrays("dialogue_sampled", sampled[0]),
        "dialogue_sampled/noise": np.array(sampled[0].noise),
    }


def _monologues(directory: Path, wav: str) -> dict[str, Array]:
    engine = load_engine(directory, "monologue")
    plain, _ = _run(engine, [12], True, engine.generate_monologue, " Hello (world), again: yes! ")
    # Upstream throws away and tries again whatever has 18 frames or fewer.
    cloned, _ = _run(engine, [20], True, engine.generate_monologue, "Yes, it is so.", wav, "I do not know.")
    cut, _ = _run(engine, [20], True, engine.generate_monologue, "好的。", wav, "我不知道")
    sampled, _ = _run(engine, [20], False, engine.generate_monologue, "Yes, it is so.", wav, "I do not know.")
    return {
        **_arrays("monologue", plain[0]),
        **_arrays("monologue_prompted", cloned[0]),
        **_arrays("monologue_prompted_without_punctuation", cut[0], n_logits=0),
        **_arrays("monologue_sampled", sampled[0], n_logits=0),
    }


def _run(engine: Any, n_frames: list[int], greedy: bool, call: Any, *args: Any, **kwargs: Any) -> Any:
    recorder = Recorder(engine._model, n_frames=n_frames, greedy=greedy)
    torch.manual_seed(SEED)
    with recorder.active(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        audio = call(*args, **kwargs)
    return recorder.sentences, audio[0].numpy()


def _arrays(case: str, sentence: Sentence, n_logits: int = 3) -> dict[str, Array]:
    """Logits and hidden states of the first frame, the second and the last only: they are what takes room."""
    arrays = {"ids": sentence.ids, "mask": sentence.mask, "codes": np.stack(sentence.codes)}
    if n_logits:
        arrays |= _probes(sentence, [0, 1, len(sentence.codes) - 1][:n_logits])
    return {f"{case}/{key}": value for key, value in arrays.items()}


def _probes(sentence: Sentence, frames: list[int]) -> dict[str, Array]:
    return {
        "frames": np.array(frames),
        "hidden": np.stack([sentence.hidden[frame] for frame in frames]),
        "logits": np.array([sentence.logits[frame] for frame in frames])[:, :, :N_CODES],
    }


def deep_case(directory: Path) -> dict[str, Array]:
    """28 + 4 layers: 20 greedy frames after 40 rows of text and audio."""
    model = load_llm(directory, POSTTRAIN)
    ids, mask = _mixed_rows()
    recorder = Recorder(model, n_frames=[20], greedy=True)
    with recorder.active(), torch.inference_mode():
        _generate(model, torch.from_numpy(ids), torch.from_numpy(mask))
    sentence = recorder.sentences[0]
    arrays = {"ids": ids, "mask": mask, "codes": np.stack(sentence.codes)} | _probes(sentence, [0, 9, 19])
    return {f"deep/{key}": value for key, value in arrays.items()}


def _mixed_rows() -> tuple[Array, Array]:
    """11 text rows, 18 audio rows, an EOS row, 10 text rows."""
    random = np.random.PCG64(SEED).random_raw(40 * 17).reshape(40, 17)
    ids, mask = np.zeros((40, 17), np.int64), np.zeros((40, 17), bool)
    is_text = np.r_[np.ones(11, bool), np.zeros(19, bool), np.ones(10, bool)]
    ids[is_text, 16], mask[is_text, 16] = random[is_text, 16] % 381, True
    ids[11:29, :16] = random[11:29, :16] % N_CODES
    mask[11:30, :16] = True
    return ids, mask


def _generate(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """The frame loop of upstream's `generate`, without tokenizer and codec."""
    model.reset_caches()
    ids, mask, positions = ids[None], mask[None], torch.arange(len(ids))[None]
    text_column = torch.zeros(1, 1, dtype=torch.int64)
    while True:
        codes = model.generate_frame(ids, mask, positions, 0.9, 20)
        if torch.all(codes == 0):
            return
        ids = torch.cat([codes, text_column], dim=1)[:, None]
        mask = torch.cat([torch.ones_like(codes), text_column], dim=1)[:, None].bool()
        positions = positions[:, -1:] + 1
