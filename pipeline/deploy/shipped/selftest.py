#!/usr/bin/env python3
"""Does this bundle work on this device? Digests of all files, then golden images through the runtime.

    python3 selftest.py

Needs Python 3.8 or later with its standard library, and the runtime that the network is for. What it prints last is one
line of JSON: `status`, `reason`, `max_error` (of the largest value that should come out), `tolerance`, `images`,
`runtime`, `version`. Exit code 0: ok. 1: failed. 3: unavailable, the runtime is not here. Nothing is written but for a
temporary folder. The runtime is in a process of its own, since some end the process that they are in, or never answer.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MANIFEST = "bundle.json"
EXIT_CODES = {"ok": 0, "failed": 1, "unavailable": 3}
CHUNK = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description="Test this bundle on this device; see the top of this file.")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for the runtime; default: in bundle.json")
    parser.add_argument(
        "--onnxruntime", action="store_true", help="of a TensorRT bundle: run the ONNX file by ONNX Runtime instead"
    )
    parser.add_argument("--outputs", type=Path, help=argparse.SUPPRESS)  # the child's
    options = parser.parse_args()
    for end in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, end):  # leave by way of every `finally`
            signal.signal(getattr(signal, end), lambda number, frame: sys.exit(128 + number))
    if options.outputs:
        run_golden(options.outputs, options.onnxruntime)
    result = {"status": "failed", "reason": None, "max_error": None, "tolerance": None, "images": 0}
    result.update(runtime=None, version=None)
    result.update(tested(options.time_limit, options.onnxruntime))
    print(json.dumps(result), flush=True)
    return EXIT_CODES[result["status"]]


def tested(time_limit: float | None, stand_in: bool) -> dict:
    """The result of the self-test of this bundle on this device."""
    try:
        about = json.loads((FOLDER / MANIFEST).read_text(encoding="utf-8"))
        wrong = damage(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"{MANIFEST} cannot be read: {error!r}"
    if wrong:
        return {"reason": f"{wrong}. Install the bundle again; nothing of it was run."}
    limit = time_limit or about["time_limit_s"]
    with tempfile.TemporaryDirectory(prefix="selftest-") as name:
        outputs = Path(name, "outputs")
        outputs.mkdir()
        said = answer_of_child(outputs, Path(name), limit, stand_in)
        result = {key: said.get(key) for key in ("runtime", "version")}
        result["tolerance"] = about["tolerance"]
        if "unavailable" in said:
            return {**result, "status": "unavailable", "reason": said["unavailable"]}
        if "error" in said:
            return {**result, "reason": said["error"]}
        return {**result, **compared(about, outputs)}


def damage(about: dict) -> str | None:
    """What of this folder is not as the bundle was built, in words; None where all is."""
    rest = {key: value for key, value in about.items() if key != "digest"}
    own = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    lines = {MANIFEST: own}
    for name, facts in about["files"].items():
        path = FOLDER / name
        if not path.is_file():
            return f"{name} is missing"
        content = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                content.update(chunk)
        if content.hexdigest() != facts["sha256"]:
            return f"{name} does not have the sha256 that {MANIFEST} names"
        lines[name] = facts["sha256"]
    total = hashlib.sha256("".join(f"{lines[name]}  {name}\n" for name in sorted(lines)).encode()).hexdigest()
    return None if total == about["digest"] else f"{MANIFEST} does not have the digest that it names"


def answer_of_child(outputs: Path, folder: Path, limit: float, stand_in: bool) -> dict:
    """Run the golden images in a process of its own, and read what it says; its outputs are in a folder."""
    command = [sys.executable, "-B", str(FOLDER / "selftest.py"), "--outputs", str(outputs)]
    log = folder / "log"
    with log.open("wb") as file:
        child = subprocess.Popen(
            command + ["--onnxruntime"] * stand_in,
            stdin=subprocess.PIPE,  # its end tells the child that this process is gone
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            return {"error": f"the runtime did not end within {limit:g} s, and was ended"}
        finally:
            end(child)
    try:
        return json.loads((outputs / "told.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = " ".join(log.read_bytes().decode(errors="replace").split())[-300:]
        how = f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"
        return {"error": f"the runtime's process {how}" + (f"; it said last: {last}" if last else "")}


def end(child: subprocess.Popen) -> None:
    """Let it clean up after itself, if it still can."""
    for ask in (child.terminate, child.kill):
        if child.poll() is None:
            ask()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                continue
    child.stdin.close()


def compared(about: dict, outputs: Path) -> dict:
    """Hold what came out against what should have."""
    got, want, images = [], [], 0
    for number, case in enumerate(about["golden"]):
        want += floats((FOLDER / case["output"]).read_bytes())
        got += floats((outputs / f"{number}.bin").read_bytes())
        images += len(case["labels"])
        if len(got) != len(want):
            return {"reason": f"{case['input']} gave {len(got)} values in all, and must give {len(want)}"}
    if not want:
        return {"reason": "the bundle holds no golden image, so nothing was compared"}
    scales = largest_of_outputs(about, want)
    errors = [abs(one - other) / scale for one, other, scale in zip(got, want, scales)]
    where = next((place for place, error in enumerate(errors) if math.isnan(error)), None)
    where = errors.index(max(errors)) if where is None else where
    worst = errors[where]
    result = {"max_error": worst if math.isfinite(worst) else None, "images": images}
    if worst <= about["tolerance"]:
        return {**result, "status": "ok"}
    reason = f"value {where} of the outputs is {got[where]:.6g} and must be {want[where]:.6g}"
    return {**result, "reason": f"{reason}: off by {worst:.1e} of the largest, tolerance {about['tolerance']:.0e}"}


def largest_of_outputs(about: dict, want: list[float]) -> list[float]:
    """For each value of all cases, the largest that its output should give; 1 where that is only zeros."""
    sizes = [math.prod(one["shape"]) for one in about.get("outputs") or [about["output"]]]
    of_value = [number for number, size in enumerate(sizes) for _ in range(size)]
    of_value *= -(-len(want) // len(of_value))
    largest = [0.0] * len(sizes)
    for number, value in zip(of_value, want):
        largest[number] = max(largest[number], abs(value))
    return [largest[number] or 1.0 for number, _ in zip(of_value, want)]


def floats(content: bytes) -> list[float]:
    """Little-endian float32."""
    return list(struct.unpack(f"<{len(content) // 4}f", content))


def run_golden(outputs: Path, stand_in: bool) -> None:
    """The child: run the network on the golden inputs, and write its outputs to a folder."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    result = {}
    try:
        predict = load_predict()
        make = getattr(predict, "OnnxRuntime", None) if stand_in else predict.Network
        if make is None:
            raise predict.Unavailable("this bundle holds no ONNX file that ONNX Runtime could run")
        about = json.loads((FOLDER / MANIFEST).read_text(encoding="utf-8"))
        network = make(FOLDER)
        result = {"runtime": network.runtime, "version": network.version}
        for number, case in enumerate(about["golden"]):
            values = network((FOLDER / case["input"]).read_bytes())
            (outputs / f"{number}.bin").write_bytes(struct.pack(f"<{len(values)}f", *values))
    except Exception as error:
        is_missing = type(error).__name__ == "Unavailable"
        said = " ".join(str(error).split())
        result["unavailable" if is_missing else "error"] = said if is_missing else f"{type(error).__name__}: {said}"
    fresh = outputs / "told.json.new"
    fresh.write_text(json.dumps(result), encoding="utf-8")
    os.replace(fresh, outputs / "told.json")
    sys.stdout.flush()
    os._exit(0)  # a runtime's own threads can keep Python from ending while the thread above reads


def die_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def load_predict():
    """predict.py beside this file, found also where Python leaves the script's folder out (`python3 -I`)."""
    sys.dont_write_bytecode = True
    found = importlib.util.spec_from_file_location("predict", FOLDER / "predict.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
