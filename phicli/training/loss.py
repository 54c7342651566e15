"""The loss of rows of tokens, without ever holding the logits of a whole batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from phicli.text import Encoded
from phicli.workflow.wording import worded

MOST_POSITIONS = 1024  # whose logits exist at once
LOGITS = 1 << 27  # bytes of these in float32, at most: 1,024 positions of 32,064 tokens, 167 of 200,064
IGNORED = -100  # a label that counts nothing


@dataclass
class Batch:
    """Rows as tensors.

    ids: int64 (rows, length), padded on the right. places: int64 (n,), positions of the flattened ids whose next token
    is predicted. labels: int64 (n,), those tokens, or IGNORED.
    """

    ids: Tensor
    places: Tensor
    labels: Tensor


def make_batch(rows: Sequence[Encoded]) -> Batch:
    """Rows padded to the longest, and the places that predict a token that counts."""
    longest = max(len(row.ids) for row in rows)
    places: list[int] = []
    labels: list[int] = []
    for i, row in enumerate(rows):
        places += [i * longest + at - 1 for at in row.targets]
        labels += [row.ids[at] for at in row.targets]
    return Batch(_padded(rows, longest), torch.tensor(places), torch.tensor(labels))


def make_even_batch(rows: Sequence[Encoded]) -> Batch:
    """Rows padded so that few shapes come about: to a length at most an eighth above the longest, all places in."""
    longest = max(len(row.ids) for row in rows)
    step = max(16, 1 << max(0, longest.bit_length() - 4))
    length = -(-longest // step) * step
    labels = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        at = torch.tensor(row.targets)
        labels[i, at - 1] = torch.tensor(row.ids)[at]
    return Batch(_padded(rows, length), torch.arange(labels.numel()), labels.flatten())


def _padded(rows: Sequence[Encoded], length: int) -> Tensor:
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    return ids


class RowLoss:
    """Sum of the token losses of rows.

    The rows' padding needs no attention mask: it comes after every token that counts, and attention looks back only.
    Logits are computed for the places that count, some at a time, and their gradient at once, so that they are neither
    kept nor computed again.
    """

    def __init__(self, model: PreTrainedModel, done: Callable[[], None] | None = None, fused: bool = False):
        """done: called when the output projection is not used any more for some rows. fused: whether our kernel makes
        the loss and its gradient.
        """
        self.device, self.fused = model.device, fused
        with worded("transformers cannot run this model"):
            self.body, self.head = _split(model)
        self.done = done if isinstance(self.head, nn.Module) else None  # run whole, backward needs it too
        size = model.config.get_text_config().vocab_size * (model.dtype.itemsize if fused else 4)
        self.positions = max(1, min(MOST_POSITIONS, LOGITS // size))

    def __call__(self, batch: Batch) -> Tensor:
        """Float32 scalar: the sum over all labels."""
        places, labels = batch.places.to(self.device), batch.labels.to(self.device)
        with worded("transformers cannot run this model"):
            hidden = self.body(batch.ids.to(self.device)).flatten(0, 1)[places]
        total: Tensor = _Total.apply(hidden, labels, self._part, self.positions)
        if self.done:
            self.done()
        return total

    def _part(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss of some positions and, unless gradients are off, its gradient by them."""
        hidden = hidden.detach().requires_grad_(torch.is_grad_enabled())
        logits = self.head(hidden)
        if self.fused:
            return self._fused_part(hidden, logits, labels)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED)
        return loss.detach(), torch.autograd.grad(loss, hidden)[0] if loss.requires_grad else None

    def _fused_part(self, hidden: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        from phicli.training.fused.kernels import cross_entropy

        if not logits.requires_grad:
            return cross_entropy(logits, labels, IGNORED).sum(), None
        mine = logits.detach() if logits is not hidden else torch.empty_like(logits)  # else the model's, which kept it
        loss = cross_entropy(logits.detach(), labels, IGNORED, mine).sum()
        return loss, torch.autograd.grad(logits, hidden, mine)[0]


class _Total(torch.autograd.Function):
    """The sum of a loss over positions, of which some are computed at a time, with their gradient if it is wanted."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor,
                part: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]], size: int) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        gradients = []
        for some, theirs in zip(hidden.split(size), labels.split(size), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                loss, gradient = part(some, theirs)
            total += loss
            if gradient is not None:
                gradients.append(gradient)
        ctx.save_for_backward(*([torch.cat(gradients)] if gradients else []))
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer[0]).to(gradient.dtype), None, None, None


def count_targets(rows: Sequence[Encoded]) -> int:
    """How many tokens of the rows the loss counts."""
    return sum(len(row.targets) for row in rows)


def _split(model: PreTrainedModel) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The model as (ids -> hidden states, hidden states -> logits).

    Models that do more to their logits than project (scale or cap them) are found by trying, and are run whole:
    their hidden states are then the logits.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()

    def body(ids: Tensor) -> Tensor:
        return decoder(input_ids=ids, use_cache=False).last_hidden_state

    def whole(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    if decoder is not None and decoder is not model and head is not None:
        was_training = model.training
        model.eval()
        probe = torch.arange(8, device=model.device)[None]
        with torch.no_grad():
            same = torch.allclose(head(body(probe)).float(), whole(probe).float(), rtol=1e-3, atol=1e-3)
        model.train(was_training)
        if same:
            return body, head
    return whole, lambda logits: logits
