"""Is this machine ready? What is there, what is missing, and the line that mends it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

from impls.implementation import find
from results import provenance
from suites.harness import environments, gpu

PYTHONS = ((3, 11), (3, 12), (3, 13))
"""The Python versions for which all four frameworks publish wheels at the pinned versions."""

DISK_GB = 12
"""Free space that the four CPU environments can take where PyTorch's default wheel brings CUDA's libraries."""

VERSIONS = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name))
    except PackageNotFoundError:
        pass
"""
"""Prints the version of each distribution named on its command line that the interpreter has."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what, whether it is well, what was found, and what mends it."""

    what: str
    ok: bool
    found: str
    mend: str | None


def examine(named: tuple[str, ...]) -> tuple[Finding, ...]:
    """All checks of this machine. What is only missing for CUDA or for one mode is well, and says so.

    Raises:
        EnvironmentBuildError: an interpreter that was named is not there.
    """
    return (*_system(), *_frameworks(named), *_noise())


def _system() -> list[Finding]:
    version = sys.version_info[:2]
    system = f"{platform.system()} {platform.machine()}"
    place = environments.cache_root()
    existing = next(path for path in (place, *place.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    compiler = next((program for program in ("g++", "clang++") if shutil.which(program)), None)
    why_no_gpu = gpu.missing()
    return [
        Finding("system", system == "Linux x86_64", system, "Levelfield is made for Linux on x86-64"),
        Finding(
            "python",
            version in PYTHONS,
            platform.python_version(),
            "use Python " + ", ".join(f"{major}.{minor}" for major, minor in PYTHONS) + ": all four frameworks have wheels for these",
        ),
        Finding(
            "disk",
            free_gb > DISK_GB,
            f"{free_gb:.0f} GB free at {existing}",
            f"free {DISK_GB} GB, or set LEVELFIELD_CACHE to a bigger disk",
        ),
        Finding(
            "C++ compiler (only for PyTorch compile)",
            True,
            compiler or "none: `compile` will be a reasoned skip",
            None if compiler else "apt install g++",
        ),
        Finding("NVIDIA GPU (only for --device cuda)", True, why_no_gpu or _gpu(), None),
    ]


def _gpu() -> str:
    """The card that would be measured, and what a reader of its figures must know; or why it cannot be told."""
    from suites.harness.noise import NoCardError

    try:
        facts = gpu.facts(gpu.card())
    except NoCardError as error:
        return str(error)
    return "; ".join([f"{facts['name']}, driver {facts['driver']}, CUDA {facts['cuda_driver']}", *gpu.cautions(facts)])


def _frameworks(named: tuple[str, ...]) -> list[Finding]:
    manifests = find()
    given = environments.parse_named(named, manifests)
    findings = []
    for name, manifest in manifests.items():
        device = manifest.devices["cpu"]
        if name in given:
            done = subprocess.run([given[name], "-c", VERSIONS, *manifest.distributions], capture_output=True, text=True, check=False)
            found = ", ".join(done.stdout.splitlines())
            missing = f"{' or '.join(manifest.distributions)} is not installed in {given[name]}"
            mend = f"{given[name]} -m pip install -r {device.requirements}"
            findings.append(Finding(manifest.title, bool(found), found or missing, mend))
        else:
            built = environments.is_built(manifest, device)
            findings.append(Finding(manifest.title, True, "installed" if built else "not installed yet; the first run installs it", None))
    return findings


def _noise() -> list[Finding]:
    machine = provenance.machine()
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    limit = machine["cpu_limit_cores"]
    enough = not isinstance(limit, (int, float)) or limit >= cores
    return [
        Finding(
            "cores",
            enough,
            f"{cores} usable, limit {limit or 'none'}",
            "the container's CPU limit is below its cores: raise it or use --threads",
        ),
        Finding(
            "load", load < 0.5 * cores, f"{load:.1f} on {cores} cores", "something else is running: wait for it, or expect wide intervals"
        ),
    ]
