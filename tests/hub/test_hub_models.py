"""A model of the hub from a server that talks as the hub does: its config.json is judged before weights are fetched."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from served_hub import served

FILES = {"config.json": b'{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}',
         "model.safetensors": b"0" * 1000}
RESOLVE = """
from phicli.errors import PhicliError
from phicli.hub.models import resolve_model
try:
    resolve_model("owner/served")
except PhicliError as e:
    print(type(e).__name__, e.message)
"""


def test_a_family_that_is_refused_is_not_fetched(tmp_path):
    with served("models", FILES) as (endpoint, asked):
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint}
        done = subprocess.run([sys.executable, "-c", RESOLVE], text=True, check=True, env=environment,
                              stdout=subprocess.PIPE)
    assert done.stdout == "BadInput a mixture of experts (num_local_experts)\n"
    assert any("config.json" in path for path in asked) and not any("safetensors" in path for path in asked)
