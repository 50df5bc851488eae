"""Bundles on this machine and on a device behind a real sshd: installed, taken back, and every fault on the way."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import devices
from pipeline.deploy import bundle_file, install, installation, lock
from pipeline.errors import DeviceError, GateError, InputError
from tests.fixtures.documents import bundle_manifest

OK = 'print(\'{"status": "ok", "max_error": 1e-7, "tolerance": 1e-4, "images": 3, "runtime": "none"}\')'
HANGS = "import time\ntime.sleep(100000)"
NAME = "toy-executorch"


def make(folder: Path, content: str = "1", selftest: str = OK, size: int = 0) -> Path:
    """A small bundle; its self-test is real Python."""
    members = {
        "fused.pte": (content * 100).encode() + os.urandom(size),
        "deep/labels.txt": b"a\nb\n",
        "selftest.py": selftest.encode(),
    }
    manifest = bundle_manifest(run=["python3", "selftest.py"], time_limit_s=300)
    return bundle_file.write(folder, members, manifest)


def version(bundle: Path) -> str:
    return bundle.stem.rpartition("-")[2]


@dataclass(frozen=True)
class Board:
    device: devices.Device
    home: Path

    @property
    def folder(self) -> Path:
        return self.home / ".local/share/repnets" / NAME

    @property
    def current(self) -> str:
        return os.readlink(self.folder / "current").removeprefix("versions/")

    def lies_there(self) -> dict[str, str]:
        """Everything below its home: links with where they lead, files with their content, but for the lock's."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            if path.is_symlink():
                found[str(path.relative_to(self.home))] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[str(path.relative_to(self.home))] = "" if path.name == "lock" else path.read_bytes().hex()
        return found

    def install(self, folder: Path) -> dict[str, str]:
        """A first version; what lies there then."""
        ship(make(folder, "first"), self.device)
        return self.lies_there()


