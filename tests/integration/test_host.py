"""The host monitor: cgroups from folders, cards from a scripted NVML, the machine itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import structlog

from api.gpus import Gpus
from api.host import HostMonitor
from pipeline import cgroup

GIB = 1024**3


class ScriptedNvml:
    """As much of pynvml as is asked for. `broken` maps a figure to the error code that it gives."""

    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_LIBRARY_NOT_FOUND = 3, 15, 12
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(value)
            self.value = value

    def __init__(self, n_cards: int = 1, broken: dict[str, int] | None = None) -> None:
        self.n_cards, self.broken = n_cards, broken or {}
        self.is_open = False

    def _say(self, what: str, answer: Any) -> Any:
        if what in self.broken:
            raise self.NVMLError(self.broken[what])
        return answer

    def nvmlInit(self) -> None:
        self._say("init", None)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return self.n_cards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> Any:
        return self._say("name", f"Card {handle}".encode())

    def nvmlDeviceGetUUID(self, handle: int) -> Any:
        return self._say("uuid", f"GPU-{handle}".encode())

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._say("load", SimpleNamespace(gpu=42))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._say("memory", SimpleNamespace(used=9 * GIB, total=24 * GIB))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        return self._say("temperature", 61)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def until(is_so: Callable[[], bool]) -> None:
    """Looks again and again: the thread under test tells nobody."""
    while not is_so():
        await asyncio.sleep(0.001)


def no_cards() -> Gpus:
    return Gpus(ScriptedNvml(broken={"init": ScriptedNvml.NVML_ERROR_LIBRARY_NOT_FOUND}))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {
    "cpu.max": "150000 100000\n",
    "cpu.stat": "usage_usec 1000000\nuser_usec 1\n",
    "memory.max": f"{4 * GIB}\n",
    "memory.current": f"{3 * GIB}\n",
    "memory.stat": f"anon 1\ninactive_file {GIB}\n",
}
V1 = {
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpuacct/cpuacct.usage": "1000000000\n",
    "memory/memory.limit_in_bytes": f"{4 * GIB}\n",
    "memory/memory.usage_in_bytes": f"{3 * GIB}\n",
    "memory/memory.stat": f"cache 1\ntotal_inactive_file {GIB}\n",
}


@pytest.mark.parametrize("files", [V2, V1], ids=["version 2", "version 1"])
def test_the_limits_of_a_container_are_read(tmp_path: Path, files: dict[str, str]) -> None:
    root = write(tmp_path, files)
    assert cgroup.cpu_limit(root) == 1.5
    assert cgroup.cpu_used_s(root) == 1.0
    assert cgroup.memory_limit_bytes(root) == 4 * GIB
    assert cgroup.memory_used_bytes(root) == 2 * GIB


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000\n", "memory.max": "max\n"},
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        {"cpu.max": "", "memory.max": "nonsense"},
    ],
    ids=["none", "unlimited", "unlimited, version 1", "unreadable"],
)
def test_without_a_limit_the_machine_counts(tmp_path: Path, files: dict[str, str]) -> None:
    root = write(tmp_path, files)
    assert cgroup.cpu_limit(root) is None
    assert cgroup.memory_limit_bytes(root) is None
    sample = HostMonitor(gpus=no_cards(), cgroup_root=root).sample()
    assert sample.memory_total_bytes == psutil.virtual_memory().total


def test_a_container_is_told_by_its_own_limits_and_not_by_the_machine(tmp_path: Path) -> None:
    root, clock = write(tmp_path, {**V2, "cpu.max": "50000 100000\n"}), Clock()
    monitor = HostMonitor(gpus=no_cards(), cgroup_root=root, clock=clock)
    first = monitor.sample()
    assert first.cpu_percent is None  # a share needs two looks
    clock.now = 2.0
    write(root, {"cpu.stat": "usage_usec 1250000\n"})  # a quarter second in two, of half a core
    second = monitor.sample()
    assert second.n_cpus == 0.5
    assert second.cpu_percent == pytest.approx(25.0)
    assert (second.memory_used_bytes, second.memory_total_bytes) == (2 * GIB, 4 * GIB)


def test_a_card_gives_load_memory_and_temperature() -> None:
    (card,) = Gpus(ScriptedNvml()).read()
    assert (card.index, card.name) == (0, "Card 0")
    assert card.utilisation_percent == 42.0
    assert (card.memory_used_bytes, card.memory_total_bytes) == (9 * GIB, 24 * GIB)
    assert card.temperature_c == 61.0


def test_a_figure_that_a_card_does_not_support_is_none_and_no_error() -> None:
    gpus = Gpus(ScriptedNvml(broken={"load": ScriptedNvml.NVML_ERROR_NOT_SUPPORTED}))
    (card,) = gpus.read()
    assert card.utilisation_percent is None
    assert card.memory_total_bytes == 24 * GIB
    assert gpus.n_errors == 0


def test_a_lost_card_is_counted_and_does_not_hide_the_rest() -> None:
    nvml = ScriptedNvml(n_cards=2)
    monitor = HostMonitor(gpus=Gpus(nvml))
    assert len(monitor.sample().gpus) == 2
    nvml.broken = dict.fromkeys(("load", "memory", "temperature"), nvml.NVML_ERROR_GPU_IS_LOST)
    sample = monitor.sample()
    assert [card.memory_used_bytes for card in sample.gpus] == [None, None]
    assert sample.n_errors == 6
    assert sample.memory_used_bytes


def test_no_driver_means_no_cards_and_no_error() -> None:
    sample = HostMonitor(gpus=no_cards()).sample()
    assert sample.gpus == ()
    assert sample.n_errors == 0


def test_the_snapshot_can_be_written_as_json() -> None:
    monitor = HostMonitor(gpus=Gpus(ScriptedNvml()))
    shown = json.loads(json.dumps(monitor.sample().as_dict()))
    assert shown["gpus"][0]["name"] == "Card 0"
    assert shown["process_memory_bytes"] > 1024**2
    assert monitor.snapshot().cpu_percent is None


async def test_the_monitor_looks_in_its_own_thread_and_stops_with_the_server() -> None:
    nvml = ScriptedNvml()
    monitor = HostMonitor(gpus=Gpus(nvml), period_s=0.01)
    async with monitor.running(), asyncio.timeout(10):
        await until(lambda: monitor.snapshot().cpu_percent is not None)
        assert nvml.is_open
        assert "host-monitor" in {thread.name for thread in threading.enumerate()}
    assert not nvml.is_open
    assert "host-monitor" not in {thread.name for thread in threading.enumerate()}


async def test_a_look_that_fails_is_counted_logged_once_and_the_next_one_is_taken() -> None:
    class Broken(Gpus):
        n_calls = 0

        def read(self) -> Any:
            self.n_calls += 1
            if self.n_calls < 4:
                raise RuntimeError("driver trouble")
            return ()

    monitor = HostMonitor(gpus=Broken(ScriptedNvml()), period_s=0.01)
    with structlog.testing.capture_logs() as logged:
        async with monitor.running(), asyncio.timeout(10):
            await until(lambda: monitor.snapshot().memory_used_bytes is not None)
    assert monitor.snapshot().n_errors == 3
    assert [line["event"] for line in logged] == ["host.sample_failed"]


async def test_a_hanging_driver_keeps_nobody_waiting() -> None:
    freed = threading.Event()

    class Hanging(Gpus):
        def read(self) -> Any:
            freed.wait(30)
            return ()

    monitor = HostMonitor(gpus=Hanging(ScriptedNvml()))
    async with asyncio.timeout(5), monitor.running(stop_timeout_s=0.05):
        assert monitor.snapshot().memory_used_bytes is None
    freed.set()
