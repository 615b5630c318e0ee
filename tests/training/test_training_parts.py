"""Options and schedules, the learner's loss, averages, the order of samples, validation, and curves."""

import copy
import json
import math

import pytest
import torch
from helpers import assert_close
from training_runs import dit, half_open, pixart, session, train, wan

from fastdit.training.average import Average
from fastdit.training.batches import Order, generator_for, turn
from fastdit.training.learner import call
from fastdit.training.objectives import weighting_of
from fastdit.training.options import DEFAULT_STEPS, TrainOptions
from fastdit.training.validation import LEVELS, Validation

# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0}, "--target must be a number above 0 and at most 1, got 0"),
        ({"target": 1.5}, "--target must be a number above 0 and at most 1, got 1.5"),
        ({"lr": math.nan}, "--lr must be a number above 0, got nan"),
        ({"batch": 0}, "--batch must be a whole number at least 1, got 0"),
        ({"steps": 2.5}, "--steps must be a whole number at least 1, got 2.5"),
        ({"parameters": "all"}, "--parameters must be one of full, routers, lora, td-lora, got 'all'"),
        (
            {"save_every": "often"},
            "--save-every must be a number of steps or of minutes such as 500 or 10m, got 'often'",
        ),
        ({"save_every": "0"}, "--save-every must be"),
        ({"save_every": "-1m"}, "--save-every must be"),
        ({"lora_targets": " ,"}, "--lora-targets names no linear"),
        ({"hold_out": True}, "--hold-out .* give --validate N too"),
        ({"text_drop": 1.1}, "--text-drop must be a number at least 0 and at most 1, got 1.1"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**options)


def test_the_target_holds_and_then_falls_linearly():
    options = TrainOptions(target=0.4, hold=100, warmup=1000)
    assert [options.target_at(step) for step in (0, 100, 600, 1100, 5000)] == pytest.approx([1, 1, 0.7, 0.4, 0.4])
    assert [TrainOptions(hold=2, warmup=0).target_at(step) for step in (1, 2)] == [1, 0.5]


def test_the_rate_rises_stays_and_falls():
    options = TrainOptions(lr_warmup=10, cooldown=0.5)
    found = [options.rate_at(step, step / 100) for step in (0, 9, 50, 75, 100)]
    assert found == pytest.approx([0.1, 1, 1, 0.5, 0])
    assert TrainOptions(cooldown=0.5, cooldown_shape="cosine").rate_at(500, 0.625) == pytest.approx(0.853553)
    assert TrainOptions().rate_at(500, 1.0) == 1


def test_progress_is_that_of_what_ends_the_run():
    assert TrainOptions(steps=10, minutes=1).progress(5, 54) == 0.9
    assert TrainOptions(minutes=1).progress(10**6, 30) == 0.5
    assert TrainOptions().progress(DEFAULT_STEPS, 0) == 1
    assert [TrainOptions().complete_at(0, share) for share in (0.1, 0.2)] == [True, False]
    assert [TrainOptions(complete_steps=3).complete_at(step, 0.5) for step in (2, 3)] == [True, False]


def test_a_target_that_is_never_reached_is_a_warning():
    assert (
        "only at step 1100 (--hold + --warmup), and the run ends at step 500" in TrainOptions(steps=500).warnings()[0]
    )
    assert TrainOptions(steps=5000).warnings() == [] == TrainOptions(minutes=1).warnings()


def test_parts_of_a_step_with_fewer_samples_than_strata_are_a_warning():
    assert TrainOptions(batch=8, accumulate=2).warnings() == [] == TrainOptions(batch=2).warnings()
    assert "has 2 samples, fewer than --strata 4" in TrainOptions(batch=8, accumulate=4).warnings()[0]
    assert "has 2 samples, fewer than --strata 4" in TrainOptions(batch=8, accumulate=2).warnings(processes=2)[0]


# --- averages and order ---------------------------------------------------------------------------------------------


