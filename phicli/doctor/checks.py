"""The table of checks, and examining a machine by it."""

import contextlib
from typing import Any

from phicli.config.commands import DoctorConfig
from phicli.config.layers import Settings
from phicli.doctor import accounts, capacity, gpu, software
from phicli.doctor.check_result import Check, CheckResult, Light, Subject
from phicli.doctor.needs import needs
from phicli.doctor.probes import Probes
from phicli.errors import PhicliError
from phicli.progress import SILENT, Progress

CHECKS: dict[str, Check] = {
    "Python": software.python,
    "packages": software.packages,
    "GPU": gpu.gpu,
    "torch": gpu.torch,
    "onnxruntime": software.onnxruntime,
    "onnxruntime CUDA": gpu.onnxruntime_cuda,
    "own kernels": gpu.own_kernels,
    "onnxruntime-genai": software.genai,
    "model": capacity.model,
    "memory": capacity.memory,
    "GPU memory": capacity.gpu_memory,
    "disk": capacity.disk,
    "write access": capacity.write_access,
    "Hugging Face": accounts.hugging_face,
    "Azure": accounts.azure,
}


def examine(config: DoctorConfig, settings: Settings, online: bool = False,
            progress: Progress = SILENT) -> tuple[dict[str, CheckResult], dict[str, Any] | None]:
    """Look at this machine for a model, a root and a device.

    Args:
        config: with device "cuda" its lack is red. settings: of the steps, from which they are told what they need.
        online: try the logins; otherwise no network is used.

    Returns:
        check -> what it found, in the order of `CHECKS`; and the model's `needs`, if its size is known.
    """
    probes = Probes()
    subject = Subject(config.model, config.root_folder, config.device, settings, online, probes)
    found = {}
    try:
        with progress.task("doctor", len(CHECKS), "checks") as task:
            for name, check in CHECKS.items():
                found[name] = _examined(check, subject)
                task.advance(1, checked=name)
    finally:
        probes.close()
    return found, _needs(subject)


def worst(found: dict[str, CheckResult]) -> Light:
    """The worst light of all."""
    return max((result.light for result in found.values()), key=list(Light).index)


def verdict(found: dict[str, CheckResult], model: str) -> str:
    """What all checks together say, in a line."""
    named = {light: [name for name, result in found.items() if result.light == light] for light in Light}
    if red := named[Light.RED]:
        return f"not ready for the lab with {model}: see {', '.join(red)}"
    less = f"; with less than there could be: {', '.join(named[Light.YELLOW])}" if named[Light.YELLOW] else ""
    return f"ready for the lab with {model}{less}"


def _needs(subject: Subject) -> dict[str, Any] | None:
    with contextlib.suppress(PhicliError):  # which a check has told of
        if subject.size:
            return needs(subject.size, capacity.before(subject), subject.settings, subject.row_tokens)
    return None


def _examined(check: Check, subject: Subject) -> CheckResult:
    try:
        return check(subject)
    except PhicliError as e:
        return CheckResult(Light.RED, str(e), e.hint)
    except Exception as e:
        return CheckResult(Light.RED, f"could not be looked at: {type(e).__name__}: {e}")
