"""Where a measurement was made: machine, code and environment.

Read from /proc and /sys (Linux); what cannot be read is None, never an error. Host names, users, addresses and serial numbers
are not read, so that a record can be published.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from results.record import Code
from results.schema import canonical

ENVIRONMENT = (
    "CUBLAS_*",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "CUDNN_*",
    "DNNL_*",
    "GOMP_*",
    "JAX_DEFAULT_*",
    "JAX_ENABLE_*",
    "JAX_PLATFORMS",
    "KMP_*",
    "LD_PRELOAD",
    "MALLOC_*",
    "MKL_*",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_*",
    "ONEDNN_*",
    "OPENBLAS_*",
    "ORT_*",
    "PYTHONHASHSEED",
    "PYTORCH_*",
    "TF_CPP_*",
    "TF_CUDNN_*",
    "TF_ENABLE_*",
    "TF_FORCE_*",
    "TF_GPU_*",
    "TF_NUM_*",
    "TF_USE_*",
    "TF_XLA_*",
    "TORCHINDUCTOR_*",
    "TORCH_*",
    "XLA_*",
)
"""The environment variables that change how the frameworks compute."""


def machine(root: Path = Path("/")) -> dict[str, object]:
    """What this machine is and how it is set up now; ``root`` is where proc and sys lie.

    ``machine_id`` is a hash of what lasts (processor, caches, memory, virtualisation, vendor), so equal machines share it;
    kernel, governor, affinity and limits may change under it.
    """
    proc, system = root / "proc", root / "sys"
    cpus = system / "devices/system/cpu"
    cpuinfo = _cpuinfo(proc / "cpuinfo")
    memory = _memory_bytes(proc / "meminfo")
    features = sorted(set((_only(cpuinfo, "flags") or "").split()))
    lasting: dict[str, object] = {
        "architecture": platform.machine(),
        "cpu_model": _only(cpuinfo, "model name"),
        "cpu_vendor": _only(cpuinfo, "vendor_id"),
        "cpu_features": features or None,
        "logical_cpus": len(cpuinfo) or None,
        "cores": len({(entry.get("physical id"), entry["core id"]) for entry in cpuinfo if "core id" in entry}) or None,
        "sockets": len({entry["physical id"] for entry in cpuinfo if "physical id" in entry}) or None,
        "smt": _flag(cpus / "smt/active"),
        "numa_nodes": _text(system / "devices/system/node/online"),
        "caches": _caches(cpus / "cpu0/cache"),
        "memory_gib": None if memory is None else round(memory / 2**30),
        "hypervisor": _text(system / "hypervisor/type") or ("unknown" if "hypervisor" in features else None),
        "vendor": _text(system / "class/dmi/id/sys_vendor"),
        "product": _text(system / "class/dmi/id/product_name"),
    }
    return {
        "machine_id": hashlib.sha256(canonical(lasting)).hexdigest()[:16],
        **lasting,
        "memory_bytes": memory,
        "cache_bytes": _last_level_cache_bytes(cpus / "cpu0/cache"),
        "microcode": _only(cpuinfo, "microcode"),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_limit_cores": _cpu_limit_cores(proc / "self/cgroup", system / "fs/cgroup"),
        "governors": sorted({text for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := _text(path))}) or None,
        "frequency_driver": _text(cpus / "cpu0/cpufreq/scaling_driver"),
        "turbo": _turbo(cpus),
        "transparent_hugepages": _chosen(_text(system / "kernel/mm/transparent_hugepage/enabled")),
        "address_space_randomisation": _text(proc / "sys/kernel/randomize_va_space"),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "container": _container(root),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }


def code(root: Path) -> Code:
    """Version and state of the checkout at ``root``; outside a git checkout of its own the commit is None."""
    found = re.search(r'^__version__ = "(.+)"', _text(root / "levelfield/_version.py") or "", re.MULTILINE)
    version = found.group(1) if found else None
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    diff = _git(root, "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD")
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    if top is None or commit is None or diff is None or others is None:
        return Code(version, None, None, None)
    if Path(os.fsdecode(top.rstrip(b"\n"))).resolve() != root.resolve():
        # Unpacked inside another project's repository: that one's commit says nothing of this code.
        return Code(version, None, None, None)
    digest = hashlib.sha256(diff)
    for name in filter(None, others.split(b"\0")):
        digest.update(b"\0" + name + b"\0" + _file_digest(root / os.fsdecode(name)))
    dirty = bool(diff or others)
    return Code(version, commit.decode().strip(), dirty, digest.hexdigest() if dirty else None)


def environment(allow: Iterable[str] = ENVIRONMENT) -> dict[str, str]:
    """The environment variables that match a pattern of ``allow``, without home folder and host name."""
    patterns = tuple(allow)
    return {
        name: anonymous(value)
        for name, value in sorted(os.environ.items())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def anonymous(text: str) -> str:
    """The text without what names a user, host or card: home folders become ``~``, the host's name ``HOST``, a GPU's UUID ``GPU-UUID``."""
    text = re.sub(r"\b(GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b", r"\1-UUID", text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    text = re.sub(r"/(?:home|Users)/[^/\s:'\"]+", "~", text)
    host = socket.gethostname()
    return re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "HOST", text) if host not in ("", "localhost") else text


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _flag(path: Path) -> bool | None:
    text = _text(path)
    return {"0": False, "1": True}.get(text) if text else None


def _cpuinfo(path: Path) -> list[dict[str, str]]:
    """One mapping for each logical processor."""
    blocks = (_text(path) or "").split("\n\n")
    parsed = ({name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())} for block in blocks)
    return [block for block in parsed if "processor" in block]


def _only(cpuinfo: list[dict[str, str]], field: str) -> str | None:
    """The field's value, or all its values where processors differ."""
    return " | ".join(sorted({entry[field] for entry in cpuinfo if field in entry})) or None


