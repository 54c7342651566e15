"""Estimates of the memory and disk that a step takes at its peak.

Sums of what the code holds at once, in bytes, with two factors taken from measurements (docs/doctor.md). They are told
to people beforehand and refuse nothing; within a factor of about 1.5 where they were compared with a run.
"""

from dataclasses import dataclass, replace

from phicli.resources.sizes import ModelSize

GB = 10**9
IMPORTS = {"torch": 0.5 * GB, "genai": 0.2 * GB}  # resident memory of a process that has loaded these libraries
CUDA_HOST, CUDA_CONTEXT = 1.5 * GB, 0.5 * GB  # what CUDA itself takes, on the host and on the GPU
SHARD = 1 << 30  # of weights that wait to be written
BATCH_TOKENS = {"cuda": 16384, "cpu": 4096}  # through a layer at a time while quantizing
INT4 = (4 + (16 + 4) / 128) / 8  # bytes a weight: integer, and scale and zero point of a group of 128
BUILDER = 3.1  # times an unquantized checkpoint that genai's builder holds; of a quantized one it holds a layer or two
ROW_TOKENS = 200  # of a training row, where the rows are not known yet
RESPONSES = 5000  # held-out response tokens, where the rows are not known yet
REFINE_STEPS = {"cuda": 200, "cpu": 0}  # of quantize --refine, where it is not given
GENERATED = {"cuda": 128, "cpu": 0}  # sequences of quantize --generated, where it is not given
REFINE_TOKENS = {"cuda": 4096, "cpu": 1024}  # of each of them
LOGITS = 1 << 27  # that training holds at once on a GPU, at most
UNPACKED_SHARE = 0.25  # of the memory that is free once an int4 base is loaded, that its weights may take unpacked


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak: memory of the host, memory of the GPU (0 without one), disk for the result.

    extra: bytes beside, where the computing is done, that make it faster and are taken only where there is room for
    them: if at least `extra_from` bytes are free there when the step begins.
    """

    memory: float
    gpu: float
    disk: float
    extra: float = 0.0
    extra_from: float = 0.0


def _width(device: str) -> int:
    """Bytes of a number that is computed with."""
    return 2 if device == "cuda" else 4


def _placed(device: str, work: float, host: float, disk: float, imports: str = "torch") -> Estimate:
    """`work` lies where the computing is done, `host` always in the host's memory."""
    host += IMPORTS[imports]
    if device == "cuda":
        return Estimate(host + CUDA_HOST, work + CUDA_CONTEXT, disk)
    return Estimate(host + work, 0, disk)


def int4_bytes(size: ModelSize) -> float:
    """Of the checkpoint that quantize writes: int4 layers, the rest in 16 bits."""
    return size.weight_bytes if size.quantized else size.layer_params * INT4 + size.outer_params * 2


def after_quantizing(size: ModelSize) -> ModelSize:
    """The size of the checkpoint that quantize writes."""
    return replace(size, quantized=True, weight_bytes=round(int4_bytes(size)))


def estimate_quantize(size: ModelSize, device: str, samples: int, seq_len: int, refine: int | None = None,
                      generated: int | None = None) -> Estimate:
    """One layer at a time; its inputs and outputs of all calibration tokens, the search's copies of one linear.

    To refine: the original's inputs and outputs too, of each of a layer's weights position, gradient and two moments
    in float32, and the activations of a step.
    """
    samples += GENERATED[device] if generated is None else generated
    width = _width(device)
    hidden = 2 * samples * seq_len * size.hidden * width
    weights = size.layer_params / max(1, size.layers)
    search = 4 * size.largest * 4 + 3 * size.widest**2 * 4
    batch = 4 * min(BATCH_TOKENS[device], samples * seq_len) * size.widest * width
    work = hidden + weights * width + search + batch
    if REFINE_STEPS[device] if refine is None else refine:
        step = min(REFINE_TOKENS[device], samples * seq_len)
        activations = activation_bytes(replace(size, layers=1), step, 4)
        work = max(work + hidden, 3 * hidden + weights * (width + 16) + 2 * size.largest * 4 + activations)
    disk = int4_bytes(size)
    return _placed(device, max(work, size.vocab * size.hidden * width), min(SHARD, disk), disk)


