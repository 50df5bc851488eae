"""One look at a machine, this one or a device, through its shell: what it is, what it has, what is installed there.

A device has a POSIX shell and little else: no Python on a phone, no `awk` in a small BusyBox. So one script asks for
everything at once, reads alone, writes nothing, and leaves out what the device does not tell.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

RUNTIMES = ("executorch", "tensorrt", "onnxruntime", "coremltools", "torch")
"""Distributions that a device's Python is asked for."""

_TOOLS = ("python3", "g++", "tar", "sha256sum", "shasum", "flock", "timeout", "trtexec", "nvpmodel", "adb", "xcrun")

_PYTHON = f"""
import sys
names = {json.dumps(RUNTIMES)}
print("python=%d.%d.%d" % sys.version_info[:3])
try:
    from importlib import metadata
    for name in names:
        try:
            print("package." + name + "=" + metadata.version(name))
        except metadata.PackageNotFoundError:
            pass
except ImportError:  # before Python 3.8
    import pkg_resources
    for one in pkg_resources.working_set:
        if one.project_name in names:
            print("package." + one.project_name + "=" + one.version)
"""

SCRIPT = f"""
say() {{ [ -z "$2" ] || printf '%s=%s\\n' "$1" "$2"; }}
PATH="$PATH:/usr/src/tensorrt/bin"
say system "$(uname -s)"
say release "$(uname -r)"
say architecture "$(uname -m)"
say model "$(cat /proc/device-tree/model 2> /dev/null | tr -d '\\000')"
say model "$(cat /sys/class/dmi/id/product_name 2> /dev/null)"
say model "$(sysctl -n hw.model 2> /dev/null)"
say model "$(getprop ro.product.model 2> /dev/null)"
say android "$(getprop ro.build.version.release 2> /dev/null)"
say abi "$(getprop ro.product.cpu.abi 2> /dev/null)"
say distribution "$(. /etc/os-release 2> /dev/null && printf %s "$PRETTY_NAME")"
say jetson "$(head -n 1 /etc/nv_tegra_release 2> /dev/null)"
say cpu "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2> /dev/null | head -n 1)"
say cpu "$(sysctl -n machdep.cpu.brand_string 2> /dev/null)"
say cores "$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN 2> /dev/null || sysctl -n hw.ncpu 2> /dev/null)"
say memory_kib "$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo 2> /dev/null)"
place="$1"
while [ -n "$place" ] && [ ! -d "$place" ]; do place="${{place%/*}}"; done
set -- "$1" "$2" $(df -Pk "${{place:-/}}" 2> /dev/null | tail -n 1)
say free_kib "$6"
for tool in {" ".join(_TOOLS)}; do say "tool.$tool" "$(command -v "$tool" 2> /dev/null)"; done
case "$(readlink "$(command -v ln)")" in *toybox*) say switch "toybox's ln";; esac
[ -z "$(mv --help 2>&1 | sed -n '/-[a-zA-Z]*T/p')" ] || say switch "mv -T"
say gcc "$(g++ -dumpfullversion -dumpversion 2> /dev/null)"
say trtexec "$(trtexec --help 2> /dev/null | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1)"
command -v "$2" > /dev/null 2>&1 && "$2" -c '{_PYTHON}' 2> /dev/null
for one in "$1"/*/current; do [ -e "$one/bundle.json" ] && say installed "$(cd "$one" && pwd -P)"; done
true
"""
"""To be run as ``sh -c SCRIPT sh HOME PYTHON``: where installs go there, and which Python is meant."""


@dataclass(frozen=True)
class Probe:
    """What a machine said of itself; None for what it did not say.

    Attributes:
        system: of uname, ``Linux``, ``Darwin``.
        release: of the kernel.
        architecture: ``x86_64``, ``aarch64``, ``armv7l``.
        model: the board, phone or computer by its maker's name.
        described: the operating system in words, ``Ubuntu 22.04.4 LTS`` say, or ``Android 14``.
        cpu: by its maker's name.
        cores, memory_gib, free_gib: that may be used; of memory; on the disk where installs go.
        tools: programs, and where they are.
        python: version of the Python that was asked, ``3.10.12``.
        packages: runtimes that it has, and their versions.
        trtexec, gcc: versions.
        switch: what replaces a symbolic link in one step there, if it is no Python.
        installed: ``<model>-<target>`` and the first digits of the bundle's digest, for each that is current.
    """

    system: str
    release: str
    architecture: str
    model: str | None
    described: str | None
    cpu: str | None
    cores: int | None
    memory_gib: float | None
    free_gib: float | None
    tools: Mapping[str, str]
    python: str | None
    packages: Mapping[str, str]
    trtexec: str | None
    gcc: str | None
    switch: str | None
    installed: tuple[tuple[str, str], ...]

    @property
    def is_android(self) -> bool:
        """A phone or tablet, whose file system is laid out in another way."""
        return bool(self.described and self.described.startswith("Android"))


def read(said: str) -> Probe:
    """What the script printed. Lines that are none of its own, a banner say, are passed over."""
    lines = [line.partition("=") for line in said.splitlines() if "=" in line]
    first: dict[str, str] = {}
    for key, _, value in lines:
        first.setdefault(key, value.strip())
    android = first.get("android")
    return Probe(
        system=first.get("system", "unknown"),
        release=first.get("release", ""),
        architecture=first.get("abi") or first.get("architecture", "unknown"),
        model=first.get("model"),
        described=f"Android {android}" if android else first.get("distribution"),
        cpu=first.get("cpu"),
        cores=_whole(first.get("cores")),
        memory_gib=_gib(first.get("memory_kib")),
        free_gib=_gib(first.get("free_kib")),
        tools=_below(first, "tool."),
        python=first.get("python"),
        packages=_below(first, "package."),
        trtexec=_tensorrt(first.get("trtexec")),
        gcc=first.get("gcc"),
        switch=first.get("switch"),
        installed=tuple(_named(value) for key, _, value in lines if key == "installed"),
    )


def _below(found: Mapping[str, str], prefix: str) -> Mapping[str, str]:
    return MappingProxyType({key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)})


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _gib(kib: str | None) -> float | None:
    return round(int(kib) / 2**20, 1) if kib and kib.isdigit() else None


def _tensorrt(digits: str | None) -> str | None:
    """10.3.0 for ``100300``, and 8.6.1 for ``8601``, as trtexec writes them."""
    if not digits or not re.fullmatch(r"\d{4,}", digits):
        return None
    number, base = int(digits), 10000 if len(digits) > 4 else 1000
    return f"{number // base}.{number // 100 % (base // 100)}.{number % 100}"


def _named(place: str) -> tuple[str, str]:
    """``toy-executorch`` and ``1a2b3c4d5e6f`` for ``.../toy-executorch/versions/1a2b3c4d5e6f``."""
    *_, name, _versions, digest = ["", "", *place.strip("/").split("/")]
    return name, digest
