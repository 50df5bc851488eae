"""Kill stages at random moments: what they leave is whole or absent, and the next run makes the same.

    snakemake --cores 2 all bundles                  in a copy of the project, first
    python -m tests.workflow.kills COPY --count 200

Every command that builds the copy is run twice undisturbed, with an empty store: that gives its duration and the
outputs that come out the same each time. Then, again and again, one of them is started and killed (kill -9, the process
alone, at a random moment of its duration). Held each time: no process that it started is alive after some seconds; each
output is absent or whole; the same command then ends with 0, with the same outputs; and after that there is no
temporary folder.
"""

import argparse
import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.digests import digest

_OF_TORCH = "torchinductor_"  # a cache that torch keeps among the temporary files by design
_SESSION_SECONDS = 15.0  # for what a killed stage has started to end by itself


@dataclass(frozen=True)
class Stage:
    """A command of the workflow.

    Attributes:
        name: the stage and what it builds, for messages.
        words: its argument vector.
        outputs: what it writes.
        seconds: undisturbed, with an empty store.
        same: digests of the outputs that came out the same twice.
    """

    name: str
    words: Sequence[str]
    outputs: Sequence[Path]
    seconds: float = 0.0
    same: frozenset[tuple[Path, str]] = frozenset()


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a kill that broke something, and the count of kills by stage."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("copy", type=Path, help="a copy of the project in which everything was built")
    parser.add_argument("--count", type=int, default=200, help="kills; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument("--stage", nargs="+", help="only these, for example train export; default: all")
    arguments = parser.parse_args(argv)
    copy, moments = arguments.copy.resolve(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        place = _Place(copy, Path(name))
        stages = [one for one in commands(copy) if not arguments.stage or one.name.split()[0] in arguments.stage]
        for number, stage in enumerate(stages):
            print(f"\rundisturbed: {number} of {len(stages)} stages ", end="", flush=True)
            stages[number] = place.undisturbed(stage)
        killed, broken = Counter(), 0
        for number in range(1, arguments.count + 1):
            stage = moments.choice(stages)
            wrong = place.kill(stage, moments.uniform(0, stage.seconds))
            killed[stage.name.split()[0]] += 1
            broken += bool(wrong)
            for one in wrong:
                print(f"\n{stage.name}: {one}")
            print(f"\r{number} of {arguments.count} kills, {broken} broke something ", end="", flush=True)
    print(f"\n{', '.join(f'{stage} {count}' for stage, count in sorted(killed.items()))}")
    return int(broken > 0)


def commands(copy: Path) -> list[Stage]:
    """The commands of the stages that build everything in a copy of the project, as Snakemake lists them."""
    words = ("-m", "snakemake", "--detailed-summary", "all", "bundles")
    said = subprocess.run([sys.executable, *words], cwd=copy, env=_environment(copy), capture_output=True, text=True)
    outputs: dict[str, list[Path]] = {}
    for row in csv.DictReader(said.stdout.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        outputs.setdefault(row["shellcmd"].partition(" > ")[0], []).append(copy / row["output_file"])
    if not outputs:
        raise SystemExit(f"Snakemake lists no command in {copy}: {said.stderr[-500:]}")
    found = []
    for command, paths in outputs.items():
        argv = shlex.split(command)
        if argv[1:3] == ["-m", "pipeline"]:  # what only gathers files runs none
            found.append(Stage(f"{argv[3]} {paths[0].relative_to(copy)}", [sys.executable, *argv[1:]], paths))
    return found


def _environment(copy: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(copy)}


@dataclass(frozen=True)
class _Place:
    """Where commands run: in the copy, with a store and temporary files in a folder of their own."""

    copy: Path
    folder: Path

    def undisturbed(self, stage: Stage) -> Stage:
        """The stage with its duration, and the digests of what comes out the same twice."""
        found = []
        with self._kept(stage):
            for _ in range(2):
                begin = time.monotonic()
                if code := self._start(stage).wait():
                    said = (self.folder / "log").read_text(errors="replace")[-500:]
                    raise SystemExit(f"{stage.name} ends with {code} undisturbed: {said}")
                found.append((time.monotonic() - begin, {(path, digest(path)) for path in stage.outputs}))
                self._clear_store()
        return Stage(stage.name, stage.words, stage.outputs, found[1][0], frozenset(found[0][1] & found[1][1]))

    def kill(self, stage: Stage, seconds: float) -> list[str]:
        """Kill a stage after some seconds and run it again; what was wrong, in words."""
        known = {(path, digest(path)) for path in stage.outputs} | stage.same
        when, wrong = f"killed after {seconds:.2f} s, it", []
        with self._kept(stage):
            process = self._start(stage)
            time.sleep(seconds)
            process.kill()
            process.wait()
            if not self._is_over(process.pid):
                wrong.append(f"{when} left processes behind")
                os.killpg(process.pid, signal.SIGKILL)
            halves = [path.name for path in stage.outputs if path.exists() and not _is_whole(path, known)]
            wrong += [f"{when} left half of {name}" for name in halves]
            if code := self._start(stage).wait():
                wrong.append(f"{when} ends with {code} when it is run again")
            else:
                others = [path.name for path, same in stage.same if digest(path) != same]
                wrong += [f"{when} makes another {name} when it is run again" for name in others]
                left = [path.name for path in (self.folder / "tmp").iterdir() if not path.name.startswith(_OF_TORCH)]
                wrong += [f"{when} left {name} among the temporary files" for name in left]
        self._clear_store()
        return wrong

    @contextmanager
    def _kept(self, stage: Stage) -> Iterator[None]:
        """The outputs of a stage are put back afterwards, since other stages read them."""
        kept = {path: self.folder / "kept" / str(number) for number, path in enumerate(stage.outputs)}
        for path, place in kept.items():
            _copy(path, place)
        yield
        for path, place in kept.items():
            _copy(place, path)

    def _start(self, stage: Stage) -> subprocess.Popen[bytes]:
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        own = {"REPNETS_STORE": str(self.folder / "store"), "TMPDIR": str(temporary)}
        environment = _environment(self.copy) | own
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                stage.words,
                cwd=self.copy,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _is_over(self, session: int) -> bool:
        end = time.monotonic() + _SESSION_SECONDS
        while subprocess.run(["pgrep", "-s", str(session)], stdout=subprocess.DEVNULL).returncode == 0:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _clear_store(self) -> None:
        shutil.rmtree(self.folder / "store", ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _is_whole(path: Path, known: Set[tuple[Path, str]]) -> bool:
    """Whether an output is one of those known, or a document with other figures."""
    if (path, digest(path)) in known:
        return True
    if path.suffix not in (".json", ".jsonl"):
        return False
    try:
        return bool([json.loads(one) for one in ([path.read_text()] if path.suffix == ".json" else path.open())])
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
