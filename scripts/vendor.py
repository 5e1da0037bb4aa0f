"""Copy the programs that the dashboard's pages run from their npm packages into the package, with their hashes.

python scripts/vendor.py         needs npm; writes tunewright/server/web/static and vendored.json beside it

They are not changed. `tests/server/test_dashboard.py` compares them with the hashes.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

WEB = Path(__file__).parent.parent / "tunewright" / "server" / "web"
PACKAGES = {
    "htmx.org@4.0.1": ("0BSD", ["dist/htmx.min.js", "dist/ext/hx-sse.min.js"]),
    "uplot@1.6.32": ("MIT", ["dist/uPlot.iife.min.js", "dist/uPlot.min.css"]),
}


def main() -> None:
    vendored: list[dict[str, object]] = []
    for package, (licence, files) in PACKAGES.items():
        with tempfile.TemporaryDirectory() as temporary:
            packed = subprocess.run(
                ["npm", "pack", "--json", package], cwd=temporary, check=True, capture_output=True, text=True
            )
            (described,) = json.loads(packed.stdout)
            content = (Path(temporary) / described["filename"]).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for name in files:
                member = archive.extractfile(f"package/{name}")
                assert member is not None
                data = member.read()
                (WEB / "static" / Path(name).name).write_bytes(data)
                sha256 = hashlib.sha256(data).hexdigest()
                vendored.append({"file": Path(name).name, "package": package, "licence": licence, "sha256": sha256})
        print(package, described["integrity"])
    (WEB / "vendored.json").write_text(json.dumps(vendored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
