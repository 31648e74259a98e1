"""What this container may use and uses, from the cgroup file system (versions 2 and 1).

On a shared host the machine's own figures are mostly the neighbours'. Without a container, or without limits, every
function gives None and the machine's figures are the right ones. Sources: the kernel's admin-guide/cgroup-v2 and
cgroup-v1 documents.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def cpu_limit(root: Path = ROOT) -> float | None:
    """Cores the container may use, a fraction where there is a quota."""
    words = _read(root / "cpu.max").split()
    if len(words) == 2:
        return int(words[0]) / int(words[1]) if words[0] != "max" else None
    quota, period = _number(root / "cpu/cpu.cfs_quota_us"), _number(root / "cpu/cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def cpu_used_s(root: Path = ROOT) -> float | None:
    """CPU seconds that the container has used so far."""
    used_us = _field(root / "cpu.stat", "usage_usec")
    if used_us is not None:
        return used_us / 1e6
    used_ns = _number(root / "cpuacct/cpuacct.usage")
    return used_ns / 1e9 if used_ns is not None else None


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The limit of the container. Version 1 writes a number near 2**63 for none: compare with the machine's memory."""
    limit = _number(root / "memory.max")
    return limit if limit is not None else _number(root / "memory/memory.limit_in_bytes")


def memory_used_bytes(root: Path = ROOT) -> int | None:
    """What the container uses, without the file cache that the kernel gives back when memory is short."""
    used = _number(root / "memory.current")
    if used is not None:
        return used - (_field(root / "memory.stat", "inactive_file") or 0)
    used = _number(root / "memory/memory.usage_in_bytes")
    if used is not None:
        return used - (_field(root / "memory/memory.stat", "total_inactive_file") or 0)
    return None


def memory_left_bytes(root: Path = ROOT) -> int | None:
    """What the container may still take. Version 1 without a limit gives a number beyond any machine's memory."""
    limit, used = memory_limit_bytes(root), memory_used_bytes(root)
    return max(limit - used, 0) if limit is not None and used is not None else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _field(path: Path, name: str) -> int | None:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
