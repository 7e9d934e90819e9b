"""What a child may not do to other processes of the same user: no tracing, no reading of their memory (Linux)."""

from __future__ import annotations

import ctypes
import signal
import sys

SET_DEATH_SIGNAL, SET_DUMPABLE, CAP_DROP, SET_SUBREAPER, SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
# By number in linux/capability.h: those with which root reaches into another process.
REACHING = {"SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "PERFMON": 38, "BPF": 39,
            "CHECKPOINT_RESTORE": 40}  # fmt: skip
VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def confine() -> None:
    """This process ends with its parent, gains no privileges, and can neither trace others nor be traced by them.

    A process may be traced only by one that holds all its capabilities: the parent keeps what is dropped here.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for number in REACHING.values():
        libc.prctl(CAP_DROP, number, 0, 0, 0)
    header, sets = _Header(VERSION_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets) == 0:
        for number in REACHING.values():
            word, bit = divmod(number, 32)
            sets[word].effective &= ~(1 << bit)
            sets[word].permitted &= ~(1 << bit)
            sets[word].inheritable &= ~(1 << bit)
        libc.capset(ctypes.byref(header), sets)
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """What this process's descendants leave behind becomes its child, not init's: nothing gets out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_SUBREAPER, 1, 0, 0, 0)
