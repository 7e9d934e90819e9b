"""What a candidate's code asks of the interpreter, by Python's audit events: a tripwire, not the defence."""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

OURS = str(Path(__file__).resolve().parents[2])  # the library's own folder
BUILDERS = frozenset({
    "cc", "gcc", "g++", "c++", "clang", "clang++", "nvcc", "ninja", "ptxas", "cuobjdump", "nvdisasm", "ld", "lld",
    "ldconfig", "which", "where", "uname", "file", "lscpu", "cmake", "ar", "as", "strip", "nm", "objdump", "sh",
    "cicc", "fatbinary", "cudafe++", "nvidia-smi", "hipcc", "rocminfo",
})  # fmt: skip
FOREIGN_MEMORY = re.compile(r"^/proc/[^/]+/(task/[^/]+/)?(mem|maps|pagemap|environ|fd/.*|fdinfo/.*)$")
TRACING = frozenset({
    "ptrace", "process_vm_readv", "process_vm_writev", "prctl", "mprotect", "kill", "setitimer", "clock_settime",
    "pidfd_getfd", "dup2", "syscall", "fork", "vfork", "clone", "posix_spawn", "sched_setaffinity", "setpriority",
    "PyEval_SetProfile", "PyEval_SetTrace", "PyEval_GetFrame", "PyEval_GetLocals",
})  # fmt: skip
SOCKETS = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.gethostbyname", "urllib.Request")
PROBES = ("gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._getframe", "sys._current_frames",
          "sys._current_exceptions", "sys.settrace", "sys.setprofile")  # fmt: skip
FRAMES = frozenset({"tb_frame", "gi_frame", "cr_frame", "ag_frame"})  # attributes by which callers are found
MOVES = ("os.rename", "os.link", "os.symlink", "os.remove", "os.truncate")
ASKS = ("-q", "--query", "-L", "--list", "--format", "--help", "--version", "-i", "--id")  # nvidia-smi only reads with
DRIVER_SETS = "nvmlDeviceSet"  # how names of what changes a GPU's clocks, power and modes begin
MOST_EVENTS = 20
WRITES = ("w", "a", "x", "+")


class Audit:
    """Collects events that no kernel needs. The hook cannot be removed again, and is only set in a child."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._inside = False
        self._own = os.devnull

    def install(self) -> None:
        """From now on; ``events`` is what the candidate did."""
        self._own = os.path.dirname(os.environ.get("TRITON_CACHE_DIR", os.devnull))
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._inside:
            return
        self._inside = True
        try:
            told = self._told(event, arguments)
            if told is not None and told not in self.events and len(self.events) < MOST_EVENTS:
                self.events.append(told)
        finally:
            self._inside = False

    def _told(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, mode, flags = _path(arguments[0]), str(arguments[1] or ""), arguments[2] or 0
            if FOREIGN_MEMORY.match(path) and _by_candidate(3):
                return f"opened {path}"
            if (any(w in mode for w in WRITES) or flags & WRITING) and self._anothers(path):
                return f"wrote to {path}"
        elif event in MOVES:
            # By filter: a comprehension may be a frame of its own, and frames are counted.
            changed = next(filter(self._anothers, map(_path, arguments[:2])), None)
            if changed is not None:
                return f"{event} of {changed}"
        elif event == "object.__getattr__":
            if arguments[1] in FRAMES and _by_candidate(3, through=()):
                return f"looked at its callers by {arguments[1]}"
        elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"):
            command = arguments[1] if event == "subprocess.Popen" else arguments[0]
            words = [str(w) for w in command] if isinstance(command, (list, tuple)) else str(command).split()
            program = Path(words[0]).name.rstrip("0123456789.-") if words else ""
            sets = program == "nvidia-smi" and any(w.startswith("-") and not w.startswith(ASKS) for w in words[1:])
            if ((program not in BUILDERS or sets) and _by_candidate(3)) or "pip" in words:
                return f"started {' '.join(words)[:80]}"
        elif event in ("os.fork", "os.forkpty", "os.kill", "os.killpg", "signal.pthread_kill"):
            if _by_candidate(3):
                return f"{event}{arguments}"
        elif event in SOCKETS:
            return f"{event} {arguments[1:2]}"
        elif event == "ctypes.dlsym" and _by_candidate(3):
            if str(arguments[1]) in TRACING or str(arguments[1]).startswith(DRIVER_SETS):
                return f"looked up {arguments[1]}"
        elif event in PROBES and _by_candidate(3, through=("inspect.py", "traceback.py")):
            return f"called {event}"
        elif event in ("compile", "code.__new__") and _by_candidate(3, through=()):
            name = str(arguments[1])
            if name.startswith((OURS, STANDARD)) or "-packages" in name:
                return f"compiled code in the name of {name}"
        return None

    def _anothers(self, path: str) -> bool:
        """Whether others rely on what lies there: the library; and where the candidate's own file is at work, installed
        packages, modules, the bench's other folders and what is built for all, for packages may write to their own."""
        if path.startswith(OURS):
            return True
        module = path.endswith(MODULES) and os.path.dirname(path) in ON_PATH
        cache = path.startswith(TEMPORARY) and not path.startswith(self._own)
        return (module or cache or path.startswith(SHARED)) and _by_candidate(4)


def _by_candidate(depth: int, through: tuple[str, ...] | None = None) -> bool:
    """Whether the code that caused the event lies in a candidate's file. The standard library's frames in between are
    skipped: all, or those of the files named in ``through``."""
    frame: Any = _frame(depth)
    while frame is not None:
        name = frame.f_code.co_filename
        standard = name.startswith("<frozen") or (name.startswith(STANDARD) and "-packages" not in name)
        if standard and (through is None or name.endswith(through)):
            frame = frame.f_back
            continue
        return not (standard or name.startswith(OURS) or "-packages" in name)
    return False


def _path(given: Any) -> str:
    """Absolute, or as it was given where that is a descriptor."""
    return os.path.abspath(os.fsdecode(given)) if isinstance(given, (str, bytes)) else str(given)


_frame = sys._getframe
WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
ON_PATH = frozenset(map(os.path.abspath, sys.path))
MODULES = (".py", ".pyc", ".pth", ".so")
TEMPORARY = os.path.join(tempfile.gettempdir(), "fastkernels-")
BUILT = ("~/.cache/torch_extensions", "~/.cache/flashinfer", "~/.cache/vllm", "~/.triton", "~/.deep_gemm")
SHARED = (
    *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")},
    site.getusersitepackages(),
    *(os.path.expanduser(folder) for folder in BUILT),
    os.path.abspath(os.environ.get("TORCH_EXTENSIONS_DIR", os.devnull)),
)
STANDARD = str(Path(re.__file__).resolve().parents[1])
