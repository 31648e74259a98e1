"""The numbers of the platform: payloads, times, rates, and how much of it all a laptop is asked to hold."""

from __future__ import annotations

from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """RunPod's own values (its documentation of August 2026) unless a comment says that they are ours."""

    run_bytes: int = 10_000_000
    """Largest body of /run, and largest result of a job that came by it."""
    runsync_bytes: int = 20_000_000
    stream_item_bytes: int = 1_000_000
    async_kept_s: float = 1800.0
    """How long the result of /run can be asked for."""
    sync_kept_s: float = 60.0
    sync_wait_s: float = 90.0
    """How long /runsync waits without `?wait=`."""
    sync_wait_range_s: tuple[float, float] = (1.0, 300.0)
    execution_timeout_s: float = 600.0
    execution_timeout_range_s: tuple[float, float] = (5.0, 7 * DAY_S)
    ttl_s: float = DAY_S
    ttl_range_s: tuple[float, float] = (10.0, 7 * DAY_S)
    n_retries: int = 1
    """How often a job whose worker died is given to another one."""
    webhook_retries: int = 2
    webhook_pause_s: float = 10.0

    hold_s: float = 2.0
    """Ours. How long a worker's question for work is held open; a worker that was told to stop leaves after it."""
    stream_hold_s: float = 1.0
    """Ours. How long /stream waits for the first item."""
    heartbeat_s: float = 60.0
    """Ours. A worker that nothing was heard of for so long is taken for dead."""
    kept_bytes: int = 256_000_000
    """Ours. Inputs and results in memory: beyond it, the oldest finished jobs go, then new ones are refused."""
    stream_items: int = 1000
    stream_bytes: int = 20_000_000
    """Ours. Stream items of a job that nobody fetched yet; beyond it, the oldest go."""

    def max_queue(self, n_workers: int) -> int:
        """Jobs that may wait before /run answers 429."""
        return max(50, 500 * n_workers)


RATES = {"run": (1000, 10.0), "runsync": (2000, 10.0), "status": (2000, 10.0), "stream": (2000, 10.0),
         "cancel": (100, 10.0), "purge-queue": (2, 10.0)}  # fmt: skip
"""Requests per seconds, per operation."""
