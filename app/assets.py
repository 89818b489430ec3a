"""The browser libraries that are not ours: exact versions, and how to keep them locally.

Pages load them from their CDN with the hashes below. `python -m app.assets` puts the same files
under app/static/vendor, for LOCAL_ASSETS=true and for the browser tests. It asks the CDN first and
then npm, where that is installed; whatever comes is kept only if its hash is the expected one.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess  # nosec B404
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).resolve().parent / "static"
TIMEOUT_SECONDS = 20


class AssetError(Exception):
    """A library that could not be fetched; the message is one line for the user."""


@dataclass(frozen=True)
class Asset:
    """One file of an npm package, as the CDN serves it."""

    name: str
    package: str
    version: str
    file: str
    integrity: str

    @property
    def url(self) -> str:
        return f"https://cdn.jsdelivr.net/npm/{self.package}@{self.version}/{self.file}"

    @property
    def vendor_path(self) -> str:
        """Where a local copy lives, below the folder of static files."""
        return f"vendor/{self.name}-{self.version}.min.js"


FLOWBITE = Asset(
    "flowbite",
    package="flowbite",
    version="4.0.2",
    file="dist/flowbite.min.js",
    integrity="sha384-T//xBcmH22SJdqNVwL93xRTwFcXK37jnnvp0XUhs/XeFhmyk/uHSMZuKALm9w4eR",
)
UPLOT = Asset(
    "uplot",
    package="uplot",
    version="1.6.32",
    file="dist/uPlot.iife.min.js",
    integrity="sha384-Gx3t0zdBAuQOuvvmaLZj7HKEiSgWTAs+VdtNY7wt19QDPTDQjFIwAuXDj0zeN00c",
)
BROWSER_ASSETS = (FLOWBITE, UPLOT)
BY_NAME = {asset.name: asset for asset in BROWSER_ASSETS}


def install(asset: Asset, folder: Path = STATIC) -> Path:
    """Have the right file of *asset* below *folder*; raises AssetError where that cannot be."""
    path = folder / asset.vendor_path
    if path.is_file() and integrity_of(path.read_bytes()) == asset.integrity:
        return path
    failures = []
    for source in (_from_cdn, _from_npm):
        try:
            content = source(asset)
        except (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError) as exc:
            failures.append(f"{source.__name__.removeprefix('_from_')}: {exc}")
            continue
        if integrity_of(content) == asset.integrity:
            _write(path, content)
            return path
        failures.append(f"{source.__name__.removeprefix('_from_')}: another content than expected")
    raise AssetError(
        f"{asset.package} {asset.version} could not be fetched ({'; '.join(failures)})"
    )


def integrity_of(content: bytes) -> str:
    """The value of an integrity attribute for *content*."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def _from_cdn(asset: Asset) -> bytes:
    # A constant https address, see Asset.url.
    with urllib.request.urlopen(asset.url, timeout=TIMEOUT_SECONDS) as answer:  # nosec B310
        content: bytes = answer.read()
    return content


def _from_npm(asset: Asset) -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        # Constant arguments, and no shell.
        subprocess.run(  # nosec B603
            [npm, "pack", "--silent", f"{asset.package}@{asset.version}"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=6 * TIMEOUT_SECONDS,
        )
        [archive] = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as members:
            member = members.extractfile(f"package/{asset.file}")
            if member is None:
                raise KeyError(asset.file)
            return member.read()


def _write(path: Path, content: bytes) -> None:
    """Put *content* in place at once, so that no reader finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        draft.write(content)
    Path(draft.name).chmod(0o644)
    Path(draft.name).replace(path)


def main(say: Callable[[str], object] = sys.stdout.write) -> int:
    try:
        for asset in BROWSER_ASSETS:
            say(f"{asset.package} {asset.version}: {install(asset).name}\n")
    except AssetError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
