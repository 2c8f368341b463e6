"""Gradients of every layout have a norm, a clip and a check, and the tasks that give them train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobatch import Plan, Task
from autobatch.core.plan import Config
from autobatch.core.segment import TrainSegment
from autobatch.devices import open_device
from autobatch.errors import TaskError
from autobatch.worker.check import check_task
from autobatch.worker.gradients import clip_norm, gradients_of, total_norm
from autobatch.worker.torch_runner import TorchRunner

CPU = torch.device("cpu")


def codes(size: int = 60) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(50, (size, 3), generator=generator)
    return TensorDataset(x, x[:, 0] % 2)


class Bag(nn.Module):
    """The model of `sparse.py`; an `Embedding` in place of the bag, a dense head, or both."""

    def __init__(self, *, bag: bool = True, sparse: bool = True, head: bool = False) -> None:
        super().__init__()
        layer = nn.EmbeddingBag if bag else nn.Embedding
        self.words = layer(50, 2, sparse=sparse)
        self.head: nn.Module = nn.Linear(2, 2) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found = self.words(x)
        scores: Tensor = self.head(found.mean(dim=1) if found.ndim == 3 else found)
        return scores


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr)


def task(**changes: Any) -> Task:
    made: dict[str, Any] = {"model": Bag, "train_data": codes, "val_data": codes, "optimizer": sgd}
    return Task(**(made | changes))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), bag=st.booleans(), head=st.booleans(), clip=st.sampled_from([0.01, 0.3, 100.0]))
def test_a_sparse_gradient_has_the_norm_and_the_clip_of_the_dense_one(
    seed: int, bag: bool, head: bool, clip: float
) -> None:
    x = torch.randint(50, (8, 3), generator=torch.Generator().manual_seed(seed))  # rows that come twice
    norms, clipped = [], []
    for sparse in (True, False):
        torch.manual_seed(seed)
        model = Bag(bag=bag, sparse=sparse, head=head)
        model(x).square().sum().backward()
        gradient = model.words.weight.grad
        assert gradient is not None
        assert (gradient.layout is torch.sparse_coo) == sparse
        norms.append(total_norm(gradients_of(model.parameters())))
        torch.testing.assert_close(clip_norm(model.parameters(), clip), norms[-1])
        clipped.append([gradient.to_dense() for gradient in gradients_of(model.parameters())])
    torch.testing.assert_close(*norms)
    torch.testing.assert_close(*clipped)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch, where Adagrad makes a sparse tensor
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_grad_norm": 0.1},
        {"model": lambda: Bag(bag=False)},
        {"model": lambda: Bag(bag=False, head=True), "clip_grad_norm": 1.0},
        {"optimizer": lambda model, lr: torch.optim.SparseAdam(model.parameters(), lr), "clip_grad_norm": 1.0},
        {"optimizer": lambda model, lr: torch.optim.Adagrad(model.parameters(), lr)},
        {"precision": "fp16"},
        {"precision": "bf16", "clip_grad_norm": 1.0},
    ],
)
def test_sparse_layers_are_checked_probed_and_trained(changes: dict[str, Any], tmp_path: Path) -> None:
    runner = TorchRunner(task(**changes), open_device("cpu"), checkpoints=tmp_path)
    precision = changes.get("precision", "fp32")
    facts = runner.facts()
    assert not any("gradient" in warning for warning in facts.warnings)
    assert runner.probe(Plan(batch_size=4, accumulation_steps=2, precision=precision)).outcome == "ok"
    config = Config(plan=Plan(batch_size=4, accumulation_steps=2, precision=precision), lr=0.1)
    first = TrainSegment(trial=0, config=config, seed=0, start_step=0, until_step=4, total_steps=8, eval_batch_size=10)
    result = runner.advance(first)
    assert result.outcome == "ok"
    assert result.grad_norms is not None
    assert result.grad_norms.median > 0
    later = TrainSegment(trial=0, config=config, seed=0, start_step=4, until_step=8, total_steps=8, eval_batch_size=10)
    assert runner.advance(later).outcome == "ok"
    runner.close()


class Own(torch.optim.Optimizer):
    """One that knows dense gradients alone, and does not look."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign().add_(parameter), alpha=group["lr"])


