"""The card's memory: measured with real turns, and kept below the share that may be used."""

from __future__ import annotations

from typing import Any

import pytest

from api.card_shares import CardShares
from api.gpus import GpuMetrics, Gpus, memory_of_own, read_card
from api.host import HostMetrics
from api.ledger import GB, CardMemory, Ledger
from pipeline.engines.base import EngineKind
from pipeline.errors import ConfigError
from pipeline.memory import Memory


class Turns:
    """Turns that a card remembers: `used` GB after each look."""

    def __init__(self, *used: float, total: float = 24) -> None:
        self._used, self._total = iter(used), total
        self.n_turns = 0

    def read(self) -> CardMemory | None:
        used = next(self._used)
        return CardMemory(int(used * GB), int(self._total * GB))

    async def turn(self) -> None:
        self.n_turns += 1


async def measured(turns: Turns, *, fraction: float = 0.9, max_talks: int = 8) -> Ledger:
    ledger = Ledger(turns.read, fraction=fraction, max_talks=max_talks)
    await ledger.measure(turns.turn)
    return ledger


async def test_seats_are_what_fits_beside_the_engines_by_the_measured_size_of_a_talk() -> None:
    turns = Turns(14.0, 15.0, 16.5)
    ledger = await measured(turns)
    assert turns.n_turns == 3
    assert ledger.talk_bytes == 1.5 * GB
    assert ledger.seats == 1 + int((0.9 * 24 - 15) // 1.5)  # 5 of the 8 that were asked for
    assert (await measured(Turns(14.0, 15.0, 16.5), max_talks=3)).seats == 3
    # A lower fraction leaves fewer seats, down to one.
    assert (await measured(Turns(14.0, 15.0, 16.5), fraction=0.7)).seats == 2


async def test_memory_that_is_held_beforehand_leaves_all_seats() -> None:
    assert (await measured(Turns(14.0, 15.0, 15.0))).seats == 8


async def test_engines_that_do_not_fit_stop_the_start() -> None:
    with pytest.raises(ConfigError, match=r"22\.0 of the card's 24\.0 GB.*gpu_memory_fraction 0\.9"):
        await measured(Turns(21.0, 22.0, 23.0))


async def test_without_a_card_one_turn_warms_up_and_the_setting_counts() -> None:
    n_turns = 0

    async def turn() -> None:
        nonlocal n_turns
        n_turns += 1

    ledger = Ledger(lambda: None, fraction=0.9, max_talks=4)
    await ledger.measure(turn)
    assert (n_turns, ledger.seats, ledger.talk_bytes) == (1, 4, None)
    assert ledger.has_room(3, None)


async def test_a_talk_that_the_card_has_no_room_for_now_is_not_let_in() -> None:
    ledger = await measured(Turns(10.0, 11.0, 12.0))
    full = CardMemory(int(21.0 * GB), 24 * GB)  # somebody else's program came
    roomy = CardMemory(int(20.0 * GB), 24 * GB)
    assert ledger.has_room(1, full)  # two talks have been there: their memory is held
    assert not ledger.has_room(2, full)
    assert ledger.has_room(2, roomy)
    assert ledger.has_room(2, full)  # three have been there now
    assert not ledger.has_room(3, full)


class FakeNvml:
    """One card, as `pynvml` tells of it."""

    NVMLError = RuntimeError
    NVML_ERROR_NOT_SUPPORTED = 3

    def __init__(self, n_cards: int) -> None:
        self.n_cards = n_cards
        self.n_shutdowns = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *args: type("Answer", (), {"used": 5 * GB, "total": 24 * GB, "gpu": 10})()

    def nvmlInit(self) -> None:
        return

    def nvmlShutdown(self) -> None:
        self.n_shutdowns += 1

    def nvmlDeviceGetCount(self) -> int:
        return self.n_cards

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return "Card"

    def nvmlDeviceGetUUID(self, handle: Any) -> bytes:
        return b"GPU-0a1b-c"

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: Any) -> int:
        return 40

    NVML_TEMPERATURE_GPU = 0


