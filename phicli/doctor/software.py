"""Python, the packages, and whether the native ones run."""

import sys
from importlib import metadata

from phicli.doctor.check_result import CheckResult, Light, Subject
from phicli.doctor.probes import CPU
from phicli.version import tested_versions

CORE = ("olive-ai", "onnxruntime-genai-cuda", "onnxruntime-genai", "onnxruntime-gpu", "onnxruntime", "torch",
        "transformers", "peft")  # their interfaces change; another version than the tested one is worth a word
TWINS = ({"onnxruntime", "onnxruntime-gpu"}, {"onnxruntime-genai", "onnxruntime-genai-cuda"})  # same files, one wins


def python(subject: Subject) -> CheckResult:
    """Python against what the package asks for."""
    from packaging.specifiers import SpecifierSet

    version, bits = sys.version.split()[0], 64 if sys.maxsize > 2**32 else 32
    known = _metadata()
    wanted = known["Requires-Python"] if known else ">=3.11"
    if not SpecifierSet(wanted).contains(version, prereleases=True) or bits != 64:
        return CheckResult(Light.RED, f"{version}, {bits} bit; {wanted}, 64 bit, is needed",
                       "python3.11 -m venv .venv, then .venv/bin/pip install phicli")
    return CheckResult(Light.GREEN, f"{version} in {sys.prefix}", figures={"version": version})


def packages(subject: Subject) -> CheckResult:
    """Installed packages against the ranges that phicli asks for and the versions that its tests ran with."""
    from packaging.requirements import Requirement

    known = _metadata()
    if known is None:
        return CheckResult(Light.YELLOW, "phicli runs from a folder and is not installed; what it needs is not known",
                       "pip install --constraint constraints.txt --editable .")
    wanted = [Requirement(text) for text in known.get_all("Requires-Dist") or []]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    have = {r.name: _version(r.name) for r in wanted}
    lacking = [r for r in wanted if not r.specifier.contains(have[r.name] or "0", prereleases=True) or not have[r.name]]
    if lacking:
        found = ", ".join(f"{r.name} {have[r.name] or 'is not installed'} (needs {r.specifier})" for r in lacking)
        return CheckResult(Light.RED, found, "pip install " + " ".join(f"'{r.name}{r.specifier}'" for r in lacking))
    for pair in TWINS:
        if all(map(_version, pair)):
            plain, other = sorted(pair)
            return CheckResult(Light.YELLOW, f"{plain} and {other} are both installed and overwrite each other's files",
                           f"pip uninstall -y {plain} {other} && pip install '{other}=={_version(other)}'")
    tested = tested_versions()
    other_than = {name: (have[name], tested[name]) for name in CORE
                  if have.get(name) and name in tested and _minor(have[name]) != _minor(tested[name])}
    if other_than:
        found = ", ".join(f"{name} {mine} (tested with {theirs})" for name, (mine, theirs) in other_than.items())
        return CheckResult(Light.YELLOW, found, "if something fails: pip install "
                       + " ".join(f"{name}=={theirs}" for name, (_, theirs) in other_than.items()), dict(have))
    return CheckResult(Light.GREEN, f"{len(have)} packages as they should be", figures=dict(have))


def onnxruntime(subject: Subject) -> CheckResult:
    """A session of one node on the CPU."""
    done = subject.probes.get(CPU)
    cure = "pip install --force-reinstall --no-deps onnxruntime-gpu"
    if done.document is None:
        return CheckResult(Light.RED, f"no session on the CPU: {done.reason}", cure)
    if not done.document["right"]:
        return CheckResult(Light.RED, "a product of two matrices on the CPU came out wrong", cure)
    return CheckResult(Light.GREEN, f"{done.document['version']}, a session on the CPU runs", figures=done.document)


def genai(subject: Subject) -> CheckResult:
    """Whether onnxruntime-genai can be imported."""
    done = subject.probes.get("genai")
    if done.document is None:
        return CheckResult(Light.RED, f"cannot be imported: {done.reason}",
                       "pip install --force-reinstall --no-deps onnxruntime-genai-cuda")
    return CheckResult(Light.GREEN, f"{done.document['version']}, can be imported", figures=done.document)


def _metadata() -> metadata.PackageMetadata | None:
    try:
        return metadata.metadata("phicli")
    except metadata.PackageNotFoundError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str | None) -> tuple[str, ...]:
    return tuple((version or "").split("+")[0].split(".")[:2])
