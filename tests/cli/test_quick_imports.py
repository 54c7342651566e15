"""What the process of a command leaves out of its libraries is there when it is used."""

import subprocess
import sys
from pathlib import Path

MEDIA = {"sklearn": "scikit-learn", "soundfile": "soundfile", "torchaudio": "torchaudio", "torchvision": "torchvision"}
IN_A_PROCESS_OF_ITS_OWN = """
import sys
sys.path.append(sys.argv[1])
from phicli.cli import quick_imports
quick_imports.install()
import torch
import phicli.quantization.olive_pass
import phicli.export.olive_pass
import onnxruntime_genai.models.builder
import transformers.integrations.flex_attention
from transformers.distributed import sharding_utils
from transformers.utils import import_utils
from phicli.training.determinism import repeatable

weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.1)
weight.sum().backward()
with repeatable(True):
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    optimizer.step()
assert weight.max() < 1 and not torch.are_deterministic_algorithms_enabled()

from transformers import audio_utils, image_utils
assert image_utils.is_torchvision_available() and audio_utils.is_soundfile_available()
left_out = {"librosa", "olive.cli.api", "onnxscript", "scipy", "sklearn", "soundfile", "sympy", "torch._dynamo",
            "torch.distributed.tensor", "torchaudio", "torchvision"}
assert not left_out & set(sys.modules), left_out & set(sys.modules)
sys.path.remove(sys.argv[1])

scan = import_utils.create_import_structure_from_path
folder = transformers.models.__path__[0]
found = scan(folder)
import_utils.fetch__all__ = import_utils.fetch__all__.__wrapped__
import_utils.create_import_structure_from_path = plain = scan.__wrapped__
assert found == plain(folder) and len(found) > 400

import olive
import onnx_ir
assert str(onnx_ir.SymbolicDim("rows") + 1) == "rows + 1"
assert olive.run.__name__ == "run"
class Output(olive.WorkflowOutput):
    pass
assert Output.__base__ is sys.modules["olive.engine.output"].WorkflowOutput

stand_in = sharding_utils.DTensor
assert not isinstance(torch.ones(1), (stand_in, int))
torch._dynamo.config.cache_size_limit = 3
assert "torch._dynamo" in sys.modules
assert torch._dynamo.config.cache_size_limit == 3
optimizer.step()
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
from torch.distributed.tensor import DTensor
assert stand_in.from_local is not None and stand_in.__name__ == "DTensor"
assert isinstance(torch.Tensor._make_subclass(DTensor, torch.ones(1)), stand_in)
print("good")
"""


def test_what_is_left_out_comes_when_it_is_used(tmp_path):
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, str(_packages(tmp_path))],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("good\n")


def _packages(folder: Path) -> Path:
    """Packages that transformers finds installed, and that cannot be imported."""
    for module, name in MEDIA.items():
        for part in ("", "transforms", "transforms/functional", "transforms/v2", "transforms/v2/functional"):
            (folder / module / part).mkdir()
            (folder / module / part / "__init__.py").write_text("raise AssertionError(__name__)")
        about = folder / f"{name.replace('-', '_')}-99.0.dist-info"
        about.mkdir()
        about.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        about.joinpath("RECORD").write_text(f"{module}/__init__.py,,\n")
    return folder
