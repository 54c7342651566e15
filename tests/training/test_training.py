"""The loop: memory, schedule, and that an interrupted run ends as an uninterrupted one does."""

import math
import signal
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

from phicli.checkpoints.loading import load_base
from phicli.errors import BadInput, Missing
from phicli.progress import Silent
from phicli.text import Encoded
from phicli.training.checkpoint import Checkpoint, trainable
from phicli.training.fitting import Fitting
from phicli.training.loss import make_batch
from phicli.training.recipe import Recipe, schedule_factor
from phicli.training.recompute import LAYER, MLP, NOTHING
from phicli.training.rows import EncodedRows, prepare_rows
from phicli.training.training import Trainer

RECIPE = Recipe(max_steps=4, batch_size=4, learning_rate=1e-3, schedule="linear", seed=0, checkpoint_steps=1)
TRAIN = [Encoded.counted_from([7 * i + j for j in range(9 + i)], 4) for i in range(12)]
ROWS = prepare_rows(EncodedRows(TRAIN), Fitting(64), eval_source=EncodedRows(TRAIN[3:5]))


class Recorder(Silent):
    """Keeps notes and warnings, and presses Ctrl-C after a step."""

    def __init__(self, stop_after: int = 0):
        self.said: list[str] = []
        self.stop_after, self.done = stop_after, 0.0

    def note(self, text):
        self.said.append(text)

    warn = note

    @contextmanager
    def task(self, title, total=None, unit=""):
        yield self

    def advance(self, n=1, **figures):
        self.done += n
        if n and self.stop_after and self.done == self.stop_after:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def make(awq):
    def adapted(lora_dropout=0.1):
        base = load_base(awq, "cpu", torch.float32)
        torch.manual_seed(0)
        return get_peft_model(base, LoraConfig(r=4, lora_dropout=lora_dropout, target_modules=["down_proj"]))

    return adapted


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainable(model).items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_ctrl_c_saves_and_the_next_run_ends_the_same(make, tmp_path):
    whole = make()
    figures = Trainer(whole, ROWS, RECIPE).run()
    assert figures["held_out_loss_after"] < figures["held_out_loss_before"]

    def checkpoint():
        return Checkpoint(tmp_path / "c", {"data": 1})

    recorder = Recorder(stop_after=2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        Trainer(make(), ROWS, RECIPE, checkpoint(), recorder).run()
    assert stopped.value.__notes__ == ["step 2 is kept, and the same command goes on from there"]
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"state.json", "state.safetensors"}
    resumed, recorder = make(), Recorder()
    again = Trainer(resumed, ROWS, RECIPE, checkpoint(), recorder).run()
    assert recorder.said == ["going on from step 2"]
    assert same(weights(whole), weights(resumed))
    measured = ("held_out_loss_before", "held_out_loss_after", "train_loss_before", "train_loss_after", "tokens")
    assert {k: again[k] for k in measured} == {k: figures[k] for k in measured}
    fresh = make()
    assert Checkpoint(tmp_path / "c", {"data": 2}).load(fresh, torch.optim.AdamW(fresh.parameters())) is None


