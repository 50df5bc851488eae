"""The shell script that prints facts about a machine, the same for this machine and for devices.

A device may have little more than a POSIX shell: no Python on a phone, no `awk` in a small BusyBox. So the script
prints files of /proc and /sys and the output of small commands unchanged, writes nothing, and skips what is missing.
`facts` parses the output.
"""

import json

JETPACK = "/usr/src/tensorrt/bin"
"""Where JetPack puts trtexec, which is not on PATH."""

RUNTIMES = ("executorch", "tensorrt", "onnxruntime", "coremltools", "torch")
"""Distributions whose versions a machine's Python is asked for."""

MARK = "@@repnets"
"""Starts the line before each text; the name of the text follows."""

_TOOLS = ("python3", "g++", "tar", "sha256sum", "shasum", "flock", "timeout", "trtexec", "nvpmodel", "adb", "xcrun")
_CPU = "/sys/devices/system/cpu"

_PYTHON = f"""
import sys
names = {json.dumps(RUNTIMES)}
print("python %d.%d.%d" % sys.version_info[:3])
try:
    from importlib import metadata
    for name in names:
        try:
            print(name + " " + metadata.version(name))
        except metadata.PackageNotFoundError:
            pass
except ImportError:  # before Python 3.8
    import pkg_resources
    for one in pkg_resources.working_set:
        if one.project_name in names:
            print(one.project_name + " " + one.version)
"""

SCRIPT = f"""\
begin() {{ printf '\\n{MARK} %s\\n' "$1"; }}
show() {{
    for f in "$@"; do
        [ -f "$f" ] && begin "$f" && cat "$f" 2> /dev/null
    done
}}
ask() {{
    command -v "$1" > /dev/null 2>&1 || return
    begin "$*"
    "$@" < /dev/null 2> /dev/null
}}
moment() {{
    show /proc/stat /proc/loadavg {_CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq /proc/cpuinfo
    show /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp
    ask getconf CLK_TCK
    ask sysctl -n vm.loadavg
}}
machine() {{
    unset OMP_NUM_THREADS OMP_THREAD_LIMIT
    show /proc/device-tree/model /sys/class/dmi/id/product_name /proc/cpuinfo /proc/meminfo /sys/fs/cgroup/cpu.max
    show /proc/driver/nvidia/version /proc/driver/nvidia/gpus/*/information
    show {_CPU}/cpu[0-9]*/cpufreq/scaling_governor {_CPU}/cpu[0-9]*/cpufreq/scaling_min_freq
    show {_CPU}/cpu[0-9]*/cpufreq/scaling_max_freq
    show /etc/nv_tegra_release /etc/os-release
    for letter in s r m; do ask uname -$letter; done
    ask nproc
    ask getconf _NPROCESSORS_ONLN
    ask nvpmodel -q
    for key in product.manufacturer product.model product.cpu.abi build.version.release; do ask getprop ro.$key; done
    if [ "$(uname -s)" = Darwin ]; then
        ask sw_vers -productVersion
        for key in hw.model hw.memsize hw.logicalcpu machdep.cpu.brand_string; do ask sysctl -n $key; done
    fi
}}
inventory() {{
    machine
    PATH="$PATH:{JETPACK}"
    place="$1"
    while [ -n "$place" ] && [ ! -d "$place" ]; do place="${{place%/*}}"; done
    begin disk; df -Pk "${{place:-/}}" 2> /dev/null | tail -n 1
    begin tools; for tool in {" ".join(_TOOLS)}; do
        found="$(command -v "$tool" 2> /dev/null)" && printf '%s %s\\n' "$tool" "$found"
    done
    begin switch
    case "$(readlink "$(command -v ln)")" in *toybox*) echo "toybox's ln";; esac
    [ -z "$(mv --help 2>&1 | sed -n '/-[a-zA-Z]*T/p')" ] || echo "mv -T"
    begin gcc; g++ -dumpfullversion -dumpversion 2> /dev/null
    begin trtexec; trtexec --help 2> /dev/null | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1
    begin python; command -v "$2" > /dev/null 2>&1 && "$2" -c '{_PYTHON}' 2> /dev/null
    begin installed
    for one in "$1"/*/current; do [ -e "$one/bundle.json" ] && (cd "$one" && pwd -P); done
}}
"$@"
true
"""
"""Run it as ``sh -c SCRIPT sh machine``, ``sh -c SCRIPT sh moment``, or ``sh -c SCRIPT sh inventory HOME PYTHON``:
HOME is the folder of installed bundles. ``inventory`` prints all that ``machine`` does, and more."""