def ship(bundle: Path, device: devices.Device, **options) -> install.Shipped:
    return install.ship(bundle, device, **{"python": sys.executable, "say": lambda said: None, **options})


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.slow)])
def board(request):
    """A device, and where its home is."""
    if request.param == "ssh":
        there = request.getfixturevalue("ssh_device")
        return Board(devices.parse(there.url), there.home)
    return request.getfixturevalue("here")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """This machine as a device, where the link plays no part."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Board(devices.parse("local"), tmp_path / "home")


@pytest.fixture
def ssh_board(ssh_device):
    return Board(devices.parse(ssh_device.url), ssh_device.home)


def test_a_bundle_is_installed_then_a_second_and_taken_back(board, tmp_path):
    first, second = make(tmp_path, "1"), make(tmp_path, "2")
    said = []
    shipped = ship(first, board.device, say=said.append)
    assert shipped.before is None and shipped.kept == ()
    assert said[1:] == [
        f"{board.device.name}: copied, and every digest is right",
        f"{board.device.name}: self-test ok, max error 1e-07, tolerance 0.0001, images 3, none",
    ]
    folder = board.folder
    assert shipped.folder == str(folder)
    assert (folder / "current" / "fused.pte").read_bytes() == b"1" * 100
    assert (folder / "current" / "deep" / "labels.txt").read_bytes() == b"a\nb\n"
    assert sorted(path.name for path in folder.iterdir()) == ["current", "history.json", "lock", "versions"]

    shipped = ship(second, board.device)
    assert (shipped.before, shipped.kept, board.current) == (
        version(first), (version(first),), version(second),
    )  # fmt: skip
    assert (folder / "current" / "fused.pte").read_bytes() == b"2" * 100

    shipped = install.roll_back(NAME, board.device)
    assert (shipped.before, board.current) == (version(second), version(first))
    with pytest.raises(InputError, match=f"no version of {NAME} from before {version(first)}, so there is nothing"):
        install.roll_back(NAME, board.device)
    (state,) = installation.look(board.device)
    assert (state.current, sorted(state.versions)) == (version(first), sorted([version(first), version(second)]))


def test_the_last_few_versions_stay(here, tmp_path):
    made = [make(tmp_path, str(number)) for number in range(6)]
    for bundle in made:
        shipped = ship(bundle, here.device)
    assert shipped.kept == tuple(map(version, made[4:1:-1]))
    assert sorted(installation.look(here.device)[0].versions) == sorted(map(version, made[2:]))
    for bundle in made[4:1:-1]:
        assert install.roll_back(NAME, here.device).entry.version == version(bundle)
    with pytest.raises(InputError, match="nothing to go back to"):
        install.roll_back(NAME, here.device)
    assert ship(made[0], here.device).kept == (version(made[2]),)  # what was taken back is no longer before it
    assert sorted(installation.look(here.device)[0].versions) == sorted(map(version, (made[0], made[2])))


def test_the_same_bundle_again_mends_what_was_damaged(board, tmp_path):
    board.install(tmp_path)
    place = board.folder / "current"
    (place / "fused.pte").write_bytes(b"damaged")
    (place / "made there.engine").write_bytes(b"stays")
    shipped = ship(make(tmp_path, "first"), board.device)
    assert (shipped.before, shipped.kept) == (shipped.entry.version, ())
    assert (place / "fused.pte").read_bytes() == b"first" * 100
    assert (place / "made there.engine").read_bytes() == b"stays"


def test_a_damaged_version_is_not_gone_back_to(here, tmp_path):
    here.install(tmp_path)
    before = here.current
    ship(second := make(tmp_path, "2"), here.device)
    place = here.folder / "versions" / before
    (place / "fused.pte").write_bytes(b"damaged")
    with pytest.raises(
        DeviceError, match=rf"fused.pte is not what the bundle holds.*Of {NAME}, {version(second)} stays"
    ):
        install.roll_back(NAME, here.device)
    manifest = (place / "bundle.json").read_text()
    (place / "bundle.json").write_text(manifest.replace('"toy"', '"boy"'))
    with pytest.raises(DeviceError, match=r"bundle.json on .* is damaged, so that version cannot be gone back to"):
        install.roll_back(NAME, here.device)
    assert here.current == version(second)


def test_what_is_not_there_is_not_taken_back(here, tmp_path):
    here.install(tmp_path)
    with pytest.raises(InputError, match=f"boy-tensorrt is not installed on .*; there is: {NAME}"):
        install.roll_back("boy-tensorrt", here.device)


SELFTESTS = {
    "fails": (
        'import sys\nprint(\'{"status": "failed", "reason": "image 2 is off by 0.5"}\')\nsys.exit(1)',
        {}, GateError, r"self-test failed on .*, exit code 1: image 2 is off by 0.5\.",
    ),
    "hangs": (
        HANGS,
        {"timeout": 1}, DeviceError, r"the self-test was ended: .* did not finish within 1 s.*--timeout",
    ),
    "crashes": (
        "raise SystemError('no such luck')",
        {}, GateError, r"exit code 1: Traceback .* SystemError: no such luck\.",
    ),
    "says nothing": (
        "print('fine')",
        {}, GateError, r"self-test failed on .*, exit code 0: fine\.",
    ),
    "has no runtime": (
        'import sys\nprint(\'{"status": "unavailable", "reason": "no executorch"}\')\nsys.exit(3)',
        {}, DeviceError, r"cannot run on .*: no executorch\. Install .*--no-selftest",
    ),
    "has no Python": (
        OK,
        {"python": "python9"}, DeviceError, r"cannot run on .*: there is no python9\. .*--no-selftest",
    ),
}  # fmt: skip


def leaves_what_was(board: Board, folder: Path, kind: str) -> None:
    selftest, options, error, message = SELFTESTS[kind]
    installed = board.install(folder)
    with pytest.raises(error, match=message) as raised:
        ship(make(folder, "2", selftest), board.device, **options)
    assert raised.value.exit_code == 1
    assert f"Of {NAME}, {board.current} stays current there." in str(raised.value)
    assert board.lies_there() == installed
    assert any(not working_in(board.folder) for _ in range(1000)), "it still runs there"


@pytest.mark.parametrize("kind", ["fails", "hangs"])
def test_a_self_test_that_does_not_pass_leaves_what_was(board, tmp_path, kind):
    leaves_what_was(board, tmp_path, kind)


@pytest.mark.parametrize("kind", ["crashes", "says nothing", "has no runtime", "has no Python"])
def test_a_self_test_without_a_verdict_leaves_what_was(here, tmp_path, kind):
    leaves_what_was(here, tmp_path, kind)


def working_in(folder: Path) -> list[str]:
    """Processes that work in a folder or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "cwd").startswith(str(folder)):
                found.append((process / "cmdline").read_text())
    return found


