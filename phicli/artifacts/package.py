"""phicli itself as one file, for machines that have no package of it."""

import zipfile
from pathlib import Path


def zip_package(target: Path) -> None:
    """phicli as a wheel would install it: its own files, the lab's rows, the tested versions. The same bytes again."""
    package = Path(__file__).parent.parent
    files = {f"phicli/{path.relative_to(package).as_posix()}": path for path in package.rglob("*")}
    for beside in ("data", "constraints.txt"):
        if not (package / beside).exists():
            place = package.parent / beside
            files |= {f"phicli/{path.relative_to(package.parent).as_posix()}": path for path in
                      [place, *place.rglob("*")]}
    with zipfile.ZipFile(target, "w") as archive:
        for name, path in sorted(files.items()):
            if path.is_file() and "__pycache__" not in name and "/." not in name:
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