def _memory_bytes(path: Path) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(path) or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _caches(folder: Path) -> list[str] | None:
    """The caches that the first processor uses, like ``L1 Data 32K, of cpus 0-1``."""
    caches = []
    for index in sorted(folder.glob("index[0-9]*")):
        level, kind, size, shared = (_text(index / name) for name in ("level", "type", "size", "shared_cpu_list"))
        if level and kind and size:
            caches.append(f"L{level} {kind} {size}, of cpus {shared or 'unknown'}")
    return caches or None


def _last_level_cache_bytes(folder: Path) -> int | None:
    """Size of the largest cache that the first processor uses."""
    texts = [_text(entry / "size") for entry in folder.glob("index*")]
    found = [re.fullmatch(r"(\d+)([KM])", text) for text in texts if text]
    return max((int(each[1]) << {"K": 10, "M": 20}[each[2]] for each in found if each), default=None)


def control_groups(membership: Path, mount: Path) -> Iterator[Path]:
    """The folders of the control groups with CPU files that hold a process, innermost first (cgroups 1 and 2).

    ``membership`` is the process's /proc/PID/cgroup, ``mount`` /sys/fs/cgroup. A folder need not exist: in a container the
    innermost that does may be the mount itself.
    """
    for controllers, path in re.findall(r"^\d+:([^:]*):/*(.*)$", _text(membership) or "", re.MULTILINE):
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        group = base / path
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            yield folder


def _cpu_limit_cores(membership: Path, mount: Path) -> float | None:
    """The tightest CPU quota of the control groups that hold this process, in cores; None without one."""
    limits = []
    for folder in control_groups(membership, mount):
        quota = _text(folder / "cpu.max") or f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        if found := re.fullmatch(r"(\d+) ([1-9]\d*)", quota):
            limits.append(int(found.group(1)) / int(found.group(2)))
    return min(limits, default=None)


def _turbo(cpus: Path) -> bool | None:
    disabled = _flag(cpus / "intel_pstate/no_turbo")
    return _flag(cpus / "cpufreq/boost") if disabled is None else not disabled


def _chosen(choices: str | None) -> str | None:
    """The one in brackets, as in ``always [madvise] never``."""
    found = re.search(r"\[(\w+)\]", choices or "")
    return found.group(1) if found else None


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _container(root: Path) -> str | None:
    marks = {"docker": root / ".dockerenv", "podman": root / "run/.containerenv"}
    return next((name for name, path in marks.items() if path.exists()), None)


def _file_digest(path: Path) -> bytes:
    try:
        return os.fsencode(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b"unreadable"


def _git(root: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            check=True,
            timeout=30,
            # Inside a git hook, GIT_DIR and its like point at the repository of the hook.
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
