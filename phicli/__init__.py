"""phicli: the Microsoft Olive lab as one command line."""

import os

__version__ = "0.1.0"

# Libraries read these at import, so they are set before any of them can be imported.
# A value the user has set is kept, except that telemetry is never turned on by default.
for _name, _value in {
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # models.py lifts it when the user names a remote model
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Waiting threads sleep instead of spinning: a few percent slower alone, twice as fast with another program beside.
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_name, _value)