ADAM = torch.optim.AdamW


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("optimizer", "head"),
    [
        (lambda parameters, lr: ADAM(parameters, lr), True),
        (lambda parameters, lr: ADAM(parameters, lr), False),
        (lambda parameters, lr: torch.optim.RMSprop(parameters, lr), True),
        (lambda parameters, lr: torch.optim.SGD(parameters, lr, weight_decay=0.1), False),
        (lambda parameters, lr: torch.optim.Adagrad(parameters, lr, weight_decay=0.1), True),
        (lambda parameters, lr: torch.optim.SparseAdam(list(parameters), lr), True),
        (Own, True),
    ],
)
def test_an_optimizer_that_takes_no_such_gradient_is_told_what_does(optimizer: Any, head: bool) -> None:
    def check(optimizer: Any, **model: bool) -> tuple[str, ...]:
        made = task(model=lambda: Bag(head=head, **model), optimizer=lambda m, lr: optimizer(m.parameters(), lr))
        return check_task(made, CPU, 32).warnings

    with pytest.raises(TaskError) as caught:
        check(optimizer)
    told = str(caught.value)
    assert "sparse gradients (words.weight)" in told
    assert f"return SGD{' or Adagrad' if head else ', Adagrad or SparseAdam'}, without weight_decay" in told
    assert "leave sparse=True out" in told
    assert "step()" not in told.splitlines()[-1]
    for remedy in (torch.optim.SGD, torch.optim.Adagrad, *(() if head else (torch.optim.SparseAdam,))):
        check(remedy)
    check(ADAM, sparse=False)


def test_an_optimizer_for_sparse_gradients_alone_has_its_own_remedy() -> None:
    made = task(model=lambda: Bag(sparse=False), optimizer=lambda m, lr: torch.optim.SparseAdam(m.parameters(), lr))
    with pytest.raises(TaskError, match=r"does not support dense gradients, please consider Adam instead$"):
        check_task(made, CPU, 32)


def test_the_clip_shortens_the_step_of_a_sparse_layer() -> None:
    found = []
    for clip in (None, 1e-3):
        made = task(model=lambda: Bag(bag=False), clip_grad_norm=clip)
        runner = TorchRunner(made, open_device("cpu"))
        trainer = runner._trainer(Config(plan=Plan(batch_size=8), lr=1.0), seed=0, total_steps=4)
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.step(iter([[x[:8] for x in codes().tensors]]))
        found.append(
            sum(float((p.detach() - q).norm()) for p, q in zip(trainer.model.parameters(), before, strict=True))
        )
        runner.close()
    assert found[1] == pytest.approx(1e-3, rel=1e-3)
    assert found[0] > 10 * found[1]


def test_a_batch_that_counts_for_nothing_is_taken_where_all_layers_are_sparse() -> None:
    runner = TorchRunner(task(weight=lambda batch: batch[1].sum()), open_device("cpu"))
    config = Config(plan=Plan(batch_size=4, accumulation_steps=2), lr=0.1)
    x = torch.arange(12).reshape(4, 3)
    nothing, all_of_it = [x, torch.zeros(4, dtype=torch.long)], [x, torch.ones(4, dtype=torch.long)]
    found = []
    for batches in ([nothing, all_of_it], [all_of_it, nothing]):
        trainer = runner._trainer(config, seed=0, total_steps=4)
        trainer.step(iter(batches))
        found.append(trainer.model.get_parameter("words.weight").detach().clone())
    assert torch.equal(*found)
    runner.close()


def test_a_sparse_gradient_that_is_not_finite_is_told() -> None:
    class Broken(Bag):
        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.words(x)
            return scores + (scores - scores.detach()).abs().sqrt()  # its derivative at 0 is infinite

    with pytest.raises(TaskError, match=r"gradients of loss\(model, batch\) must be finite.*words.weight"):
        check_task(task(model=Broken), CPU, 4)


def test_an_optimizer_that_takes_no_sparse_gradient_says_so_in_its_own_words() -> None:
    adamw = {"optimizer": lambda model, lr: torch.optim.AdamW(model.parameters(), lr)}
    with pytest.raises(TaskError, match="does not support sparse gradients"):
        check_task(task(**adamw), CPU, 4)
