"""A Hugging Face Trainer is trained as its own `train()` does it, and is left as it is."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import autobatch
from autobatch.core.plan import Config, Plan
from autobatch.errors import SettingError, TaskError
from autobatch.integrations.hf import training_arguments
from autobatch.tasks.data import training_batches, val_loader
from autobatch.tasks.doors.table import as_task
from autobatch.tasks.inputs import pickle_task, unpickle_task
from autobatch.tasks.task import Task
from autobatch.tasks.worst_case import WorstSamples, find_worst_case
from autobatch.worker.check import check_task
from autobatch.worker.training import Trainer as Ours

transformers = pytest.importorskip("transformers", reason="needs transformers (the extra `hf`)")
pytest.importorskip("accelerate", reason="needs accelerate (the extra `hf`)")
from transformers import Trainer, TrainerCallback  # noqa: E402

from ..helpers.hf_trainers import Reviews, bert, classifier, gpt2, language_model, translator  # noqa: E402
from ..helpers.ready_python import run  # noqa: E402
from ..helpers.steady import train_time  # noqa: E402
from ..test_readme import code_of  # noqa: E402

CPU = torch.device("cpu")
IN_CODE: dict[str, Any] = {"budget": "600s", "train_time": train_time(40), "device": "cpu"}
Made = Callable[..., Trainer]


def task_of(trainer: Trainer) -> Task:
    """Its task, as it arrives in a worker."""
    given = as_task(trainer)
    assert given.task is not None
    return unpickle_task(pickle_task(given.task))


def trained_by_us(trainer: Trainer, task: Task, plan: Plan, steps: int) -> tuple[Ours, list[float]]:
    """Steps on its samples in their order."""
    config = Config(plan=plan, lr=task.baseline_config()[0].lr)
    ours = Ours(task, config, CPU, seed=0, total_steps=steps)
    data: Any = task.train_data()  # type: ignore[misc]

    def batches() -> Iterator[Any]:
        size = plan.batch_size
        for at in range(0, len(data), size):
            yield task.collate([data[index] for index in range(at, at + size)])  # type: ignore[misc]

    stream = batches()
    return ours, [float(ours.step(stream)) for _ in range(steps)]  # type: ignore[arg-type]


def trained_by_itself(trainer: Trainer, steps: int) -> list[float]:
    """The same by its own `train()`."""
    trainer.args.max_steps, trainer.args.logging_steps, trainer.args.logging_strategy = steps, 1, "steps"
    trainer.pop_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class OwnLoss(Trainer):  # type: ignore[misc]  # it is Any, installed or not
    """Adds to the loss, as many do, by an attribute of its own."""

    penalty = 0.1

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **more)
        loss = loss + self.penalty * outputs.logits.pow(2).mean()
        return (loss, outputs) if return_outputs else loss


class OwnStep(Trainer):  # type: ignore[misc]
    """Takes the step itself, and forgets the counts."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss / self.args.gradient_accumulation_steps)
        taken: Tensor = loss.detach() / self.args.gradient_accumulation_steps
        return taken