def activation_bytes(size: ModelSize, tokens: int, width: int) -> float:
    """That all layers keep for the backward pass."""
    return tokens * size.layers * (9 * size.hidden + 3.5 * size.widest) * width


def fused_activation_bytes(size: ModelSize, tokens: int) -> float:
    """The same with the functions that training has on a GPU, in 16 bits: residual stream, attention, gate and up."""
    return tokens * size.layers * (7 * size.hidden + 2 * size.widest) * 2


def keeps_unpacked(dense: float, free: float) -> bool:
    """Whether an int4 base keeps its weights unpacked too: their bytes, and those free once the base is loaded."""
    return dense < UNPACKED_SHARE * free


def estimate_finetune(
    size: ModelSize, device: str, lora_r: int, batch_size: int, row_tokens: int = ROW_TOKENS, parts: int = 1,
) -> Estimate:
    """Weights, one unpacked linear, the adapter with gradient and two moments in float32, activations of a batch. On a
    GPU that has the base whole, activations and logits of what is made for it, and the adapter in 16 bits too.

    Of an int4 base the integers, and as `extra` the unpacked weights, which are kept where `keeps_unpacked`. parts: of
    the base, each held by another GPU; two layers are gathered at a time, and embedding and output projection.
    """
    width = _width(device)
    dense = size.layer_params * width
    layers = size.layer_params * INT4 + size.largest * width if size.quantized else dense
    outer = size.outer_params * width
    base = layers + outer
    if parts > 1:
        base = base / parts + 2 * layers / max(1, size.layers) + outer
    adapter = lora_r * size.edges * 4
    tokens = batch_size * row_tokens
    if device == "cuda" and parts == 1:
        step = 0.5 * adapter + fused_activation_bytes(size, tokens) + min(LOGITS, tokens * size.vocab * width)
    else:
        step = activation_bytes(size, tokens, width) + 3 * min(tokens, 1024) * size.vocab * 4
    estimate = _placed(device, base + 4 * adapter + step, 0, 7 * adapter)
    if not size.quantized or parts > 1:
        return estimate
    return replace(estimate, extra=dense, extra_from=base + dense / UNPACKED_SHARE)


def estimate_merge(size: ModelSize, *, streamed: bool) -> Estimate:
    """Streamed: the largest tensor in float32 beside its own, and a shard of the files. Else the model in memory."""
    disk = size.params * 2
    work = size.vocab * size.hidden * 6 + min(SHARD, disk) if streamed else 1.2 * disk + 3 * size.largest * 4
    return Estimate(IMPORTS["torch"] + work, 0, disk)


def vocabulary_bytes(size: ModelSize, device: str, embeddings: str = "int8", head: str = "int8") -> float:
    """Of the ONNX model's embedding and head, which are one matrix where the model ties them and both are alike."""
    width, matrix = _width(device), size.vocab * size.hidden
    weight = {"int4": 0.5 + width / 32, "int8": 1 + width / 128, "float": width}  # with its share of a scale
    shared = size.outer_params <= matrix and embeddings == head
    return matrix * (weight[head] if shared else weight[head] + weight[embeddings])


def estimate_optimize(size: ModelSize, device: str, embeddings: str = "int8", head: str = "int8") -> Estimate:
    """genai's builder works on the host, whatever the model is for."""
    layers, vocabulary = size.layer_params * INT4, vocabulary_bytes(size, device, embeddings, head)
    if size.quantized:  # as it was, in integers, and these once more when they are put together
        held = 2 * size.outer_params + 2 * vocabulary + 4 * layers / max(1, size.layers)
    else:
        held = BUILDER * size.weight_bytes
    return Estimate(IMPORTS["torch"] + held, 0, layers + vocabulary)


def estimate_evaluate(size: ModelSize, device: str, seq_len: int) -> Estimate:
    """The original is the largest stage; log-probabilities of three stages are kept on disk for comparison."""
    logits = 4 * seq_len * size.vocab * 8
    return _placed(device, size.params * 2 + size.largest * 4, logits, 3 * RESPONSES * size.vocab * 4)


def estimate_chat(size: ModelSize, device: str) -> Estimate:
    """The ONNX model with a cache for 2,048 tokens."""
    cache = 2048 * size.layers * 2 * size.hidden * _width(device)
    return _placed(device, 1.1 * estimate_optimize(size, device).disk + cache, 0, 0, imports="genai")
