"""How much memory a process has taken at most."""

import sys


def peak_mb():
    """The process's high-water mark of memory so far, in MB of 10^6 bytes (0 where the system does not tell).

    Linux says it in /proc too, and there it starts afresh with the program: getrusage would also count the process
    that started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
