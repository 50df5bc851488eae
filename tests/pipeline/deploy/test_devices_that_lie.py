"""A device that answers wrongly ends `repnets devices` and `ship` with exit code 1 and one short paragraph."""

import shlex

import pytest

from pipeline import devices
from pipeline.cli.main import main
from pipeline.deploy import bundle_file, installation
from pipeline.errors import MESSAGE
from tests.fixtures.documents import bundle_manifest

NAME = "toy-executorch"
OK = 'print(\'{"status": "ok", "max_error": 1e-7, "tolerance": 1e-4, "images": 3, "runtime": "none"}\')'
VERSION = '{"version": "%s", "digest": "ab", "since": "now", "by": "me", "selftest": %s}'
LOCKS, LISTS, TESTS, UNPACKS = "exec 9>>", "for name in *", "selftest.py", "tar -xf"
HOME = "printf %s"


@pytest.fixture
def lies(tmp_path, monkeypatch):
    """A device, this machine behind a stand-in for ssh; it runs `answer` in place of lines with these words."""

    def make(words: str, answer: str) -> str:
        home, ssh = tmp_path / "home", tmp_path / "ssh"
        home.mkdir(exist_ok=True)
        (tmp_path / "answer").write_text(f"{answer}\n")
        ssh.write_text(
            f'#!/bin/bash\nexport HOME={home}\nfor line in "$@"; do :; done\ncase "$line" in\n'
            f'    *{shlex.quote(words)}*) exec bash {tmp_path}/answer;;\n    *) eval "$line";;\nesac\n'
        )
        ssh.chmod(0o755)
        monkeypatch.setenv("REPNETS_SSH", str(ssh))
        return "ssh://board"

    return make


@pytest.fixture
def bundle(tmp_path):
    members = {"fused.pte": b"1" * 100, "selftest.py": OK.encode()}
    return bundle_file.write(tmp_path, members, bundle_manifest(run=["python3", "selftest.py"], time_limit_s=300))


def refused(capfd, *argv: str) -> str:
    """The one paragraph that a command ends with; its exit code is 1."""
    assert main(list(argv)) == 1
    said = capfd.readouterr().err.removesuffix("\n")
    assert said.startswith("error: ") and said.isprintable()
    assert len(said) <= MESSAGE + len("error: ")
    return said


LONG = "printf 'x%.0s' {1..100000}"


@pytest.mark.parametrize(
    "words, answer, told",
    [
        (HOME, "exec yes", "printed more than 16,000,000 bytes"),
        (HOME, f"printf /; {LONG}", "where its home folder was asked for"),
        (HOME, r"printf '/a\033]0;b'", "where its home folder was asked for"),
        (LISTS, "exec cat /dev/zero", "printed more than 16,000,000 bytes"),
        (LISTS, "echo name toy-a; yes 'version ab' | head -n 500000", "more than 10000 lines"),
        (LISTS, "echo name toy-a; echo 'history {}{'", "history.json on ssh://board is damaged"),
        (LISTS, "echo name toy-a; echo 'history [1]'", "history.json on ssh://board is damaged"),
        (LISTS, f"echo name toy-a; printf 'history '; {LONG}", "history.json on ssh://board is damaged"),
        (LISTS, "echo name toy-a; printf 'history '; printf '[%.0s' {1..100000}", "is damaged"),
        (LISTS, f"echo name toy-a; echo 'history [{VERSION % ('../../etc', 'null')}]'", "is no version"),
        (LISTS, "printf 'host key %.0s' {1..500000} >&2; exit 255", "ssh to board failed"),
        (LISTS, f"{LONG} >&2; exit 3", "ended with exit code 3"),
    ],
)
def test_what_is_installed(lies, capfd, words, answer, told):
    assert told in refused(capfd, "devices", lies(words, answer))


def test_names_that_no_ship_gave_are_left_out_and_escapes_are_shown(lies, capfd):
    said = r"printf 'name \033[31mred\nversion ab\nname toy-a\ncurrent versions/ab\nversion ab\nversion ..\n'; "
    entry = VERSION.replace('"me"', r'"me\u001b[31m"') % ("ab", "{}")
    said += f"echo 'history [{entry}]'"
    assert main(["devices", lies(LISTS, said)]) == 0
    listed = capfd.readouterr().out
    assert "red" not in listed and ".." not in listed
    assert r"me\x1b[31m" in listed and all(line.isprintable() for line in listed.splitlines())


