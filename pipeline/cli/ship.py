"""`repnets ship` and `repnets devices`: bundles on devices."""

from pathlib import Path

from pipeline import devices as known
from pipeline.artifacts.manifest import write_json
from pipeline.deploy import app_layout, install, installation
from pipeline.deploy.install import Shipped
from pipeline.errors import InputError, quoted, shown
from pipeline.report.text import aligned

SHIP_HELP = f"""\
Install a bundle on a device, tested there, with a way back. BUNDLE is a file that `snakemake bundles` wrote to dist/.
DEVICE is one of
  local                  this machine
  ssh://user@host:port   over the system's own ssh, with your keys and ~/.ssh/config
  adb:SERIAL             an Android device, over the system's own adb

The bundle is verified here, copied, verified there file by file, and unpacked beside the installed version. Its
self-test then runs on the device: the network on real images, compared with the known outputs. Only then is the link
`current` replaced, in one step. After a failure the installed version is unchanged and the copied files are removed.

  <home>/<model>-<target>/current     what an application opens; home is ~/.local/share/repnets, on Android
                                      /data/local/tmp/repnets
The {installation.KEPT} versions before are kept. --rollback makes the version before current again; BUNDLE is
then the file, or the name that `repnets devices DEVICE` lists.

--layout FOLDER installs nothing: it writes the bundle into folders for an app's project, the .mlpackage for Xcode or
the .pte for an Android app's assets, and prints the next steps. It takes no DEVICE.

Exit code 0: the version is current on the device. 1: it is not: the device, the link or the self-test failed. 2: the
bundle is damaged, not safe to unpack, or not signed as required.

examples:
  repnets ship dist/toy-executorch-1a2b3c4d5e6f.tar ssh://pi@raspberrypi.local
  repnets ship dist/toy-executorch-1a2b3c4d5e6f.tar ssh://pi@raspberrypi.local --require-signature allowed_signers
  repnets ship toy-executorch ssh://pi@raspberrypi.local --rollback
  repnets ship dist/toy-coreml-1a2b3c4d5e6f.tar --layout ~/Projects/MyApp
"""

DEVICES_HELP = """\
List what `repnets ship` installed on a device: the current version of each model and target, and the versions before
it, the latest first. A version is named by the first twelve digits of its bundle's digest, as is the bundle's file.

examples:
  repnets devices ssh://pi@raspberrypi.local
  repnets devices adb:0123456789ABCDEF --json installed.json
"""


def ship(
    bundle: Path,
    device: str | None = None,
    *,
    rollback: bool = False,
    layout: Path | None = None,
    require_signature: Path | None = None,
    selftest: bool = True,
    python: str = "python3",
    timeout: float | None = None,
) -> None:
    """Install a bundle on a device, roll back to the version before, or write a bundle out for an app's project.

    Args:
        bundle: the file; with `rollback` also ``<model>-<target>``.
        device: as `devices.parse` reads it; None with `layout`.
        rollback: roll back instead.
        layout: folder for the files of an app's project, for Xcode or Android; nothing is installed.
        require_signature, selftest, python, timeout: see `install.ship`.

    Raises:
        InputError, GateError, DeviceError: see `install.ship` and `install.roll_back`.
    """
    if layout is not None:
        if device is not None or rollback:
            raise InputError("--layout FOLDER installs nothing, so it goes with no DEVICE and no --rollback.")
        if require_signature is not None:
            install.signer(bundle, require_signature)
        print(app_layout.lay_out(bundle, layout))
        return
    if device is None:
        raise InputError("name a DEVICE to ship to: local, ssh://user@host:port, adb:SERIAL; or --layout FOLDER.")
    there = known.parse(device)
    if rollback:
        _report(install.roll_back(_name(bundle), there), device, "went back to")
        return
    shipped = install.ship(
        bundle,
        there,
        allowed_signers=require_signature,
        selftest=selftest,
        python=python,
        timeout=timeout,
    )
    _report(shipped, device, "is now")


def devices(device: str, *, document: Path | None = None) -> None:
    """List what is installed on a device.

    Args:
        device: as `devices.parse` reads it.
        document: file for the same as JSON.

    Raises:
        DeviceError: the device cannot be reached.
    """
    there = known.parse(device)
    states = installation.look(there)
    rows = [("installed", "version", "", "since", "by", "self-test", "signed by")]
    for state in states:
        for version, what in _versions(state):
            entry = state.entry(version)
            tested = "-" if entry is None or entry.selftest is None else entry.selftest.get("status")
            about = (entry.since, entry.by, quoted(tested), entry.signed_by or "-") if entry else ("-",) * 4
            rows.append((state.name, version, what, *about))
    print("\n".join(map(shown, aligned(rows).split("\n"))) if states else f"nothing is installed on {device}")
    if states:
        print(f"\n{there.home}/<installed>/current")
    if document:
        write_json(document, {"device": device, "home": there.home, "installed": [_plain(state) for state in states]})


def _versions(state: installation.State) -> list[tuple[str, str]]:
    """All installed versions: the current one, those before it, the latest first, and those that were rolled back."""
    names = [entry.version for entry in state.history]
    upto = names.index(state.current) if state.current in names else len(names)
    before = [name for name in names[:upto][::-1] if name in state.versions]
    rest = [name for name in state.versions if name not in (*before, state.current)]
    current = [(state.current, "current")] if state.current in state.versions else []
    return [*current, *((name, "before") for name in before), *((name, "rolled back") for name in rest)]


def _plain(state: installation.State) -> dict[str, object]:
    return {
        "name": state.name,
        "current": state.current,
        "versions": [{"version": version, "is": what} for version, what in _versions(state)],
        "history": [vars(entry) for entry in state.history],
    }


def _name(bundle: Path) -> str:
    """``toy-executorch`` of that, or of ``dist/toy-executorch-1a2b3c4d5e6f.tar``, which need not be there any more."""
    return bundle.name.removesuffix(".tar").rpartition("-")[0] if bundle.suffix == ".tar" else str(bundle)


def _report(shipped: Shipped, device: str, what: str) -> None:
    before = f", before: {shipped.before}" if shipped.before not in (None, shipped.entry.version) else ""
    print(f"{shipped.name} on {device} {what} {shipped.entry.version}{before}")
    print(f"{shipped.folder}/current")
    if shipped.kept:
        print(f"to go back to {shipped.kept[0]}: repnets ship {shipped.name} {device} --rollback")
    if shipped.warning:
        print(f"warning: {shipped.warning}")