def test_a_damaged_checkpoint_counts_as_none(make, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Trainer(make(), ROWS, RECIPE, Checkpoint(tmp_path / "c", {}), Recorder(stop_after=2)).run()
    state = tmp_path / "c" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    model = make()
    before = weights(model)
    trainer = Trainer(model, ROWS, RECIPE, Checkpoint(tmp_path / "c", {}))
    assert trainer.checkpoint.load(model, trainer.optimizer) is None
    assert same(before, weights(model))


def test_out_of_memory_halves_the_rows_at_once_and_changes_nothing_else(make):
    plain, small = (make(lora_dropout=0.0) for _ in range(2))  # dropout depends on the shape of what goes through
    recorder = Recorder()
    embeddings = small.get_base_model().get_input_embeddings()

    def no_room(module, args):
        if args[0].shape[0] > 1 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")

    embeddings.register_forward_pre_hook(no_room)
    figures = [Trainer(model, ROWS, RECIPE, None, recorder).run() for model in (plain, small)]
    assert [f["micro_batch"] for f in figures] == [4, 1]
    assert [text.rpartition(": ")[2] for text in recorder.said] == [
        "going on with the MLP of each layer computed twice (slower)",
        "going on with each layer computed twice (slower)",
        "going on with 2 rows at a time", "going on with 1 rows at a time"]
    assert figures[1]["train_loss_after"] == pytest.approx(figures[0]["train_loss_after"], rel=1e-4)
    for name, weight in weights(plain).items():
        assert torch.allclose(weight, weights(small)[name], atol=1e-4), name


def test_no_room_even_for_one_row(make):
    model, recorder = make(), Recorder()
    trainer = Trainer(model, ROWS, RECIPE, None, recorder)
    model.get_base_model().lm_head.register_forward_pre_hook(_raise_out_of_memory)
    with pytest.raises(Missing, match="not enough memory for one row") as error:
        trainer.run()
    assert "--batch-size" in error.value.hint
    assert recorder.said[-1] == "out of memory: going on with 1 rows at a time"


def _raise_out_of_memory(module, args):
    raise torch.OutOfMemoryError("CUDA out of memory")


def kept_bytes(trainer) -> int:
    """What a step keeps for its backward pass, the model's own tensors left out."""
    fixed = {t.untyped_storage().data_ptr() for t in (*trainer.model.parameters(), *trainer.model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    trainer.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.loss(make_batch(TRAIN[:4])).backward()
    trainer.optimizer.zero_grad()
    return sum(size for size, _ in kept.values())


def test_what_is_computed_twice_gives_the_same_weights_and_keeps_less(make):
    results, kept = [], []
    for level in (NOTHING, MLP, LAYER):
        model = make()  # with dropout
        trainer = Trainer(model, ROWS, RECIPE)
        assert trainer.recompute.exact
        if level:
            trainer._recompute(level)
        kept.append(kept_bytes(trainer))
        trainer.run()
        results.append(weights(model))
        trainer._recompute(NOTHING)
        assert kept_bytes(trainer) > 0.9 * kept[0]
    assert kept[1] < 0.75 * kept[0]
    assert kept[2] < 0.4 * kept[0]
    for one in results[1:]:
        for name, weight in results[0].items():
            assert torch.allclose(weight, one[name], atol=1e-5), name


def test_a_random_generator_is_set_back_where_dropout_is_the_models_own(make):
    results = []
    for level in (NOTHING, LAYER):
        model = make()
        for layer in model.get_base_model().model.layers:
            layer.resid_mlp_dropout.p = 0.1
        trainer = Trainer(model, ROWS, RECIPE)
        assert not trainer.recompute.exact
        if level:
            trainer._recompute(level)
        trainer.run()
        results.append(weights(model))
    for name, weight in results[0].items():
        assert torch.allclose(weight, results[1][name], atol=1e-5), name


def test_a_loss_that_is_no_number_stops_the_run(make):
    model = make()
    with torch.no_grad():
        next(iter(trainable(model).values())).fill_(math.inf)
    with pytest.raises(BadInput, match="the loss is nan at step 1"):
        Trainer(model, prepare_rows(EncodedRows(TRAIN), Fitting(64)), RECIPE).run()


def test_schedule():
    shape = [schedule_factor(step, 20, "linear") for step in range(20)]
    assert shape[:3] == [0.5, 1.0, 1.0]
    assert shape[-1] == pytest.approx(1 / 18)
    assert shape[2:] == sorted(shape[2:], reverse=True)
    assert schedule_factor(11, 20, "cosine") == pytest.approx(0.5)
    assert schedule_factor(19, 20, "constant") == 1.0
    assert schedule_factor(0, 1, "cosine") == 1.0