def test_it_can_be_shipped_untested_where_there_is_no_runtime(here, tmp_path):
    here.install(tmp_path)
    bundle = make(tmp_path, "2", "import sys\nsys.exit(3)")
    assert ship(bundle, here.device, selftest=False).entry.selftest is None
    assert here.current == version(bundle)


def test_two_ships_at_once(board, tmp_path):
    """The first waits in its self-test, on the device, until the second has been refused."""
    installed = board.install(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    first = make(tmp_path, "2", f"open({str(tmp_path / 'fifo')!r}).read()\n{OK}")
    shipped = []
    shipping_it = threading.Thread(target=lambda: shipped.append(ship(first, board.device)))
    shipping_it.start()
    with (tmp_path / "fifo").open("w"):  # opens when the self-test does
        with pytest.raises(DeviceError, match=f"another ship to .* holds {NAME} now: {installation.who()}, 20") as held:
            ship(make(tmp_path, "3"), board.device)
        with pytest.raises(DeviceError, match="another ship to"):
            install.roll_back(NAME, board.device)
        assert held.value.exit_code == 1
        assert {key: value for key, value in board.lies_there().items() if ".incoming" not in key} == installed
    shipping_it.join()
    assert shipped[0].entry.version == board.current == version(first)
    assert install.roll_back(NAME, board.device).entry.version != version(first)  # and the lock is free


def test_a_dead_computers_lock_is_free_and_what_it_left_goes(board, tmp_path):
    installed = board.install(tmp_path)
    code = f"""
        import sys
        from pipeline import devices
        from pipeline.deploy import lock
        device = devices.parse({board.device.name!r})
        with lock.acquire(device, {NAME!r}) as held:
            device.output(['mkdir', held.incoming])
            print('held', flush=True)
            sys.stdin.read()
    """
    project = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=project
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DeviceError, match="holds"), lock.acquire(board.device, NAME):
            pass
        other.kill()
    for _ in range(100):  # the device learns of it by the end of its input
        try:
            with lock.acquire(board.device, NAME):
                break
        except DeviceError as error:
            assert "holds" in str(error)
    else:
        pytest.fail("the lock of a dead computer is still held")
    assert board.lies_there() == installed


def cutting(ssh_device, what: str) -> None:
    """From now on the link breaks in the middle of every copy; `what` is run there right before."""
    wrapper = ssh_device.folder / "cut.sh"
    wrapper.write_text(
        'case "$SSH_ORIGINAL_COMMAND" in\n'
        "*cat*.tar.part*)\n"
        f'    part="$HOME/.local/share/repnets/{NAME}/.incoming-*.tar.part"\n'
        "    rm -f $part\n"  # of the copy before, which may still be there
        "    exec 3<&0\n"
        '    { head -c 100000; cat > /dev/null; } <&3 | sh -c "$SSH_ORIGINAL_COMMAND" &\n'
        "    until ls $part 2> /dev/null; do :; done\n"
        f"    {what}\n"
        "    kill -KILL $PPID;;\n"
        '*) exec sh -c "$SSH_ORIGINAL_COMMAND";;\n'
        "esac\n"
    )
    ssh_device.set_up(f"ForceCommand sh {wrapper}")


