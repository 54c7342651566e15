"""The held-out loss during training, and which weights are kept."""

from dataclasses import replace

import pytest
from test_training import RECIPE, Recorder, same, weights

from phicli.text import Encoded
from phicli.training.checkpoint import Checkpoint
from phicli.training.fitting import Fitting
from phicli.training.recipe import Recipe, count_steps
from phicli.training.rows import EncodedRows, prepare_rows
from phicli.training.training import Trainer

# What is trained says 50 always, what is held out mostly: its loss falls first, and rises with too much certainty.
TRAIN = [Encoded.counted_from([*range(7 * i + 60, 7 * i + 64), *[50] * 8], 4) for i in range(6)]
OTHER = [Encoded.counted_from([*range(7 * i + 60, 7 * i + 64), *[50, 50, 51, 50] * 2], 4) for i in range(20)]
ROWS = prepare_rows(EncodedRows(TRAIN), Fitting(64), eval_source=EncodedRows(OTHER))
OVERFIT = replace(RECIPE, max_steps=30, learning_rate=3e-3, schedule="constant", eval_steps=3)


def test_the_weights_of_the_lowest_held_out_loss_are_kept(fresh):
    recorder, model = Recorder(), fresh()
    trainer = Trainer(model, ROWS, OVERFIT, None, recorder)
    figures = trainer.run()
    curve = figures["curve"]
    assert [step for step, _, _ in curve] == list(range(0, 31, 3))
    best = min(loss for step, _, loss in curve if step)
    kept = figures["kept_step"]
    assert [loss for step, _, loss in curve if step == kept] == [best] and 0 < kept < 30
    assert trainer.evaluate(ROWS.held_out[: OVERFIT.watched]) == pytest.approx(best, rel=1e-6)
    assert recorder.said[-1].startswith(f"the held-out loss was lowest after step {kept} of 30")
    last = fresh()
    assert Trainer(last, ROWS, replace(OVERFIT, keep="last")).run()["kept_step"] == 30
    assert not same(weights(model), weights(last))


@pytest.mark.parametrize("stop_after", [5, 24])
def test_an_interrupted_run_keeps_its_curve_and_its_best_weights(fresh, tmp_path, stop_after):
    whole, resumed = fresh(), fresh()
    figures = Trainer(whole, ROWS, OVERFIT).run()
    with pytest.raises(KeyboardInterrupt):
        Trainer(fresh(), ROWS, OVERFIT, Checkpoint(tmp_path / "c", {}), Recorder(stop_after=stop_after)).run()
    again = Trainer(resumed, ROWS, OVERFIT, Checkpoint(tmp_path / "c", {})).run()
    assert same(weights(whole), weights(resumed))
    timed = ("tokens_per_second",)
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in figures.items() if k not in timed}


def test_how_often_and_on_how_many_rows_it_is_measured():
    recipe = Recipe(max_steps=1000, batch_size=8, learning_rate=1, schedule="linear", seed=0, checkpoint_steps=20)
    assert recipe.between_evaluations == 100 and recipe.watched == 240  # a tenth of the time, at a third of the cost
    assert replace(recipe, max_steps=7).between_evaluations == 1
    assert replace(recipe, eval_steps=1).watched == 16


@pytest.mark.parametrize(("max_steps", "epochs", "steps"), [
    (None, None, 100), (7, None, 7), (None, 1.0, 13), (None, 0.001, 1), (7, 1.0, 7), (70, 1.0, 13), (None, 0.96, 12),
    (None, 2.0, 26), (None, 1.5, 20),
])
def test_steps_of_a_hundred_rows(max_steps, epochs, steps):
    assert count_steps(max_steps, epochs, 100, 8) == steps
