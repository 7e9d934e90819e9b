"""cache: what a process built and left on the disk must not be loaded again once the candidate's source has changed."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from fastkernels.evaluation.conflicts.edited import copy_sources, edit_sources
from fastkernels.evaluation.conflicts.observe import LIBRARY, OURS, is_user_file
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject

RERUN = "fastkernels.evaluation.conflicts.rerun"  # run with python -m
SECONDS = 50.0
# Where builders that look at the content keep what they build.
BUILDERS = ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
SYSTEM = ("/usr", "/lib", "/lib64", "/opt", "/proc", "/dev", "/etc", "/sys")
LOADS = re.compile(
    r"\b(pickle|marshal|dill|joblib|torch|np|numpy)\.load(s|_file)?\(|read_bytes\(|['\"]rb['\"]|\bmmap\b"
    r"|\bCDLL\b|LoadLibrary|load_library\(|spec_from_file_location|ExtensionFileLoader|import_module\(|cuModuleLoad"
)
Loaded = dict[str, tuple[str, int]]  # file: the candidate's file and line that loads it


def check_cache(subject: Subject) -> Iterator[Finding]:
    """One process builds, in empty folders; then every source is edited, and a second one must build again."""
    file = Path(inspect.getfile(subject.candidate.cls))
    if not is_user_file(str(file)) or not _may_load(subject, file):
        raise Skip("the candidate loads nothing from the disk that it could have built")
    with tempfile.TemporaryDirectory(prefix="fastkernels-conflicts-") as folder:
        root = Path(folder).resolve()
        copy = root / "scratch" / "source" / file.parent.name
        copy_sources(file, copy)
        first = _run(subject, copy / file.name, root)
        built = {str(f) for f in (root / "scratch").rglob("*") if f.is_file()} | first.keys()
        before = {name: _stamp(name) for name in built if _is_built(name, root)}
        if not before:
            return
        edit_sources(copy)
        second = _run(subject, copy / file.name, root)
        for name in sorted(second.keys() & before.keys()):
            if before[name] is not None and _stamp(name) == before[name]:
                source, line = first.get(name, (second[name][0], None))  # lines of the edited text are no use
                short = Path(name).relative_to(root / "scratch") if Path(name).is_relative_to(root) else Path(name)
                text = f"{short}, built by an earlier process, is loaded though every source of the candidate changed"
                evidence = Evidence(text=text, file=str(file.parent / source), line=line)
                yield Finding(code="CC_STALE_CACHE", evidence=evidence)


def _may_load(subject: Subject, file: Path) -> bool:
    """Whether its code, or code loaded from its folder, speaks of loading; or a library of its own is in use."""
    with torch.no_grad():
        call = next(iter(subject.calls(rows=[8])))
        subject.build(call)(*subject.draw(call))
    modules = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
    beside = {Path(f) for f in modules if f and f.endswith(".py") and Path(f).is_relative_to(file.parent)}
    if any(LOADS.search(source.read_text(errors="replace")) for source in {file, *beside} if is_user_file(str(source))):
        return True
    maps = Path("/proc/self/maps")
    mapped = (
        {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line} if maps.exists() else ()
    )
    return any(name.endswith((".so", ".cubin")) and _is_outside(name) for name in mapped)


def _is_outside(name: str) -> bool:
    """Not the system's, nor Python's, nor of a builder that keys by content."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    from torch.utils.cpp_extension import get_default_build_root

    known = [*SYSTEM, sys.prefix, sys.base_prefix, str(LIBRARY), str(OURS), *(os.environ.get(b, "") for b in BUILDERS)]
    known += [get_default_build_root(), default_cache_dir(), str(Path.home() / ".triton")]
    path = Path(name)
    return "site-packages" not in path.parts and not any(folder and path.is_relative_to(folder) for folder in known)


def _run(subject: Subject, file: Path, root: Path) -> Loaded:
    """One process with its home and its folders for temporary files below ``root``; raises Skip where it fails."""
    scratch = root / "scratch"
    homes = {name: str(scratch / name.lower()) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR")}
    keyed = {name: str(root / name.lower()) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    for path in (*homes.values(), *keyed.values()):
        Path(path).mkdir(exist_ok=True)
    candidate = subject.candidate
    command = [sys.executable, "-m", RERUN, str(file), subject.task.name, candidate.cls.__qualname__]
    path = os.pathsep.join([str(OURS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = (
        os.environ | homes | keyed | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    )
    try:
        done = subprocess.run(
            [*command, subject.device.type],
            cwd=file.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise Skip(f"a copy of the candidate's folder did not run within {SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise Skip(f"a copy of the candidate's folder does not run: {done.stderr.strip().splitlines()[-1:]}")
    found: Loaded = json.loads(done.stdout.splitlines()[-1])
    return found


def _is_built(name: str, root: Path) -> bool:
    """Bytes, not text, that lie where processes keep what they built: in our scratch folder, which held sources only,
    or in the user's own folders for caches and temporary files."""
    path = Path(name)
    caches = (Path(tempfile.gettempdir()), Path.home() / ".cache")
    inside = path.is_relative_to(root / "scratch") or any(
        path.is_relative_to(c) and not path.is_relative_to(root) for c in caches
    )
    if not inside or path.suffix == ".pyc" or not path.is_file():
        return False
    try:
        path.read_bytes()[: 1 << 16].decode()
    except UnicodeDecodeError:
        return True
    except OSError:
        return False
    return path.suffix in (".ptx", ".so", ".cubin")


def _stamp(name: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(name)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