def test_the_card_that_the_process_may_use_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = FakeNvml(1)
    assert read_card(Gpus(nvml)) == CardMemory(5 * GB, 24 * GB)
    assert nvml.n_shutdowns == 1
    assert read_card(Gpus(FakeNvml(0))) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert read_card(Gpus(FakeNvml(1))) is None
    assert read_card(Gpus(FakeNvml(2))) == CardMemory(5 * GB, 24 * GB)


def test_admission_looks_at_the_same_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(index: int, used_gb: int) -> GpuMetrics:
        return GpuMetrics(index, "Card", None, used_gb * GB, 24 * GB, None)

    cards = (card(0, 23), card(1, 5))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert memory_of_own(cards) == CardMemory(23 * GB, 24 * GB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert memory_of_own(cards) == CardMemory(5 * GB, 24 * GB)
    assert memory_of_own(cards[:1]) is None
    assert memory_of_own(()) is None


@pytest.mark.parametrize(
    ("visible", "device", "used_gb"),
    [
        (None, "cuda:1", 11),
        (None, "cuda:3", None),
        (None, "cpu", 10),
        ("2,0", "cuda:1", 10),
        ("2, 0", "auto", 12),
        ("2,0", "cuda:2", None),
        ("GPU-1b", "auto", 11),  # the beginning of a name is enough for CUDA, if it is one card's
        ("GPU-2c-7", "cuda:0", 12),
        ("GPU-", "auto", None),
        ("GPU-9", "auto", None),
        ("MIG-GPU-0a/1/0", "auto", None),  # a part of a card: the figures of the whole would say nothing
        ("MIG-5c1e", "auto", None),
        ("", "auto", None),
        ("-1", "auto", None),
    ],
)
def test_the_card_is_the_one_that_cuda_gives_the_engines(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, used_gb: int | None
) -> None:
    names = ("GPU-0a-5", "GPU-1b-6", "GPU-2c-7")
    cards = [GpuMetrics(i, "Card", None, (10 + i) * GB, 24 * GB, None, uuid) for i, uuid in enumerate(names)]
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert memory_of_own(cards, device) == (None if used_gb is None else CardMemory(used_gb * GB, 24 * GB))


def test_the_name_of_a_card_is_read_and_told_to_nobody() -> None:
    (card,) = Gpus(FakeNvml(1)).read()
    assert card.uuid == "GPU-0a1b-c"
    assert "GPU-0a1b-c" not in str(HostMetrics(1.0, gpus=(card,)).as_dict())


class Process:
    """What the shares need of an engine process."""

    def __init__(self, kinds: set[EngineKind], peak_gb: float) -> None:
        self.kinds = frozenset(kinds)
        self.memory = Memory("cuda", int(peak_gb * GB), int(peak_gb * GB), GB)
        self.shares: list[float] = []

    def cap(self, share: float) -> None:
        self.shares.append(share)


@pytest.fixture
def processes() -> tuple[Process, Process]:
    return Process({"asr", "llm"}, 8.0), Process({"tts"}, 6.0)


def test_all_processes_together_stay_below_the_fraction(processes: tuple[Process, Process]) -> None:
    first, second = processes
    shares = CardShares(processes, fraction=0.9)  # type: ignore[arg-type]
    shares.before_load("tts", "firered", CardMemory(int(14.0 * GB), 20 * GB))
    assert second.shares == [pytest.approx(0.9 - 8 / 20)]  # what the other one holds is not for it
    shares.share_rest(("llm", "asr", "tts"), CardMemory(int(15.0 * GB), 20 * GB))
    assert first.shares == [pytest.approx((8.0 + 1.5) / 20)]
    assert second.shares[1] == pytest.approx((6.0 + 1.5) / 20)
    # 1 GB of the 15 is the driver's own, which torch's limits do not count.
    assert sum(process.shares[-1] for process in processes) * 20 + 1 == pytest.approx(0.9 * 20)