@pytest.mark.slow
def test_a_link_that_is_cut_in_the_middle_of_every_copy(ssh_device, ssh_board, tmp_path, monkeypatch):
    installed = ssh_board.install(tmp_path)
    monkeypatch.setattr("pipeline.devices.transfer.TRIES_AFTER_SECONDS", (0, 0))
    cutting(ssh_device, f"echo cut >> {ssh_device.tmp}/cuts")
    with pytest.raises(DeviceError, match=r"the link to 127.0.0.1 was cut.*stays current there") as raised:
        ship(make(tmp_path, "2", size=5_000_000), ssh_board.device)
    assert raised.value.exit_code == 1
    assert (ssh_device.tmp / "cuts").read_text() == "cut\n" * 3
    assert ssh_board.lies_there() == installed


@pytest.mark.slow
def test_a_link_that_is_cut_for_good(ssh_device, ssh_board, tmp_path, monkeypatch):
    """All connections break, the lock's among them, and no new one is taken: the device cleans up by itself."""
    installed = ssh_board.install(tmp_path)
    monkeypatch.setattr("pipeline.devices.transfer.TRIES_AFTER_SECONDS", (0,))
    os.mkfifo(ssh_device.tmp / "fifo")
    cutting(ssh_device, f"echo copying > {ssh_device.tmp}/fifo")
    raised = []

    def try_it() -> None:
        with pytest.raises(DeviceError) as found:
            ship(make(tmp_path, "2", size=5_000_000), ssh_board.device)
        raised.append(found.value)

    shipping_it = threading.Thread(target=try_it)
    shipping_it.start()
    assert (ssh_device.tmp / "fifo").read_text() == "copying\n"
    os.kill(ssh_device.sshd.pid, signal.SIGSTOP)  # takes no new connection
    ssh_device.cut()
    ssh_device.sshd.kill()
    shipping_it.join()
    assert "cannot be reached" in str(raised[0])
    assert f"See what is current, once the link is back: repnets devices {ssh_board.device.name}" in str(raised[0])
    ssh_device.set_up()
    with lock.acquire(ssh_board.device, NAME):  # free again, once the device has found out
        pass
    assert ssh_board.lies_there() == installed


