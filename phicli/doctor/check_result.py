"""What a check is asked and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from phicli.config.layers import Settings
from phicli.config.steps import FinetuneConfig
from phicli.doctor.needs import longest_row
from phicli.doctor.probes import Probes
from phicli.doctor.reach import asks_hub, out_of_reach
from phicli.errors import PhicliError
from phicli.hardware.driver import gpu_count
from phicli.resources import ModelSize, size_of_model


class Light(StrEnum):
    """green: as it should be. yellow: works, with less than there could be. red: something cannot work."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True)
class CheckResult:
    """light, what was found in one line, the command or action that cures it, and figures for --json."""

    light: Light
    found: str
    cure: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is to be examined: this machine for this model, root and device. online: the network may be used."""

    model: str
    root: Path
    device: str
    settings: Settings
    online: bool
    probes: Probes

    @cached_property
    def gpus(self) -> int:
        return gpu_count()

    @cached_property
    def wants_cuda(self) -> bool:
        return self.device == "cuda" or (self.device == "auto" and self.gpus > 0)

    @cached_property
    def computes_on(self) -> str:
        """"cuda" or "cpu": what the estimates are for."""
        return "cuda" if self.wants_cuda else "cpu"

    @cached_property
    def size(self) -> ModelSize | None:
        """Of the model, whose config.json is fetched if need be; None where nothing is known of it. Raises BadInput."""
        return size_of_model(self.model, fetch=self.out_of_reach is None)

    @cached_property
    def asks_hub(self) -> bool:
        """Whether the hub is asked for the model, see `reach.asks_hub`."""
        return asks_hub(self.model, self.online)

    @cached_property
    def out_of_reach(self) -> PhicliError | None:
        """Why the model can be had neither here nor from the hub, as far as that is asked."""
        return out_of_reach(self.model) if self.asks_hub else None

    @cached_property
    def row_tokens(self) -> int:
        """Of the longest row to train on."""
        return longest_row(self.settings.resolve(FinetuneConfig))


Check = Callable[[Subject], CheckResult]
