"""What this process may use: cores and memory, as its control group says, else as the machine has them."""

import os
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cores(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Cores that the process may keep busy; a part of one counts as one."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        allowed = os.cpu_count() or 1
    quotas = [allowed, *_cpu_quotas(groups, own)]
    return max(1, ceil(min(quotas)))


def memory(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes of memory that the process may use, together with all else in its container."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = [folder / "memory.max" for folder in _folders(groups, own, "")]
    files += [folder / "memory.limit_in_bytes" for folder in _folders(groups / "memory", own, "memory")]
    limits = [int(words[0]) for file in files if (words := _words(file))]
    return min([machine, *(limit for limit in limits if limit > 0)])


def _cpu_quotas(groups: Path, own: Path) -> Iterator[float]:
    for folder in _folders(groups, own, ""):  # version 2: "quota period", in microseconds
        if len(words := _words(folder / "cpu.max")) == 2:
            yield int(words[0]) / int(words[1])
    for folder in _folders(groups / "cpu", own, "cpu"):  # version 1
        quota, period = (_words(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota and period and int(quota[0]) > 0:
            yield int(quota[0]) / int(period[0])


def _folders(root: Path, own: Path, controller: str) -> list[Path]:
    """The folders of the process' group and of those around it, whose limits hold as well.

    controller: of version 1; "": version 2. A container often sees its own group as the root.
    """
    found = [root]
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                group = root / path.lstrip("/")
                found += [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return list(dict.fromkeys(found))


def _words(file: Path) -> list[str]:
    """The numbers of a limit; none: there is no such file, or it says "max"."""
    try:
        words = file.read_text().split()
    except OSError:
        return []
    return words if all(word.lstrip("-").isdecimal() for word in words) else []