def summed_by_words(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """As a compute_loss_func is written for a language model."""
    total: Tensor = nn.functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    mean: Tensor = total / num_items_in_batch
    return mean


CASES: dict[str, tuple[Made, dict[str, Any]]] = {
    "classifier": (classifier, {}),
    "warm-up, cosine and decay": (
        classifier,
        {"warmup_steps": 0.4, "lr_scheduler_type": "cosine", "weight_decay": 0.1, "max_grad_norm": 0.05},
    ),
    "no clip, SGD": (classifier, {"max_grad_norm": 0.0, "optim": "sgd", "optim_args": "momentum=0.9"}),
    "Adafactor": (classifier, {"optim": "adafactor", "lr_scheduler_type": "constant"}),
    "language model": (language_model, {}),
    "language model in bf16": (language_model, {"bf16": True}),
    "label smoothing in bf16": (language_model, {"bf16": True, "label_smoothing_factor": 0.2}),
    "checkpointed": (language_model, {"activation_checkpointing": True}),
    "a loss function": (language_model, {"of": {"compute_loss_func": summed_by_words}}),
    "a loss of its own": (classifier, {"kind": OwnLoss}),
    "a step of its own": (language_model, {"kind": OwnStep}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_trial_trains_as_the_trainer_itself_does(name: str, tmp_path: Path) -> None:
    make, changes = CASES[name]
    steps, micro_batches = 3, 2
    trainer = make(tmp_path, train_sampling_strategy="sequential", gradient_accumulation_steps=micro_batches, **changes)
    task = task_of(trainer)
    plan = task.baseline_config()[0].plan
    assert (plan.batch_size, plan.accumulation_steps) == (4, micro_batches)
    ours, losses = trained_by_us(trainer, task, plan, steps)
    assert trained_by_itself(trainer, steps) == pytest.approx(losses, rel=1e-5)
    for (key, theirs), own in zip(trainer.model.state_dict().items(), ours.model.state_dict().values(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-7, msg=f"{key} differs")
    scored = ours.evaluate(val_loader(task, task.val_data(), trainer.args.per_device_eval_batch_size))
    key = trainer.args.metric_for_best_model or "loss"
    assert trainer.evaluate()[f"eval_{key}"] == pytest.approx(scored, rel=1e-5)


# -- the whole way --------------------------------------------------------------------------------------------------


def state_of(trainer: Trainer) -> dict[str, Any]:
    """All that a Trainer and its model are, to be compared."""
    return {
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "modes": [module.training for module in trainer.model.modules()],
        "attributes": {name: id(value) for name, value in vars(trainer).items()},
        "args": copy.copy(vars(trainer.args)),
        "config": trainer.model.config.to_dict(),
        "generator": torch.get_rng_state(),
    }


def assert_untouched(trainer: Trainer, before: dict[str, Any]) -> None:
    after = state_of(trainer)
    torch.testing.assert_close(after.pop("weights"), before.pop("weights"), rtol=0, atol=0)
    assert torch.equal(after.pop("generator"), before.pop("generator"))
    assert after == before


def test_a_classifier_is_tuned_and_the_answer_used(ready_python: None, steady_steps: None, tmp_path: Path) -> None:
    trainer = classifier(tmp_path / "out")
    given: dict[str, Any] = {}

    def tune(of: Trainer, budget: str) -> autobatch.Report:
        """As it is called on the page, in less time."""
        given.update(report=autobatch.tune(of, **IN_CODE, max_trials=2, run_dir=tmp_path / "run"), budget=budget)
        assert_untouched(trainer, before)
        trainer.args.max_steps = 2
        return given["report"]  # type: ignore[no-any-return]

    trainer.pop_callback(transformers.PrinterCallback)
    before = state_of(trainer)
    (block,) = [block for block in code_of("docs/hugging-face.md") if "hf.apply" in block]
    exec(block.replace("autobatch.tune", "tune"), {"trainer": trainer, "tune": tune})
    report = given["report"]
    assert trainer.args.learning_rate == report.config.lr
    assert trainer.state.train_batch_size == report.config.plan.batch_size
    assert trainer.state.global_step == 2
    assert (report.task, report.direction, report.baseline_is_users) == (
        "BertForSequenceClassification",
        "maximize",
        True,
    )
    assert (report.baseline_plan.plan.batch_size, report.baseline_plan.lr) == (4, 1e-3)
    assert any("no model_init: each trial starts from a copy of its weights" in told for told in report.warnings)
    assert report.score is None or report.baseline is None or report.score.mean >= report.baseline.mean


def test_a_model_is_measured_without_data_to_score_it_on(ready_python: None, tmp_path: Path) -> None:
    trainer = language_model(tmp_path, of={"eval_dataset": None})
    before = state_of(trainer)
    found = autobatch.find_max_batch(trainer, device="cpu", max_batch_size=32)
    assert_untouched(trainer, before)
    assert (found, found.limited_by) == (32, "ceiling")
    with pytest.raises(TaskError, match=r"the Trainer has no eval_dataset, .*: pass eval_dataset=\. `find_max_batch`"):
        autobatch.tune(trainer, budget="1m")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_a_language_model_with_adapters_is_tuned_and_only_they_train(
    ready_python: None, steady_steps: None, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(gpt2(), lora)
    trainer = language_model(tmp_path / "out", of={"model": adapted}, warmup_steps=0.1)
    ours, _ = trained_by_us(trainer, task := task_of(trainer), Plan(batch_size=4), 2)
    moved = {
        name
        for (name, now), before in zip(ours.model.named_parameters(), task.model().parameters(), strict=True)
        if not torch.equal(now, before)
    }
    assert moved
    assert all("lora_" in name for name in moved)
    before = state_of(trainer)
    report = autobatch.tune(trainer, **IN_CODE, max_trials=2, run_dir=tmp_path / "run")
    assert_untouched(trainer, before)
    assert (report.direction, report.baseline_plan.plan.batch_size) == ("minimize", 4)
    assert report.score is None or report.baseline is None or report.score.mean <= report.baseline.mean
    new = training_arguments(report, trainer.args)
    assert (new.learning_rate, new.per_device_train_batch_size) == (report.config.lr, report.config.plan.batch_size)
    assert new.gradient_accumulation_steps == report.config.plan.accumulation_steps
    assert trainer.args.learning_rate == 1e-3


def test_the_loop_of_accelerate_on_the_page_is_tuned_and_run(
    ready_python: None, steady_steps: None, tmp_path: Path
) -> None:
    (block,) = [block for block in code_of("docs/hugging-face.md") if "Accelerator(" in block]
    shorter = f'budget="600s", train_time="{train_time(40)}", max_trials=2, device="cpu"'
    assert 'budget="10m"' in block
    (tmp_path / "script.py").write_text(block.replace('budget="10m"', shorter))
    done = run([sys.executable, "script.py"], cwd=tmp_path, env=os.environ, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"trained with \d+ x \d+ at \S+\n", done.stdout)


# -- its parts ------------------------------------------------------------------------------------------------------


def test_seeds_vary_the_weights_where_there_is_a_model_init(tmp_path: Path) -> None:
    trainer = classifier(tmp_path, of={"model_init": partial(bert, 0.1)})
    task = task_of(trainer)
    assert not any("model_init" in remark for remark in task.remarks)

    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return next(task.model().parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    kept = task_of(classifier(tmp_path))
    assert torch.equal(next(kept.model().parameters()), next(kept.model().parameters()))


def test_each_group_of_an_optimizer_that_was_handed_over_keeps_its_ratio(tmp_path: Path) -> None:
    model = bert()
    head = list(model.classifier.parameters())
    rest = [parameter for parameter in model.parameters() if all(parameter is not one for one in head)]
    groups = [{"params": rest, "lr": 1e-4}, {"params": head, "lr": 1e-2, "weight_decay": 0.5}]
    trainer = classifier(
        tmp_path, of={"model": model, "optimizers": (torch.optim.AdamW(groups, betas=(0.8, 0.9)), None)}
    )
    task = task_of(trainer)
    assert task.baseline_config()[0].lr == 1e-4
    new: Any = task.model()
    made = task.optimizer(new, 3e-4)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([3e-4, 3e-2])
    assert [(group["betas"], group["weight_decay"]) for group in made.param_groups] == [
        ((0.8, 0.9), 0.01),
        ((0.8, 0.9), 0.5),
    ]
    assert made.param_groups[1]["params"][0] is new.classifier.weight


def test_a_class_of_optimizer_gets_the_rate(tmp_path: Path) -> None:
    chosen = (torch.optim.SGD, {"lr": 0.25, "momentum": 0.9})
    task = task_of(classifier(tmp_path, of={"optimizer_cls_and_kwargs": chosen}))
    assert task.baseline_config()[0].lr == 0.25
    made = task.optimizer(task.model(), 0.5)
    assert {(type(made), group["lr"], group["momentum"]) for group in made.param_groups} == {
        (torch.optim.SGD, 0.5, 0.9)
    }


def test_warm_up_of_so_many_steps_is_that_share_of_a_trial(tmp_path: Path) -> None:
    # 128 samples of 4: 32 steps an epoch, 96 in all
    task = task_of(classifier(tmp_path, warmup_steps=24, learning_rate=1.0))
    assert any("warmup_steps=24 are 25.0% of the 96 steps" in remark for remark in task.remarks)
    optimizer = task.optimizer(task.model(), 1.0)
    assert task.scheduler is not None
    schedule = task.scheduler(optimizer, 8)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(3):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0, 0.5, 1.0, 5 / 6])


class Stops(TrainerCallback):  # type: ignore[misc]
    """As people stop a training, or change a model in it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_training_stop = True


def test_callbacks_that_would_act_in_training_are_named(tmp_path: Path) -> None:
    told = task_of(classifier(tmp_path, of={"callbacks": [Stops(), transformers.EarlyStoppingCallback()]})).remarks
    (remark,) = [one for one in told if "callbacks" in one]
    assert "Stops (on_step_end), EarlyStoppingCallback (on_train_begin, on_evaluate)" in remark
    assert not any("callbacks" in one for one in task_of(classifier(tmp_path)).remarks)


@pytest.mark.parametrize(
    ("asked", "said", "key", "direction"),
    [
        ({}, {"metric_for_best_model": "accuracy"}, "eval_accuracy", "maximize"),
        ({}, {"metric_for_best_model": "eval_loss"}, "eval_loss", "minimize"),
        ({}, {"metric_for_best_model": None}, "eval_loss", "minimize"),
        ({}, {"metric_for_best_model": "perplexity", "greater_is_better": False}, "eval_perplexity", "minimize"),
        ({"monitor": "loss"}, {}, "eval_loss", "minimize"),
        ({"monitor": "eval_f1"}, {"metric_for_best_model": "loss"}, "eval_f1", "maximize"),
        ({"monitor": "error", "direction": "minimize"}, {}, "eval_error", "minimize"),
    ],
)
def test_the_score_is_what_the_best_model_is_chosen_by(
    asked: dict[str, Any], said: dict[str, Any], key: str, direction: str, tmp_path: Path
) -> None:
    task = as_task(classifier(tmp_path, **said), **asked).task
    assert task is not None
    assert task.evaluate is not None
    assert task.evaluate.__self__.scored.key == key  # type: ignore[attr-defined]
    assert task.direction == direction


def test_one_of_several_sets_is_scored(tmp_path: Path) -> None:
    sets = {"news": Reviews(20, seed=3), "news_long": Reviews(30, seed=4)}
    trainer = classifier(tmp_path, of={"eval_dataset": sets}, metric_for_best_model="eval_news_long_accuracy")
    task = task_of(trainer)
    assert len(task.val_data()) == 30
    ours, _ = trained_by_us(trainer, task, Plan(batch_size=4), 1)
    trainer.model = ours.model
    trainer.pop_callback(transformers.PrinterCallback)
    scored = ours.evaluate(val_loader(task, task.val_data(), 8))
    assert trainer.evaluate()["eval_news_long_accuracy"] == pytest.approx(scored)
    with pytest.raises(
        TaskError, match=r"eval_dataset holds 'news', 'news_long', and the score is of one .*='news_loss'"
    ):
        as_task(classifier(tmp_path, of={"eval_dataset": sets}))


def test_what_is_generated_is_scored_where_the_trainer_generates(tmp_path: Path) -> None:
    trainer = translator(tmp_path)
    task = task_of(trainer)
    ours, _ = trained_by_us(trainer, task, Plan(batch_size=4), 1)
    trainer.model = ours.model
    trainer.pop_callback(transformers.PrinterCallback)
    scored = ours.evaluate(val_loader(task, task.val_data(), trainer.args.per_device_eval_batch_size))
    found = trainer.evaluate()
    assert found["eval_length"] > 12  # words of the longest text: they are generated, and no scores of given ones
    assert found["eval_mean"] == pytest.approx(scored)


class Stream(IterableDataset[dict[str, Any]]):
    """Reviews that come one by one."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(Reviews(64).samples)


def test_a_stream_is_trained_on_for_as_long_as_max_steps_says(tmp_path: Path) -> None:
    trainer = classifier(tmp_path, of={"train_dataset": Stream()}, max_steps=20, warmup_steps=5)
    task = task_of(trainer)
    assert any("warmup_steps=5 are 25.0% of the 20 steps" in remark for remark in task.remarks)
    assert check_task(task, CPU, 4).warnings == task.remarks


class OwnLoader(Trainer):  # type: ignore[misc]
    """Makes the loader itself."""

    def get_train_dataloader(self) -> Any:
        made = DataLoader(self.train_dataset, self._train_batch_size, shuffle=True, collate_fn=self.data_collator)
        return self.accelerator.prepare(made)


@pytest.mark.parametrize("kind", [Trainer, OwnLoader], ids=["by length", "own"])
def test_a_loader_with_an_order_of_its_own_is_followed(kind: Any, tmp_path: Path) -> None:
    said: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if kind is Trainer else {}
    task = task_of(classifier(tmp_path, kind, **said))
    assert task.train_data is None
    assert any("a data loader of its own" in remark for remark in task.remarks) == (kind is OwnLoader)

    def batches(seed: int, start: int = 0) -> list[Tensor]:
        torch.manual_seed(start)  # whatever a trial has drawn by then
        found = training_batches(task, None, Plan(batch_size=8), seed=seed, start_step=start)
        return [batch["input_ids"] for batch in islice(found, 20 - start)]

    def same(some: list[Tensor], others: list[Tensor]) -> bool:
        pairs = zip(some, others, strict=True)
        return all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)

    whole = batches(5)
    assert same(whole[7:], batches(5, start=7))
    assert not same(whole, batches(6))
    if kind is Trainer:
        assert whole[0].shape[1] == max(len(sample["input_ids"]) for sample in Reviews(128).samples)
    assert check_task(task, CPU, 4).warnings == task.remarks


def test_longest_samples_are_what_memory_is_probed_with(tmp_path: Path) -> None:
    task = task_of(classifier(tmp_path))
    data: Any = task.train_data()  # type: ignore[misc]
    found = find_worst_case(data)
    assert found.varies
    longest = max(len(sample["input_ids"]) for sample in data)
    assert WorstSamples(task, data, found).batch(5)["input_ids"].shape == (5, longest)


# -- what is refused ------------------------------------------------------------------------------------------------


def changed(trainer: Trainer, **attributes: Any) -> Trainer:
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def wrapped(folder: Path) -> Trainer:
    trainer = classifier(folder)
    return changed(trainer, model=nn.DataParallel(trainer.model))


def quantised(folder: Path) -> Trainer:
    trainer = classifier(folder)
    trainer.model.is_quantized = True
    return trainer


def scheduled(folder: Path) -> Trainer:
    optimizer = torch.optim.SGD((model := bert()).parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return classifier(folder, of={"model": model, "optimizers": (optimizer, schedule)})


class OwnLoop(Trainer):  # type: ignore[misc]
    """Trains by a loop of its own."""

    def _inner_training_loop(self, *args: Any, **more: Any) -> Any:
        raise AssertionError("it is not called")


REFUSED: dict[str, tuple[Callable[[Path], Trainer], str]] = {
    "wrapped": (wrapped, r"the Trainer: its model is wrapped \(DataParallel\), .*model\.module"),
    "deepspeed": (
        lambda f: changed(classifier(f), is_deepspeed_enabled=True),
        r"trains with DeepSpeed, .* leave `deepsp",
    ),
    "fsdp": (
        lambda f: changed(classifier(f), is_fsdp_enabled=True),
        r"trains with FSDP, .* leave `fsdp` out, or write a",
    ),
    "quantised": (quantised, r"its model is quantised \(some method\), .*: load it without quantization_config"),
    "compiled": (
        lambda f: changed(classifier(f), model=torch.compile(bert(), backend="eager")),
        r"a compiled one .*torch_compile=True",
    ),
    "several devices": (
        lambda f: changed(t := classifier(f), model=changed(t.model, hf_device_map={"a": 0, "b": 1})),
        r"lies on several devices \(0, 1\): load it without device_map",
    ),
    "no data": (lambda f: classifier(f, of={"train_dataset": None}), r"it has no train_dataset: pass one"),
    "plateau": (
        lambda f: classifier(f, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch"),
        r"lr_scheduler_type='reduce_lr_on_plateau' goes by the evaluations .* such as 'cosine'",
    ),
    "schedule": (scheduled, r"its schedule \(a ConstantLR in optimizers=\) .*: set lr_scheduler_type and warmup_steps"),
    "lomo": (lambda f: classifier(f, optim="lomo"), r"optim='lomo' steps inside the backward pass, .* 'adamw_torch'"),
    "loop": (
        lambda f: classifier(f, OwnLoop),
        r"the OwnLoop: it has a training loop of its own \(_inner_training_loop\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_with_the_remedy_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    make, told = REFUSED[name]
    trainer = make(tmp_path)
    before = dict(vars(trainer))
    with pytest.raises(TaskError, match=told):
        autobatch.tune(trainer, budget="1m", run_dir=tmp_path / "run")
    assert vars(trainer) == before
    assert not (tmp_path / "run").exists()


def test_all_that_is_in_the_way_is_told_together(tmp_path: Path) -> None:
    trainer = changed(
        classifier(tmp_path, optim="adalomo", lr_scheduler_type="greedy", eval_strategy="epoch"), is_fsdp_enabled=True
    )
    with pytest.raises(
        TaskError, match=r"(?s)the Trainer has 3 problems:\n  1\. it trains with FSDP.*2\. optim='adalomo'.*3\."
    ):
        as_task(trainer)


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (
            {},
            r"gives no 'eval_f1', which is to be the score; it gives eval_loss, eval_accuracy: let compute_metrics",
        ),
        (
            {"compute_metrics": None},
            r"gives no 'eval_f1', .*; it gives eval_loss: pass a compute_metrics that returns it",
        ),
    ],
)
def test_a_metric_that_nobody_computes_is_told_with_those_that_are(
    of: dict[str, Any], told: str, tmp_path: Path
) -> None:
    trainer = classifier(tmp_path, of=of, metric_for_best_model="f1")
    with pytest.raises(TaskError, match=told):
        check_task(task_of(trainer), CPU, 4)


@pytest.mark.parametrize("name", ["sample", "data", "loss", "optimizer", "precision"])
def test_what_the_trainer_says_itself_is_not_said_again(name: str, tmp_path: Path) -> None:
    said: dict[str, Any] = {name: "fp32"}
    with pytest.raises(
        SettingError, match=rf"{name}= is for a live module; .* it is the .* that counts: change it there"
    ):
        as_task(classifier(tmp_path), **said)


def test_several_processes_to_one_model_are_refused_before_one_is_started(tmp_path: Path) -> None:
    trainer = classifier(tmp_path)
    with pytest.raises(SettingError, match=r"^nproc=2: a Trainer is tuned in one process: .* or write a task file"):
        autobatch.tune(trainer, budget="1m", nproc=2, run_dir=tmp_path / "run")
    with pytest.raises(SettingError, match=r"^nproc=2: a Trainer"):
        autobatch.find_max_batch(trainer, nproc=2)
