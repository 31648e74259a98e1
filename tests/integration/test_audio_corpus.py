"""All files of the corpus through the one decoder: what each gives, what they cost together, and what they reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from process_tuning import give_back_memory
from tests.support.audio_corpus import HZ, VICTIM_HZ, Case, Good, corpus, file_of, tone
from tests.support.rest import rest_server
from tests.support.scripted import ScriptedAsr
from tests.support.visited import visited
from tests.support.voices import PitchSpeakers, PitchTts, recording

ROOT = Path(__file__).parents[2]
MAX_GROWTH_BYTES = 100 * 2**20
N_HOSTILE, N_GOOD = 64, 6  # at each door
# Work for the decoder alone, which is the same behind every door; how much sound it takes is the door's own.
LEFT_OUT = {"flac_bomb", "opus_bomb", "mp4_of_empty_boxes", "id3_a_million_times", "wav_of_empty_chunks", "too_long"}


@dataclass(frozen=True)
class Run:
    cases: dict[str, Case]
    results: dict[str, dict[str, Any]]
    cost: dict[str, int]
    visits: list[str]
    canary: str
    victim: Path
    places: tuple[Path, ...]


@pytest.fixture(scope="module")
def canary() -> Iterator[tuple[str, list[str]]]:
    with visited() as known:
        yield known


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, canary: tuple[str, list[str]]) -> Run:
    folder, work, temporary = (tmp_path_factory.mktemp(name) for name in ("files", "work", "temporary"))
    victim = tmp_path_factory.mktemp("another-user") / "victim.wav"
    victim.write_bytes(file_of(tone(hz=VICTIM_HZ)))
    address, visits = canary
    cases = corpus(victim, address)
    for name, case in cases.items():
        (folder / name).write_bytes(case.data)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.audio_corpus", str(folder)],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=200,
    )
    cost = json.loads(done.stdout)
    return Run(cases, cost.pop("results"), cost, list(visits), address, victim, (work, temporary))


def is_right(case: Case, result: dict[str, Any]) -> bool:
    if isinstance(case, Good):
        return bool(abs(result.get("seconds", 0) - case.seconds) < 0.1 and abs(result["hz"] - HZ) < 3)
    return result.get("code") in case.codes


def test_each_of_many_files_is_accepted_or_refused_for_the_right_reason(run: Run) -> None:
    hostile = [case for case in run.cases.values() if not isinstance(case, Good)]
    assert len(hostile) >= 60
    assert {name: run.results[name] for name, case in run.cases.items() if not is_right(case, run.results[name])} == {}


def test_every_refusal_is_typed_and_has_words_for_people(run: Run) -> None:
    refused = [result for result in run.results.values() if "error" in result]
    assert {result["error"] for result in refused} == {"InvalidInput"}
    assert not [result for result in refused if "/" in result["message"] or len(result["message"]) < 20]


def test_all_of_it_stays_small_and_leaves_nothing_behind(run: Run) -> None:
    assert run.cost["growth_bytes"] < MAX_GROWTH_BYTES
    assert run.cost["child_bytes"] < MAX_GROWTH_BYTES
    assert run.cost["children_left"] == 0
    assert run.cost["files_left"] == 0
    assert [list(place.iterdir()) for place in run.places] == [[], []]


DOORS: dict[str, Callable[[httpx.AsyncClient, bytes], Awaitable[httpx.Response]]] = {
    "transcription": lambda http, data: http.post(
        "/v1/audio/transcriptions", files=named(data), data={"model": "voicepod"}
    ),
    "talk": lambda http, data: http.post("/api/converse", content=data),
    "clone": lambda http, data: http.post("/api/clone/samples", files=named(data)),
    "watermark": lambda http, data: http.post("/api/watermark", files=named(data)),
}


def held_bytes() -> int:
    """Of this process, without what it only keeps for later."""
    give_back_memory()
    return int(psutil.Process().memory_info().rss)


def named(data: bytes) -> dict[str, tuple[str, bytes]]:
    return {"file": ("recording.wav", data)}


@pytest.mark.models
@pytest.mark.parametrize("door", DOORS)
async def test_every_door_takes_the_good_ones_and_refuses_the_rest_in_words(run: Run, door: str) -> None:
    names = [name for name in sorted(run.cases) if name not in LEFT_OUT]
    good = [name for name in names if isinstance(run.cases[name], Good)][:: len(names) // N_GOOD // 2]
    hostile = [name for name in names if not isinstance(run.cases[name], Good)][:N_HOSTILE]
    assert len(hostile) == N_HOSTILE
    async with rest_server(asr=ScriptedAsr(delay_s=0), tts=PitchTts(), speakers=PitchSpeakers()) as rest:
        assert (await DOORS[door](rest.client, recording())).status_code in (200, 201)  # loads what it needs
        before = held_bytes()
        answers = {name: await DOORS[door](rest.client, run.cases[name].data) for name in (*good, *hostile)}
        growth = held_bytes() - before
        assert (await rest.client.get("/ping")).status_code == 200
    assert {name: answers[name].text for name in good if answers[name].status_code not in (200, 201)} == {}
    assert {name: answers[name].text for name in hostile if answers[name].status_code not in (400, 413)} == {}
    assert [name for name in hostile if len(answers[name].json()["error"]["message"]) < 20] == []
    assert growth < MAX_GROWTH_BYTES


def test_no_file_fetches_an_address_or_plays_another_file(run: Run) -> None:
    assert run.visits == []
    assert [name for name, result in run.results.items() if abs(result.get("hz", 0) - VICTIM_HZ) < 100] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ffconcat_file", ["-safe", "0"]),
        ("mov_samples_in_a_file", ["-enable_drefs", "1", "-use_absolute_path", "1"]),
    ],
)
def test_a_decoder_without_these_limits_would_play_another_users_file(
    name: str, options: list[str], run: Run, tmp_path: Path
) -> None:
    opened = decoded_by_path(run.cases[name].data, options, tmp_path)
    assert len(opened) == 16000 * 2


def test_a_decoder_without_these_limits_would_fetch_an_address(
    run: Run, canary: tuple[str, list[str]], tmp_path: Path
) -> None:
    options = ["-safe", "0", "-protocol_whitelist", "file,http,tcp"]
    decoded_by_path(run.cases["ffconcat_http"].data, options, tmp_path)
    assert "/a.wav" in canary[1]


def decoded_by_path(data: bytes, options: list[str], folder: Path) -> bytes:
    path = folder / "upload.wav"
    path.write_bytes(data)
    command = ["ffmpeg", "-v", "quiet", "-nostdin", *options, "-i", str(path), "-f", "s16le", "pipe:1"]
    return subprocess.run(command, stdout=subprocess.PIPE, timeout=60).stdout
