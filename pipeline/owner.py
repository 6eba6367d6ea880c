"""Who a process is: an ID, when it began, and the namespace in which the ID means something."""

from __future__ import annotations

from pathlib import Path

NAMESPACE = Path("/proc/self/ns/pid")
"""Its inode tells containers, which may share files, apart."""


def stat(pid: int | str) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, empty if there is no such process; "self" is this one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def began(pid: int | str) -> str | None:
    """Return when a process began, in ticks since the machine did; None if it does not run or is unknown."""
    fields = stat(pid)
    return fields[19] if fields else None
