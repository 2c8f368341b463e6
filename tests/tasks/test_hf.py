"""A Hugging Face Trainer is trained as its own `train()` does it, and is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autobatch
from autobatch.core.plan import Config, Plan
from autobatch.errors import TaskError
from autobatch.integrations.hf import apply
from autobatch.tasks.data import val_loader
from autobatch.tasks.doors.table import as_task
from autobatch.tasks.inputs import pickle_task, unpickle_task
from autobatch.tasks.task import Task
from autobatch.worker.training import Trainer as Ours

transformers = pytest.importorskip("transformers", reason="needs transformers (the extra `hf`)")
pytest.importorskip("accelerate", reason="needs accelerate (the extra `hf`)")
from transformers import Trainer  # noqa: E402

from ..helpers.hf_trainers import (  # noqa: E402
    classifier,
    language_model,
)
from ..helpers.steady import train_time  # noqa: E402

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
    steps, micro_batches = 3, 3
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
    before = state_of(trainer)
    report = autobatch.tune(trainer, **IN_CODE, max_trials=3, run_dir=tmp_path / "run")
    assert_untouched(trainer, before)
    assert (report.task, report.direction, report.baseline_is_users) == (
        "BertForSequenceClassification",
        "maximize",
        True,
    )
    assert (report.baseline_plan.plan.batch_size, report.baseline_plan.lr) == (4, 1e-3)
    assert any("no model_init: each trial starts from a copy of its weights" in told for told in report.warnings)
    assert report.score is None or report.baseline is None or report.score.mean >= report.baseline.mean

    apply(report, trainer)
    assert trainer.args.learning_rate == report.config.lr
    trainer.args.max_steps = 2
    trainer.pop_callback(transformers.PrinterCallback)
    trainer.train()
    assert trainer.state.train_batch_size == report.config.plan.batch_size


def test_a_model_is_measured_without_data_to_score_it_on(ready_python: None, tmp_path: Path) -> None:
    trainer = language_model(tmp_path, of={"eval_dataset": None})
    before = state_of(trainer)
    found = autobatch.find_max_batch(trainer, device="cpu", max_batch_size=32)
    assert_untouched(trainer, before)
    assert (found, found.limited_by) == (32, "ceiling")
    with pytest.raises(TaskError, match=r"the Trainer has no eval_dataset, .*: pass eval_dataset=\. `find_max_batch`"):
        autobatch.tune(trainer, budget="1m")
