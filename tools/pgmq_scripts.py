"""`python -m tools.pgmq_scripts FOLDER`: get the SQL of older PGMQ versions, for the tests.

PGMQ's own crate carries the scripts that bring one version to the next. It is fetched from
crates.io by its checksum; tests/integration/test_pgmq_versions.py puts versions together from them.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import urllib.request
from pathlib import Path

CRATE = "https://static.crates.io/crates/pgmq/pgmq-0.33.0.crate"
SHA256 = "aff21df1dfa18749cd6b2141444b43a62a140c9c4bdbbe6742ada4dcbc180cf9"
SCRIPTS = "pgmq-0.33.0/src/install/embedded/sql/"
MOST_BYTES = 10_000_000


def main(arguments: list[str]) -> int:
    """Put the scripts into the folder; 1 and one line where they cannot be had."""
    [folder] = map(Path, arguments)
    try:
        with urllib.request.urlopen(CRATE, timeout=60) as answer:  # nosec B310
            data = answer.read(MOST_BYTES)
    except OSError as exc:
        sys.stderr.write(f"error: {CRATE} cannot be fetched: {exc}\n")
        return 1
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.stderr.write(f"error: {CRATE} is not what it was\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and member.name.startswith(SCRIPTS):
                (folder / Path(member.name).name).write_bytes(content.read())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
