"""What a machine says of itself: files of /proc and /sys and the output of a few commands, read in one go.

One shell script prints them all, here and on a device alike, so that what is made of them is one piece of code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache

from pipeline.devices import Device, parse

_MARK = "@@repnets"
_SHOW = f"""\
show() {{
    for f in "$@"; do
        [ -f "$f" ] && printf '\\n{_MARK} %s\\n' "$f" && cat "$f" 2> /dev/null
    done
}}
tell() {{
    command -v "$1" > /dev/null 2>&1 || return
    printf '\\n{_MARK} %s\\n' "$*"
    "$@" < /dev/null 2> /dev/null
}}
"""
_CPU = "/sys/devices/system/cpu"
_MOMENT = f"""\
show /proc/stat /proc/loadavg {_CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq /proc/cpuinfo
show /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp
tell getconf CLK_TCK
tell sysctl -n vm.loadavg
true
"""
_MACHINE = f"""\
unset OMP_NUM_THREADS OMP_THREAD_LIMIT
show /proc/device-tree/model /sys/class/dmi/id/product_name /proc/cpuinfo /proc/meminfo /sys/fs/cgroup/cpu.max
show /proc/driver/nvidia/version /proc/driver/nvidia/gpus/*/information
show {_CPU}/cpu[0-9]*/cpufreq/scaling_governor {_CPU}/cpu[0-9]*/cpufreq/scaling_min_freq
show {_CPU}/cpu[0-9]*/cpufreq/scaling_max_freq
show /etc/nv_tegra_release /etc/os-release
tell uname -s
tell uname -r
tell uname -m
tell nproc
tell nvpmodel -q
tell getprop ro.product.manufacturer
tell getprop ro.product.model
tell getprop ro.build.version.release
if [ "$(uname -s)" = Darwin ]; then
    tell sw_vers -productVersion
    for key in hw.model hw.memsize hw.logicalcpu machdep.cpu.brand_string; do tell sysctl -n $key; done
fi
true
"""


@dataclass(frozen=True)
class Readings:
    """What was read, by path or command; a path or command that is not there is not in it.

    Attributes:
        texts: without the zeros and line ends around them.
    """

    texts: Mapping[str, str]

    def text(self, name: str) -> str:
        """Of a path or a command; empty where there is none."""
        return self.texts.get(name, "")

    def matching(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Path and text of what a pattern of the shell's matches, in the order of paths."""
        return ((name, text) for name, text in sorted(self.texts.items()) if fnmatch(name, pattern))


@cache
def here() -> Device:
    """This machine."""
    return parse("local")


def machine(device: Device) -> Readings:
    """What stays the same from one moment to the next.

    Raises:
        DeviceError: the device cannot be reached.
    """
    return _read(device, _MACHINE)


def moment(device: Device) -> Readings:
    """What changes: the load, frequencies, temperatures.

    Raises:
        DeviceError: as `machine`.
    """
    return _read(device, _MOMENT)


def _read(device: Device, what: str) -> Readings:
    parts = device.output(_SHOW + what).split(f"\n{_MARK} ")[1:]
    read = (part.partition("\n") for part in parts)
    return Readings({name: text.strip("\0\n ") for name, _, text in read})
