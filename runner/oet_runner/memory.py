"""Whether the kernel killed something because memory ran out: it only ever says so in counters."""

from __future__ import annotations

__all__ = ["find_counter", "observe_oom_kills"]

_COUNTER = "oom_kill"


def find_counter(text: str, name: str = _COUNTER) -> int | None:
    """Return the number behind `name` in lines of `name number`; None where there is none. Pure."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def compute_counter_files(own_cgroups: str) -> list[str]:
    """Return the files that may hold this container's own counter, likeliest first. Pure.

    Args:
        own_cgroups: Content of /proc/self/cgroup: lines of `number:controllers:path`.
    """
    files = []
    for line in own_cgroups.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        if controllers == "":
            files += [f"/sys/fs/cgroup{path.rstrip('/')}/memory.events", "/sys/fs/cgroup/memory.events"]
        elif "memory" in controllers.split(","):
            root = "/sys/fs/cgroup/memory"
            files += [f"{root}{path.rstrip('/')}/memory.oom_control", f"{root}/memory.oom_control"]
    return files


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def observe_oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory.

    It is the count of this cgroup where that can be known, else of the machine; 0 where neither is counted.
    """
    for path in [*compute_counter_files(_read("/proc/self/cgroup")), "/proc/vmstat"]:
        count = find_counter(_read(path))
        if count is not None:
            return count
    return 0
