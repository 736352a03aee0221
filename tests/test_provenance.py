from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from results import provenance
from results.record import Code
from tests.example_records import fields, record

CPU = """processor\t: {number}
vendor_id\t: GenuineIntel
model name\t: Some CPU @ 2.00GHz
microcode\t: 0x2b
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu avx2 hypervisor

"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of one socket, two cores and four threads in a limited container."""
    write(tmp_path / "proc/cpuinfo", "".join(CPU.format(number=number, core=number // 2) for number in range(4)))
    write(tmp_path / "proc/meminfo", "MemTotal:       32900000 kB\nMemFree: 1 kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    write(tmp_path / "proc/sys/kernel/randomize_va_space", "2\n")
    system = tmp_path / "sys"
    write(system / "fs/cgroup/outer/cpu.max", "150000 100000\n")
    write(system / "fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    write(system / "kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    write(system / "class/dmi/id/sys_vendor", "Some Cloud\n")
    cpus = system / "devices/system/cpu"
    write(cpus / "smt/active", "1\n")
    write(cpus / "intel_pstate/no_turbo", "0\n")
    for number, governor in enumerate(("performance", "powersave")):
        write(cpus / f"cpu{number}/cpufreq/scaling_governor", governor + "\n")
    for name, text in {"level": "1", "type": "Data", "size": "32K", "shared_cpu_list": "0-1"}.items():
        write(cpus / f"cpu0/cache/index0/{name}", text)
    write(tmp_path / ".dockerenv", "")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed checkout with a version."""
    write(tmp_path / "checkout/levelfield/_version.py", '"""Version."""\n\n__version__ = "1.2.3"\n')
    write(tmp_path / "checkout/.gitignore", "ignored\n")
    git(tmp_path, "init", "-q", "checkout")
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-q", "-m", "first")
    return tmp_path / "checkout"


def test_machine_from_files(root: Path) -> None:
    """Every fact is read from its file."""
    expected = {
        "cpu_model": "Some CPU @ 2.00GHz",
        "cpu_features": ["avx2", "fpu", "hypervisor"],
        "logical_cpus": 4,
        "cores": 2,
        "sockets": 1,
        "smt": True,
        "caches": ["L1 Data 32K, of cpus 0-1"],
        "memory_bytes": 32900000 * 1024,
        "memory_gib": 31,
        "hypervisor": "unknown",
        "vendor": "Some Cloud",
        "product": None,
        "microcode": "0x2b",
        "cpu_limit_cores": 1.5,
        "governors": ["performance", "powersave"],
        "turbo": True,
        "transparent_hugepages": "madvise",
        "address_space_randomisation": "2",
        "container": "docker",
    }
    found = provenance.machine(root)
    assert {name: found[name] for name in expected} == expected


def test_cpu_limit_of_version_1(root: Path) -> None:
    """The quota of version 1 control groups is read too, from the mount's root where the group is not to be seen; -1 is none."""
    write(root / "proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/x\n")
    limit = root / "sys/fs/cgroup/cpu,cpuacct"
    write(limit / "cpu.cfs_period_us", "100000\n")
    write(limit / "cpu.cfs_quota_us", "-1\n")
    assert provenance.machine(root)["cpu_limit_cores"] is None
    write(limit / "cpu.cfs_quota_us", "50000\n")
    assert provenance.machine(root)["cpu_limit_cores"] == 0.5


def test_nothing_to_read(tmp_path: Path) -> None:
    """Where there is nothing to read, every such fact is null and nothing is raised."""
    found = provenance.machine(tmp_path)
    known = {"machine_id", "architecture", "affinity", "kernel", "distribution", "python", "libc"}
    assert {name for name, value in found.items() if value is not None} <= known


def test_garbled_files(root: Path) -> None:
    """Files with nonsense in them give nulls, not errors."""
    for path in root.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff\xfe nonsense : \n\n\n:")
    assert json.dumps(provenance.machine(root))


def test_machine_id_lasts(root: Path) -> None:
    """The identity follows the hardware and not what may change under it."""
    before = provenance.machine(root)["machine_id"]
    write(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
    write(root / "proc/meminfo", "MemTotal:       32900400 kB\n")
    assert provenance.machine(root)["machine_id"] == before
    write(root / "proc/cpuinfo", CPU.format(number=0, core=0))
    assert provenance.machine(root)["machine_id"] != before


def test_this_machine_is_anonymous() -> None:
    """What is said of this machine is JSON, the same twice, and names neither its host nor its user."""
    found = provenance.machine()
    text = json.dumps(found, allow_nan=False)
    assert found == provenance.machine()
    assert provenance.anonymous(text) == text


def test_code_of_a_clean_checkout(checkout: Path) -> None:
    """A clean checkout has version, commit and no difference, whatever git ignores; a record takes it."""
    write(checkout / "ignored", "x")
    found = provenance.code(checkout)
    assert (found.version, found.dirty, found.diff_sha256) == ("1.2.3", False, None)
    assert found.commit is not None
    assert len(found.commit) == 40
    assert record(code=fields()["code"] | {"commit": found.commit}).code.commit == found.commit


def test_code_of_a_changed_checkout(checkout: Path) -> None:
    """Every change, staged, unstaged or in a new file, gives another hash; undoing it gives none."""
    version = checkout / "levelfield/_version.py"
    before = version.read_text(encoding="utf-8")
    hashes = set()
    write(version, before + "# changed\n")
    hashes.add(provenance.code(checkout).diff_sha256)
    git(checkout, "add", ".")
    write(version, before + "# changed again\n")
    hashes.add(provenance.code(checkout).diff_sha256)
    for content in ("new", "newer"):
        write(checkout / "new.py", content)
        hashes.add(provenance.code(checkout).diff_sha256)
    (checkout / "new.py").rename(checkout / "renamed.py")
    hashes.add(provenance.code(checkout).diff_sha256)
    assert len(hashes - {None}) == 5
    assert provenance.code(checkout).dirty is True
    (checkout / "renamed.py").unlink()
    git(checkout, "reset", "-q", "--hard")
    assert provenance.code(checkout).dirty is False


def test_code_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git, or outside a checkout, the version is still told."""
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        assert provenance.code(checkout) == Code("1.2.3", None, None, None)
    assert provenance.code(checkout / "nowhere") == Code(None, None, None, None)


def test_code_inside_another_repository(checkout: Path) -> None:
    """A copy that lies inside another project's repository does not take that one's commit."""
    write(checkout / "vendored/levelfield/_version.py", '__version__ = "9"\n')
    assert provenance.code(checkout / "vendored") == Code("9", None, None, None)


def test_code_from_a_git_hook(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that git sets for its hooks do not point elsewhere."""
    expected = provenance.code(checkout)
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert provenance.code(checkout) == expected


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is allowed is kept, and without the home folder."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={Path.home()}/dump")
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["192.0.2.1:1"]}}')
    found = provenance.environment()
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["XLA_FLAGS"] == "--xla_dump_to=~/dump"
    assert "SECRET_TOKEN" not in found
    assert "TF_CONFIG" not in found
    assert provenance.environment(["SECRET_*"]) == {"SECRET_TOKEN": "abc"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("File '/home/alice/x/y.py', line 1", "File '~/x/y.py', line 1"),
        ("/Users/bob: no", "~: no"),
        ("on builder-7.", "on HOST."),
        ("builder-77 and my-builder-7", "builder-77 and my-builder-7"),
        ("/opt/python/lib", "/opt/python/lib"),
        ("/srv/me/x and /srv/mean", "~/x and /srv/mean"),
        ("GPU-8f3b2c1d-0a1b-4c2d-9e3f-001122334455,1", "GPU-UUID,1"),
        ("MIG-8f3b2c1d-0a1b-4c2d-9e3f-001122334455 and GPU-0", "MIG-UUID and GPU-0"),
    ],
)
def test_anonymous(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home folders and the host's name are taken out of text, and nothing else is."""
    monkeypatch.setattr(socket, "gethostname", lambda: "builder-7")
    monkeypatch.setattr(Path, "home", lambda: Path("/srv/me"))
    assert provenance.anonymous(text) == expected


def test_affinity() -> None:
    """The processors that this process may use are told."""
    assert provenance.machine()["affinity"] == sorted(os.sched_getaffinity(0))