@pytest.mark.parametrize(
    "words, answer, told",
    [
        (LOCKS, "exec yes", "printed more than 16,000,000 bytes"),
        (LOCKS, "exec yes >&2", "printed more than 16,000,000 bytes"),
        (LOCKS, "exec cat /dev/zero", "printed more than 16,000,000 bytes"),
        (LOCKS, f"echo; {LONG}; echo; exit 75", "another ship to ssh://board holds toy-executorch now: xxx"),
        (LOCKS, f"{LONG} >&2; exit 73", "nothing can be installed in"),
        (LOCKS, "echo name toy-executorch; echo 'history [[]]'; echo locked; cat > /dev/null", "is damaged"),
        (LOCKS, "exit 0", "nothing can be installed in"),
        (UNPACKS, "exec yes", "printed more than 16,000,000 bytes"),
        (UNPACKS, "echo '12  fused.pte'", "not what the bundle holds"),
        ("sha256sum -c", "yes 'fused.pte: FAILED' | head -n 100000; exit 1", "what arrived on ssh://board is not what"),
        ("sha256sum -c", f"{LONG}; exit 1", "ended with exit code 1"),
        (TESTS, f'echo \'{{"status": "failed", "reason": "\'$({LONG})\'"}}\'; exit 1', "the self-test failed"),
        (TESTS, "exec yes", "printed more than 16,000,000 bytes"),
        (TESTS, "echo '[1]'", "the self-test failed on ssh://board, exit code 0"),
        (TESTS, "printf '[%.0s' {1..100000}", "the self-test failed"),
        (TESTS, 'echo \'{"status": "ok", "max_error": NaN}\'', "the self-test failed"),
        (TESTS, 'echo \'{"status": "ok", "max_error": -1}\'', "the self-test failed"),
        (TESTS, f'echo \'{{"status": "ok", "images": 1{"0" * 400}}}\'', "the self-test failed"),
        (TESTS, 'echo \'{"status": "ok"}\'; exit 1', "the self-test failed on ssh://board, exit code 1"),
        (TESTS, 'echo \'{"status": ["ok"]}\'', "the self-test failed"),
        (TESTS, "exit 3", "the self-test failed on ssh://board, exit code 3"),
    ],
)
def test_ship(lies, bundle, capfd, tmp_path, words, answer, told):
    assert told in refused(capfd, "ship", str(bundle), lies(words, answer))
    assert not list((tmp_path / "home").rglob("current"))


@pytest.mark.parametrize("answer", ["exec yes", "echo '[]'", "echo '{\"digest\": 1}'", "printf '[%.0s' {1..100000}"])
def test_roll_back(lies, bundle, capfd, tmp_path, answer):
    members = {"fused.pte": b"2" * 100, "selftest.py": OK.encode()}
    manifest = bundle_manifest(run=["python3", "selftest.py"], time_limit_s=300)
    for one in (bundle, bundle_file.write(tmp_path, members, manifest)):
        assert main(["ship", str(one), lies("no such words", "true")]) == 0
    capfd.readouterr()
    current = next((tmp_path / "home").rglob("current")).readlink()
    refused(capfd, "ship", NAME, lies("cat /", answer), "--rollback")
    assert next((tmp_path / "home").rglob("current")).readlink() == current


def test_a_home_of_a_usual_length_is_taken(lies):
    assert installation.home(devices.parse(lies("no such words", "true"))).endswith("/home/.local/share/repnets")


@pytest.mark.parametrize("answer", ["exec yes", f"echo '@@@ uname -s'; {LONG}", "echo '@@@ nproc'; echo ²"])
def test_doctor(lies, capfd, tmp_path, monkeypatch, answer):
    """What cannot be is an error; what can be, however long, is told in short."""
    (tmp_path / "config.yaml").write_text("models: {toy: }\n")
    (tmp_path / "targets" / "executorch").mkdir(parents=True)
    (tmp_path / "targets" / "executorch" / "target.yaml").write_text("backend: executorch\nprecision: fp32\n")
    monkeypatch.chdir(tmp_path)
    code = main(["doctor", lies("@@@", answer)])
    printed = capfd.readouterr()
    assert code in (0, 1), printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err) <= MESSAGE + len("error: \n") and len(printed.out) < 20_000


def test_no_client(capfd, monkeypatch):
    monkeypatch.setenv("REPNETS_SSH", "no-such-ssh")
    assert "is not on PATH" in refused(capfd, "devices", "ssh://board")
