"""Names of the folders and files under a root, each written here only; users and manifests know them."""

ONNX_FOLDER = "onnx-ao"  # in the root: the model that optimize builds
FINETUNED = "ft"  # in the root: a folder an adapter, that finetune trains
MERGED = "merged"  # in the root: a folder a model that an adapter has been merged into
EXPORTED = "export"  # in the root: what export writes
EVALUATION = "evaluation.json"  # in the root: what evaluate measures
GENAI_CONFIG = "genai_config.json"  # in the model's folder
ADAPTERS = "adapters"  # in the model's folder: a file an adapter
ADAPTER_SUFFIX = ".onnx_adapter"
ADAPTER_CONFIG = "adapter_config.json"  # in an adapter's folder, as PEFT names it
