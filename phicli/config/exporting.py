"""The settings of what makes other forms of a model: `phicli merge` and `phicli export`."""

from dataclasses import dataclass
from typing import ClassVar

from phicli.config import shared
from phicli.config.bases import OfModel, OfRows
from phicli.config.setting import again, setting
from phicli.config.steps import QuantizeConfig

EXPORT_FORMATS = ("zip", "foundry-local", "olive", "gguf", "peft")


@dataclass(frozen=True)
class MergeConfig(OfRows):
    """Settings of `phicli merge`."""

    STEP: ClassVar[str] = "merge"

    adapter: str | None = setting(None, "Adapter to merge: a name under ROOT/ft, or a folder [default: the only one]",
                                  once=True, flags=("--adapter", "-a"), path=True, recorded=False)
    base: str | None = setting(None, "Model to merge into: folder or id [default: the one that it was trained on, "
                               "before that was quantized; of an adapter from elsewhere --model]",
                               flags=("--base", "-b"), path=True, recorded=False)
    precision: str = setting("float", "Weights of the result; int4: quantized by AWQ",
                             choices=("float", "int4"))
    calibration: str | None = setting(None, "Calibration data for int4: JSON Lines or plain text [default: a built-in "
                                      "text]", recorded=False, path=True)
    own_rows: tuple[str, ...] = setting((), "Calibrate int4 on these rows too: file, folder or hub name; may be "
                                        "repeated [default: those that the adapter was trained on, if they are still "
                                        "there]", metavar="DATA", path=True, reference=True, recorded=False)
    refine: int | None = again(QuantizeConfig, "refine")
    samples: int = again(QuantizeConfig, "samples")
    seq_len: int = again(QuantizeConfig, "seq_len")
    device: str = shared.device()
    seed: int = shared.seed()
    output: str | None = shared.output()
    force: bool = shared.force()


@dataclass(frozen=True)
class ExportConfig(OfModel):
    """Settings of `phicli export`."""

    STEP: ClassVar[str] = "export"

    to: str = setting("zip", "What to write: the ONNX folder as a zip, for Foundry Local or as an Olive model package; "
                      "a model as GGUF; an adapter as PEFT for vLLM", once=True, choices=EXPORT_FORMATS,
                      recorded=False)
    adapter: str | None = setting(None, "Adapter, for gguf and peft: a name under ROOT/ft, or a folder [default: gguf "
                                  "the model alone, peft the only one]", once=True, flags=("--adapter", "-a"),
                                  path=True, recorded=False)
    path: str | None = setting(None, "Folder of the ONNX model [default: ROOT/onnx-ao]", once=True, path=True,
                               recorded=False)
    variants: tuple[str, ...] = setting((), "Device that a model package is to have a variant for, built where it is "
                                        "not there (see optimize --device); may be repeated [default: the ONNX folder "
                                        "as it is]", once=True, flags=("--variant",), metavar="DEVICE", recorded=False)
    converter: str | None = setting(None, "llama.cpp's convert_hf_to_gguf.py [default: on PATH]", path=True,
                                    recorded=False)
    outtype: str = setting("f16", "Numbers in a GGUF file", choices=("f32", "f16", "bf16", "q8_0"), recorded=False)
    output: str | None = setting(None, "File or folder to write [default: ROOT/export/NAME…]", once=True,
                                 flags=("--output", "-o"), path=True, recorded=False)
