"""One greedy sequence after the other on any library that runs a model: onnxruntime-genai, torch, llama.cpp.

`evaluate` answers with it, and `benchmark` measures it: there is one decoding loop for all of them.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from phicli.inference.session import Session

TOKEN = 10  # any


class Runner(Protocol):
    """A loaded model."""

    def start(self, length: int, prompt: int, rows: int = 1) -> None:
        """Begin anew: `rows` sequences of at most `length` tokens, `prompt` of which are given."""

    def append(self, ids: Sequence[int]) -> None:
        """Run these tokens, the same in all rows, after those before."""

    def next(self) -> int:
        """The likeliest next token of the first row; each row's own is appended to it."""


def greedy(runner: Runner, prompt: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
    """The likeliest answer, token by token, at most that many; it ends before one of `ends`."""
    runner.start(len(prompt) + most, len(prompt))
    runner.append(prompt)
    answer: list[int] = []
    while len(answer) < most:
        token = runner.next()
        if token in ends:
            break
        answer.append(token)
    return answer


class SessionRunner:
    """A session's model with an adapter, as chat runs it. endless: no token ends a sequence, for measuring speed."""

    def __init__(self, session: "Session", adapter: str | None = None, endless: bool = False):
        from phicli.inference.generator import PREFILL_CHUNK

        self.session, self.adapter, self.endless, self._chunk = session, adapter, endless, PREFILL_CHUNK

    def start(self, length: int, prompt: int, rows: int = 1) -> None:
        self._rows = rows
        self._made: Any = None  # the old cache goes before the new one is reserved
        self._made = self.session.generator(length, self.adapter, rows=rows, least=length if self.endless else 0)
        if self.session.rope_border is not None and prompt > self.session.rope_border:
            self._made.expect_long()

    def append(self, ids: Sequence[int]) -> None:
        step = self._chunk if self._rows == 1 else len(ids)  # genai takes a batch's prompt in one piece only
        for at in range(0, len(ids), step):
            self._made.append_tokens(np.tile(np.asarray(ids[at : at + step], np.int32), (self._rows, 1)))

    def next(self) -> int:
        return int(self._made.next_token())


class GenaiRunner:
    """A folder as onnxruntime-genai runs it by itself, with nothing of ours but the number of threads.

    Raises:
        RuntimeError: genai cannot load it.
    """

    def __init__(self, folder: Path, threads: int):
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        options = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._og, self._model = og, og.Model(config)

    def start(self, length: int, prompt: int, rows: int = 1) -> None:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=rows)
        self._rows = rows
        self._made: Any = None
        self._made = self._og.Generator(self._model, params)

    def append(self, ids: Sequence[int]) -> None:
        self._made.append_tokens(np.tile(np.asarray(ids, np.int32), (self._rows, 1)))

    def next(self) -> int:
        self._made.generate_next_token()
        return int(self._made.get_next_tokens()[0])


class TorchRunner:
    """A model of transformers, with its own key-value cache."""

    def __init__(self, model: Any):
        self.model = model

    def start(self, length: int, prompt: int, rows: int = 1) -> None:
        self._past: Any = None
        self._logits: Any = None
        self._drawn: Any = None
        self._rows = rows

    def append(self, ids: Sequence[int]) -> None:
        import torch

        self._run(torch.tensor([list(ids)] * self._rows))

    def next(self) -> int:
        """The token is run when the one after it is asked for, as genai does."""
        if self._logits is None:
            self._run(self._drawn)
        self._drawn, self._logits = self._logits.argmax(-1, keepdim=True), None
        return int(self._drawn[0])

    def _run(self, ids: Any) -> None:
        import torch

        with torch.inference_mode():
            found = self.model(input_ids=ids.to(self.model.device), past_key_values=self._past, use_cache=True,
                               logits_to_keep=1)
        self._past, self._logits = found.past_key_values, found.logits[:, -1]
        if self._logits.is_cuda:  # what is timed has ended
            torch.cuda.synchronize()


class LlamaRunner:
    """A GGUF file as llama-cpp-python runs it, one row; it draws nothing, as which token it is makes no difference.

    threads: of the CPU. context: tokens that there is room for.
    """

    def __init__(self, file: Path, threads: int, context: int):
        from llama_cpp import Llama

        self._model = Llama(str(file), n_ctx=context, n_threads=threads, n_threads_batch=threads, n_gpu_layers=-1,
                            verbose=False)

    def start(self, length: int, prompt: int, rows: int = 1) -> None:
        if rows > 1:
            raise ValueError("llama-cpp-python runs one row")
        self._model.reset()
        self._run = True

    def append(self, ids: Sequence[int]) -> None:
        self._model.eval(list(ids))
        self._run = True

    def next(self) -> int:
        if not self._run:
            self._model.eval([TOKEN])
        self._run = False
        return TOKEN


class Yardstick:
    """No model, but the same work on every machine and in every version of phicli: how fast the CPU is just now.

    A token is four products of a vector and a matrix of 4 MB, one after the other, in onnxruntime: shared by threads
    that wait for each other, as those of a model are.
    """

    WIDTH, PRODUCTS = 1024, 4

    def __init__(self, threads: int):
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        rng, shape = np.random.default_rng(0), [1, self.WIDTH]
        names = [f"x{at}" for at in range(self.PRODUCTS + 1)]
        weights = [numpy_helper.from_array(rng.normal(0, self.WIDTH**-0.5, (self.WIDTH,) * 2).astype(np.float32),
                                           f"w{at}") for at in range(self.PRODUCTS)]
        nodes = [helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]]) for at in range(self.PRODUCTS)]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (names[0], names[-1])]
        model = helper.make_model(helper.make_graph(nodes, "yardstick", ends[:1], ends[1:], weights),
                                  opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        self._input = {names[0]: np.ones(shape, np.float32)}

    def start(self, length: int, prompt: int, rows: int = 1) -> None:
        pass

    def append(self, ids: Sequence[int]) -> None:
        self._session.run(None, self._input)

    def next(self) -> int:
        self._session.run(None, self._input)
        return TOKEN