@pytest.fixture
def small_disk(here):
    """Mount a small file system as the device's home; how is given to it."""

    def mount(options: str) -> None:
        told = ["mount", "-t", "tmpfs", "-o", options, "none", str(here.home)]
        done = subprocess.run(told, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted by this user: {done.stderr.strip()}")
        mounted.append(here.home)

    mounted: list[Path] = []
    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_device_that_is_full_is_told_before_the_copy(here, small_disk, tmp_path):
    small_disk("size=3m")
    ship(make(tmp_path, "1"), here.device)
    installed = here.lies_there()
    with pytest.raises(DeviceError, match=r"has no room: \d.\d MB are left in .*, and this takes 6.1 MB .*stays"):
        ship(make(tmp_path, "2", size=2_500_000), here.device)
    assert here.lies_there() == installed


def test_a_device_that_gets_full_on_the_way(here, small_disk, tmp_path):
    """No more files can be made, which df does not tell: the unpacking fails."""
    small_disk("size=30m,nr_inodes=17")
    ship(make(tmp_path, "1"), here.device)
    installed = here.lies_there()
    with pytest.raises(DeviceError, match=r"has no room left: .*No space left on device.*stays current there") as full:
        ship(make(tmp_path, "2"), here.device)
    assert full.value.exit_code == 1
    assert here.lies_there() == installed


def test_a_place_that_cannot_be_written(here, tmp_path):
    (here.home / ".local").write_text("a file where a folder has to be")
    with pytest.raises(DeviceError, match=r"nothing can be installed in .*: .*\. See to the rights of that folder"):
        ship(make(tmp_path), here.device)


def test_a_history_that_is_damaged_is_named(here, tmp_path):
    here.install(tmp_path)
    (here.folder / "history.json").write_text("[{")
    with pytest.raises(DeviceError, match=r"history.json on .* is damaged .*Remove that file there"):
        installation.look(here.device)


TOOLS = (
    *("cat", "chmod", "df", "find", "flock", "head", "ln", "mkdir", "mv", "printf", "readlink", "rm", "sed"),
    *("sha256sum", "sleep", "tail", "tar", "timeout"),
)


@pytest.mark.slow
def test_a_shell_that_greets_is_told_before_anything_is_made(ssh_device, ssh_board, tmp_path):
    wrapper = ssh_device.folder / "greet.sh"
    wrapper.write_text('echo "Welcome to the board"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    ssh_device.set_up(f"ForceCommand sh {wrapper}")
    with pytest.raises(DeviceError, match=r"the shell on ssh://.* prints `Welcome to the board` where its home"):
        ship(make(tmp_path), ssh_board.device)
    assert ssh_board.lies_there() == {}


def test_over_adb(adb_stand_in, tmp_path):
    """A stand-in for adb, on whose device there is Python, which a phone has not."""
    device = devices.parse("adb:STANDIN")
    first, second = make(tmp_path, "1"), make(tmp_path, "2")
    ship(first, device)
    shipped = ship(second, device)
    folder = adb_stand_in / "data/local/tmp/repnets" / NAME
    assert (shipped.folder, os.readlink(folder / "current")) == (str(folder), f"versions/{version(second)}")
    with pytest.raises(GateError, match=r"the self-test failed on adb:STANDIN, exit code 1: .*stays current there"):
        ship(make(tmp_path, "3", "import sys; sys.exit(1)"), device)
    with lock.acquire(device, NAME), pytest.raises(DeviceError, match="another ship to adb:STANDIN holds"):
        install.roll_back(NAME, device)
    install.roll_back(NAME, device)
    assert os.readlink(folder / "current") == f"versions/{version(first)}"
    assert sorted(path.name for path in folder.iterdir()) == ["current", "history.json", "lock", "versions"]


def small_tools(tmp_path, monkeypatch, box: str, shell: str, **other: str) -> Board:
    """This machine, with the tools of a toolbox alone, and some `other` for one."""
    for program in {box, shell, *other.values()}:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(other.get(tool, box)))
    (tools / "sh").symlink_to(shutil.which(shell))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Board(devices.parse("local"), tmp_path / "home")


@pytest.mark.parametrize(
    ("box", "shell", "other"),
    [("toybox", "mksh", {}), ("busybox", "busybox", {"flock": "flock"})],  # Debian's BusyBox is built without flock
    ids=["as Android has them", "as BusyBox has them"],
)
def test_the_scripts_run_on_small_tools(tmp_path, monkeypatch, box, shell, other):
    """Android's shell is mksh, its tools toybox's; none of it has Python."""
    board = small_tools(tmp_path, monkeypatch, box, shell, **other)
    first, second = make(tmp_path, "1"), make(tmp_path, "2")
    ship(first, board.device, selftest=False)
    ship(second, board.device, selftest=False)
    assert board.current == version(second)
    with lock.acquire(board.device, NAME), pytest.raises(DeviceError, match="another ship to local holds"):
        ship(first, board.device)
    install.roll_back(NAME, board.device)
    assert board.current == version(first)
    assert not [name for name in board.lies_there() if ".incoming" in name]
    with pytest.raises(DeviceError, match=r"cannot run on local: there is no python3\..*--no-selftest"):
        ship(second, board.device, python="python3")


def test_where_no_link_can_be_replaced_nothing_is(tmp_path, monkeypatch):
    """An mv that refuses, and an ln that deletes first, which is never used."""
    board = small_tools(tmp_path, monkeypatch, "busybox", "mksh", mv="toybox", flock="flock")
    with pytest.raises(DeviceError, match=r"local has nothing that replaces a link in one step.*nothing is installed"):
        ship(make(tmp_path, "2"), board.device, selftest=False)
    assert list(board.lies_there()) == [f".local/share/repnets/{NAME}/lock"]