def test_the_average_is_the_recursion_and_swapping_gives_everything_back():
    weight = torch.nn.Parameter(torch.zeros(3))
    average, expected = Average({"w": weight}, 0.6), torch.zeros(3)
    for count in range(1, 15):
        weight.data = torch.randn(3)
        average.update()
        decay = min(0.6, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * weight.data
    assert_close(average.values["w"], expected, 1e-6)
    live, identity = weight.detach().clone(), weight.data_ptr()
    with pytest.raises(KeyError), average.swapped():
        assert torch.equal(weight, average.values["w"])
        raise KeyError
    assert torch.equal(weight, live) and weight.data_ptr() == identity


def test_every_sample_comes_once_an_epoch_whatever_the_batches():
    order = Order([3, 5, 8, 9, 11], seed=1)
    taken = order.take(0, 15)
    epochs = [taken[:5], taken[5:10], taken[10:]]
    assert all(sorted(epoch) == [3, 5, 8, 9, 11] for epoch in epochs) and len({*map(tuple, epochs)}) == 3
    assert [sample for start in (0, 4, 8) for sample in Order(order.indices, 1).take(start, 4)] == taken[:12]
    assert Order(order.indices, seed=2).take(0, 15) != taken


def test_intervals_take_turns_by_their_length():
    intervals = [(0.0, 0.1), (0.1, 0.4), (0.4, 1.0)]
    found = [turn(intervals, count) for count in range(1000)]
    assert [found.count(interval) for interval in intervals] == pytest.approx([100, 300, 600], abs=2)
    assert {found.index(interval) < 10 for interval in intervals} == {True}


def test_random_numbers_hang_on_seed_step_and_part():
    first = torch.rand(3, generator=generator_for(0, 1, 2))
    assert torch.equal(first, torch.rand(3, generator=generator_for(0, 1, 2)))
    assert not torch.equal(first, torch.rand(3, generator=generator_for(0, 2, 1)))


def test_processes_share_a_step_among_them(tmp_path):
    run = session(tmp_path, batch=12, accumulate=2)
    seen = []
    for process in (0, 1):
        run.batches.process, run.batches.processes = process, 2
        for part in (0, 1):
            batch, again = run.batches.take(5, part)
            assert batch["latents"].shape == batch["noise"].shape == (3, 4, 8, 8) and batch["time"].shape == (3,)
            assert not torch.equal(again()["encoder_hidden_states"], again()["encoder_hidden_states"])
            seen += run.batches.samples.asked[-1]
    assert sorted(seen) == list(range(12))


# --- the loss -------------------------------------------------------------------------------------------------------


def batch_of(run, count=3):
    batch = run.batches.samples.batch(list(range(count)), None)
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(3))
    return {**batch, "noise": noise, "time": torch.linspace(0.1, 0.9, count)}


def test_the_loss_is_its_parts(tmp_path):
    base = pixart()[0].transformer
    run = session(tmp_path, "dydit", distill=0.7, target=0.3)
    half_open(run)
    learner, objective = run.learner, run.trainee.objective
    learner.train()
    batch = batch_of(run)
    torch.manual_seed(5)
    parts = learner(batch, 0.3)
    torch.manual_seed(5)  # the same gates
    prediction = call(learner.transformer, batch, objective)
    share = run.trainee.runtime.executed()
    data = objective.loss(prediction, batch["latents"], batch["noise"], batch["time"], "none").mean()
    distance = ((prediction - call(base, batch, objective)) ** 2).mean()
    assert_close(parts["data"], data, 1e-6)
    assert_close(parts["loss"], data + 2.0 * (share.mean() - 0.3) ** 2 + 0.7 * distance, 1e-6)
    assert distance > 0 and parts["loss"].requires_grad and not parts["data"].requires_grad
    assert set(learner({**batch}, None)) == {"loss", "data"}  # the complete model


def test_min_snr_is_as_the_method_was_published_or_as_asked_for(tmp_path):
    def found(method, make=pixart, **options):
        learner = session(tmp_path, method, make, **options).learner
        return learner.weighting, learner.objective.gamma

    grids = "flexdit:pooling=1,modules=0"
    assert found(grids) == ("min-snr", 5) and found(grids, min_snr=2)[1] == 2
    assert found(grids, min_snr=0)[0] == "none" == found("dydit")[0]
    assert found("dydit", min_snr=3) == ("min-snr", 3)
    assert weighting_of(None, "flexdit", session(tmp_path, make=wan).trainee.objective) == "none"  # flow


def test_the_complete_model_learns_beside_for_some_steps(tmp_path):
    rows = []
    train(tmp_path, "dydit", complete_steps=2, show=lambda step, progress, values: rows.append(values))
    assert ["complete" in row for row in rows] == [True, True, False, False]
    assert all({"data", "share", "steering", "target", "norm", "lr"} <= set(row) for row in rows)
    assert [row["target"] for row in rows] == [1, 0.75, 0.5, 0.5]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    found = [
        train(tmp_path / str(on), "dydit", gradient_checkpointing=on, complete_steps=2, steps=2)[0].trained
        for on in (False, True)
    ]
    for name, value in found[0].items():
        assert_close(found[1][name], value, 1e-6)


def test_gradients_are_scaled_down_to_the_clip(tmp_path):
    run = session(tmp_path)
    for parameter in run.trained.values():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in run.trained.values())
    assert run._clip() == pytest.approx(count**0.5, rel=1e-5)
    assert sum(p.grad.square().sum() for p in run.trained.values()) == pytest.approx(1.0, rel=1e-4)
    assert run._clip() == pytest.approx(1.0, rel=1e-4)


def test_only_what_is_asked_for_changes(tmp_path):
    base = copy.deepcopy(pixart()[0].transformer.state_dict())
    run, _ = train(tmp_path / "routers", "dydit", parameters="routers", router_lr=10.0)
    assert all(torch.equal(value, base[name]) for name, value in run.learner.transformer.state_dict().items())
    assert {group["lr"] for group in run.optimizer.param_groups} == {1e-2}
    run, _ = train(tmp_path / "full", "dydit", router_lr=10.0)
    assert [group["lr"] for group in run.optimizer.param_groups] == [1e-3, 1e-2]
    assert any(not torch.equal(value, base[name]) for name, value in run.learner.transformer.state_dict().items())


def test_labels_are_dropped_by_the_data_alone(tmp_path):
    run = session(tmp_path, make=dit)
    run.learner.train()
    batch = batch_of(run)
    outputs = {float(run.learner(batch, 1.0)["data"]) for _ in range(6)}  # its own dropout would be drawn in each
    assert len(outputs) == 1 and run.learner.transformer.training


def test_an_untrained_method_sees_batches_of_one_plan(tmp_path):
    run = session(tmp_path, "radial_attention:decay=0.2,dense_share=0.25", make=wan)
    (low, edge), (same, high) = run.batches.intervals
    assert (low, same, high) == (0, edge, 1)
    shift, left = run.trainee.family.flow_shift, 0.75
    assert edge == pytest.approx(shift * left / (1 + (shift - 1) * left), abs=1 / 64)


# --- validation and curves ------------------------------------------------------------------------------------------


def test_validation_is_the_same_for_any_batch_and_free_of_noise(tmp_path):
    run = session(tmp_path, "dydit", validate=3)
    assert run.validation.indices == [0, 4, 8]
    first = run.validation.measure()
    run.validation.batch = 5
    torch.rand(3)
    assert run.validation.measure() == pytest.approx(first, rel=1e-5)
    assert first["routed"] == 1 and first["validation"] > 0  # all gates are open at first
    half_open(run)
    assert run.validation.measure()["routed"] < 1


@pytest.mark.parametrize(("method", "low", "high"), [("dense", 1, 1), ("flexdit:pooling=1,modules=0", 0.3, 0.99)])
def test_the_executed_share_of_all_macs_is_logged(tmp_path, method, low, high):
    train(tmp_path, method, log_every=2, validate=1, validate_every=3)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = [row["executed"] for row in rows if "executed" in row]
    assert len(found) == 2 and all(low <= share <= high for share in found), found


def test_validation_of_dense_and_of_grids_counts_macs(tmp_path):
    assert session(tmp_path, validate=2).validation.measure()["macs"] == 1
    run = session(tmp_path, "flexdit:pooling=1,modules=0", validate=2)
    assert 0 < run.validation.measure()["macs"] < 1


def test_validation_batches_hold_all_pairs_once_and_mix_levels():
    validation = Validation(None, [4, 7, 9], None, None, None, [(0.0, 0.5), (0.5, 1.0)], 5)
    batches = list(validation.batches())
    assert sorted(pair for batch in batches for pair in batch) == [
        (s, level) for s in (4, 7, 9) for level in range(LEVELS)
    ]
    assert all(len({level for _, level in batch}) >= 2 and len(batch) <= 5 for batch in batches)
    assert all(len({level < LEVELS // 2 for _, level in batch}) == 1 for batch in batches)


def test_held_out_samples_are_never_trained_on(tmp_path):
    run = session(tmp_path, validate=3, hold_out=True)
    seen = [set(run.batches.take(step, 0) and run.batches.samples.asked[-1]) for step in range(6)]
    assert set.union(*seen) == set(range(12)) - {0, 4, 8}


def test_curves_are_written_for_people_and_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "dydit", validate=2, validate_every=2, log_every=2)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 2, 4, 4]
    assert {"loss", "data", "share", "target", "lr", "seconds"} <= set(rows[1])
    assert "executed" not in rows[1]  # gates under training only mask
    assert set(rows[0]) == set(rows[2]) == {"step", "validation", "routed"}
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("data")] == pytest.approx([rows[1]["data"], rows[3]["data"]])
    assert [event.step for event in events.Scalars("validation")] == [0, 2, 4]


def test_closing_takes_the_method_off(tmp_path):
    run = session(tmp_path, "dydit")
    transformer = run.trainee.transformer
    attention = transformer.transformer_blocks[0].attn1
    assert "_fastdit_engine" in vars(transformer) and "forward" in vars(attention.to_q)
    run.trainee.close()
    assert "_fastdit_engine" not in vars(transformer) and "forward" not in vars(attention.to_q)
