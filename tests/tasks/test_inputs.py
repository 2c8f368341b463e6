"""A live model becomes a task: its input is given, found or assumed, and what was assumed is said."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from autobatch.errors import TaskError
from autobatch.tasks import worst_case
from autobatch.tasks.data import SampleDataset, collate_samples, to_device
from autobatch.tasks.inputs import pickle_task, task_for_model, unpickle_task
from autobatch.tasks.task import Task, load_task

from ..helpers.ready_python import run

pytestmark = pytest.mark.usefixtures("ready_python")

TASKS = Path(__file__).parents[1] / "task_files"


def _sample(task: Task) -> Any:
    assert task.train_data is not None
    return task.train_data()[0]


def _loss(task: Task, batch_size: int = 2) -> Tensor:
    """The loss of a batch, which must reach every parameter of the model."""
    model = task.model()
    model.zero_grad()
    loss = task.loss(model, to_device(collate_samples(task, [_sample(task)] * batch_size), torch.device("cpu")))
    loss.backward()
    return loss


class _Convolutions(nn.Sequential):
    def __init__(self, convolution: type[nn.Module], pool: type[nn.Module], channels: int) -> None:
        super().__init__(convolution(channels, 4, 7, stride=4), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 2))


class _Tagger(nn.Module):
    def __init__(self, positions: int | None = None) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)
        self.position_embeddings = None if positions is None else nn.Embedding(positions, 8, padding_idx=1)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        hidden = self.tokens(ids)
        if self.position_embeddings is not None:
            hidden = hidden + self.position_embeddings(torch.arange(2, 2 + ids.shape[1]))
        return {"logits": self.head(hidden), "ids": ids}


class _Projected(nn.Module):
    """A linear layer into a recurrent one, whose input is a sequence though the first layer alone does not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(self.into(x))[0]
        return out


@pytest.mark.parametrize(
    ("model", "shape", "assumed"),
    [
        (nn.Sequential(nn.Linear(12, 3)), (12,), r"a sample is 12 numbers, for the first layer, Linear\(12"),
        (_Tagger(), (512,), r"a sequence is 512 tokens, for the first layer, Embedding\(50"),
        (_Tagger(66), (64,), r"a sequence is 64 tokens"),
        (_Convolutions(nn.Conv1d, nn.AdaptiveAvgPool1d, 2), (2, 512), r"a sequence is 2 x 512"),
        (_Convolutions(nn.Conv2d, nn.AdaptiveAvgPool2d, 3), (3, 224, 224), r"an image is 3 x 224 x 224"),
        (_Convolutions(nn.Conv3d, nn.AdaptiveAvgPool3d, 1), (1, 16, 112, 112), r"a clip is 1 x 16 x 112 x 112"),
        (nn.LSTM(6, 2, batch_first=True), (512, 6), r"a sequence is 512 x 6, for the first layer, LSTM$"),
        (nn.GRU(6, 2), (512, 6), r"for the first layer, GRU, time first"),
        (_Projected(), (512, 5), r"a sequence is 512 x 5, for the first layer, Linear, and those after it"),
    ],
    ids=["linear", "embedding", "positions", "conv1d", "conv2d", "conv3d", "lstm", "gru", "projected"],
)
def test_the_first_layer_says_what_a_sample_is(model: nn.Module, shape: tuple[int, ...], assumed: str) -> None:
    task, told = task_for_model(model)
    assert tuple(_sample(task).shape) == shape
    assert torch.isfinite(_loss(task))
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(AssertionError, match=assumed):
        raise AssertionError(told[0])
    assert told[1:] == ("the loss is the model's own, or else the mean of its output", "the optimizer is AdamW")


def test_a_recurrent_model_with_time_first_gets_its_batch_in_the_second_dimension() -> None:
    task, _ = task_for_model(nn.GRU(6, 2))
    assert collate_samples(task, [_sample(task)] * 3).shape == (512, 3, 6)


def test_the_samples_numbers_have_the_models_type() -> None:
    task, _ = task_for_model(nn.Linear(4, 2).to(torch.bfloat16))
    assert _sample(task).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "model",
    [nn.MultiheadAttention(8, 2), nn.Bilinear(2, 2, 2), nn.ReLU()],
    ids=["attention", "unknown", "nothing"],
)
def test_what_cannot_be_known_is_asked_for(model: nn.Module) -> None:
    with pytest.raises(TaskError, match=r"is not known and cannot be assumed: pass sample=, one sample"):
        task_for_model(model)


def test_a_layer_that_waits_for_its_input_does_not_say_what_it_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls lazy modules a new feature
        model = nn.LazyConv2d(4, 3)
    with pytest.raises(TaskError, match="cannot be assumed"):
        task_for_model(model)


def test_lightnings_example_loses_its_batch_dimension() -> None:
    model = nn.Bilinear(3, 4, 2)
    model.example_input_array = (torch.zeros(7, 3), torch.zeros(7, 4))  # type: ignore[assignment]
    task, told = task_for_model(model)
    assert [tuple(part.shape) for part in _sample(task)] == [(3,), (4,)]
    assert told[0] == "samples look like the model's example_input_array"
    assert torch.isfinite(_loss(task))


class TinyForCausalLM(nn.Module):
    """What of a transformers model can be seen from outside."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, 4)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.wte(input_ids)
        return SimpleNamespace(logits=logits, loss=None if labels is None else logits.square().sum())


@pytest.mark.parametrize(
    ("config", "length", "assumed"),
    [
        ({"max_position_embeddings": 96}, 96, "a sequence is 96 tokens, the longest that the model's config admits"),
        ({"n_positions": 40}, 40, "a sequence is 40 tokens, the longest that the model's config admits"),
        ({}, 512, "a sequence is 512 tokens"),
    ],
)
def test_a_transformers_config_gives_the_longest_sequence(config: dict[str, int], length: int, assumed: str) -> None:
    task, told = task_for_model(TinyForCausalLM(SimpleNamespace(vocab_size=30, **config)))
    sample = _sample(task)
    assert {key: tuple(value.shape) for key, value in sample.items()} == {"input_ids": (length,), "labels": (length,)}
    assert int(sample["input_ids"].max()) < 30
    assert told[0] == assumed
    own = task.loss(task.model(), {key: value[None] for key, value in sample.items()})
    torch.testing.assert_close(own, task.model().wte(sample["input_ids"]).square().sum())  # type: ignore[operator]


def test_an_image_models_config_gives_its_image() -> None:
    class Vision(nn.Module):
        main_input_name = "pixel_values"
        config = SimpleNamespace(image_size=32, num_channels=1)

        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 2, 8, 8)

        def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
            return (self.patch(pixel_values),)

    task, told = task_for_model(Vision())
    assert tuple(_sample(task)["pixel_values"].shape) == (1, 32, 32)
    assert told[0] == "an image is 1 x 32 x 32, from the model's config"
    assert torch.isfinite(_loss(task))


def test_a_timm_models_configuration_gives_its_image() -> None:
    model = _Convolutions(nn.Conv2d, nn.AdaptiveAvgPool2d, 3)
    model.pretrained_cfg = {"input_size": (3, 64, 48)}  # type: ignore[assignment]
    task, told = task_for_model(model)
    assert tuple(_sample(task).shape) == (3, 64, 48)
    assert told[0] == "an image is 3 x 64 x 48, from the model's pretrained_cfg"


# -- samples that are given ----------------------------------------------------------------------------------


def test_a_given_sample_is_taken_as_it_is() -> None:
    model = nn.Linear(4, 2)
    sample = torch.randn(4, requires_grad=True)
    task, told = task_for_model(model, sample)
    assert torch.equal(_sample(task), sample)
    assert not _sample(task).requires_grad
    torch.testing.assert_close(_loss(task), model(sample).mean())
    assert not [sentence for sentence in told if "sample" in sentence]


def test_of_a_pair_only_what_forward_needs_is_its_input() -> None:
    task, told = task_for_model(nn.Linear(4, 2), (torch.randn(4), torch.tensor(1)))
    assert torch.isfinite(_loss(task))
    assert "the first 1 of the sample's 2 parts are the model's input" in told
    task, told = task_for_model(nn.Bilinear(3, 4, 2), (torch.zeros(3), torch.zeros(4)))
    assert torch.isfinite(_loss(task))
    assert not [sentence for sentence in told if "parts" in sentence]


def test_a_dict_is_passed_by_name() -> None:
    task, _ = task_for_model(nn.Bilinear(3, 4, 2), {"input2": torch.zeros(4), "input1": torch.zeros(3)})
    assert torch.isfinite(_loss(task))


def test_a_dataset_is_known_by_its_type_and_its_largest_sample_stands_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ragged(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return torch.zeros(5 + index % 7, 4), torch.tensor(0)

    data = Ragged(torch.zeros(300))
    task, told = task_for_model(nn.Linear(4, 2), data)
    assert tuple(_sample(task)[0].shape) == (11, 4)
    assert not [sentence for sentence in told if "largest" in sentence]  # all were looked at
    monkeypatch.setattr(worst_case, "_SCAN_S", -1.0)
    _, told = task_for_model(nn.Linear(4, 2), data)
    assert told[0] == "all samples have the size of the 1 of 300 that were looked at"
    monkeypatch.undo()
    task, told = task_for_model(nn.Linear(4, 2), TensorDataset(torch.ones(9, 4)))
    assert torch.equal(_sample(task)[0], torch.ones(4))
    assert not [sentence for sentence in told if "largest" in sentence]


def test_a_loader_brings_its_collate_and_an_iterable_its_first_samples() -> None:
    def collate(samples: list[Any]) -> Tensor:
        return torch.stack([x for (x,) in samples]) + 1

    loader = DataLoader(TensorDataset(torch.zeros(9, 4)), batch_size=3, collate_fn=collate)
    task, _ = task_for_model(nn.Linear(4, 2), loader)
    assert torch.equal(collate_samples(task, [_sample(task)] * 2), torch.ones(2, 4))

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            while True:
                yield torch.zeros(4)

    assert _sample(task_for_model(nn.Linear(4, 2), Stream())[0]).shape == (4,)


def test_the_tasks_data_is_as_large_as_what_was_given() -> None:
    def size(**given: Any) -> int:
        task, _ = task_for_model(nn.Linear(4, 2), **given)
        assert task.train_data is not None
        assert task.baseline_config()[0].plan.batch_size == min(32, len(task.train_data()))
        return len(task.train_data())

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter([torch.zeros(4)] * 70)

    many = TensorDataset(torch.zeros(70, 4))
    assert size(data=many) == size(sample=many) == size(data=DataLoader(many, batch_size=8)) == 70
    assert size(data=TensorDataset(torch.zeros(9, 4))) == 9
    assert size(data=Stream()) == size(sample=torch.zeros(4)) == size() > 131_072  # nobody knows: any size is tried


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": "text"}, "sample must be one sample: a tensor, .* found str"),
        ({"sample": torch.zeros(4), "data": [1]}, "two ways to say one thing"),
        ({"sample": TensorDataset(torch.zeros(1)), "data": [1]}, "two ways to say one thing"),
        ({"data": []}, "data must hold at least one sample; the list is empty"),
        ({"data": 3}, "data must be a Dataset or a DataLoader; found int"),
        ({"loss": nn.MSELoss()}, r"loss must be a function loss\(model, batch\); found the module MSELoss"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, "found an instance of SGD, which is bound"),
    ],
)
def test_arguments_that_cannot_be_used_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task_for_model(nn.Linear(4, 2), **arguments)


def test_a_batch_in_place_of_a_sample_is_told() -> None:
    model = _Convolutions(nn.Conv2d, nn.AdaptiveAvgPool2d, 3)
    with pytest.raises(
        TaskError, match=r"without a batch dimension.* found 4, shape \(8, 3, 32, 32\): pass one element"
    ):
        task_for_model(model, torch.zeros(8, 3, 32, 32))
    with pytest.raises(TaskError, match=r"model must be a torch\.nn\.Module; found str"):
        task_for_model("model.py")  # type: ignore[arg-type]


def test_an_optimizer_may_be_a_class_or_a_function() -> None:
    model = nn.Linear(4, 2)
    for given in (torch.optim.SGD, lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr)):
        task, told = task_for_model(model, optimizer=given)
        made = task.optimizer(model, 0.25)
        assert isinstance(made, torch.optim.SGD)
        assert made.param_groups[0]["lr"] == 0.25
        assert not [sentence for sentence in told if "optimizer" in sentence]


def test_an_output_without_a_number_that_can_be_learned_from_is_told() -> None:
    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(dim=1)

    task, _ = task_for_model(Counts(4, 2))
    with pytest.raises(TaskError, match=r"output \(Tensor\) must hold a floating tensor; pass loss="):
        _loss(task)


def test_a_sample_dataset_has_a_length_and_an_end() -> None:
    data = SampleDataset("x", length=3)
    assert list(data) == ["x", "x", "x"]  # type: ignore[call-overload]  # the old protocol: up to the IndexError
    assert len(data) == 3


# -- to another process --------------------------------------------------------------------------------------


def test_a_live_model_is_handed_out_as_it_is_and_copied_once_it_was_pickled() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight  # tied weights stay tied
    task, _ = task_for_model(model)
    assert task.model() is model
    read = unpickle_task(pickle_task(task))
    first, second = read.model(), read.model()
    assert first is not second
    assert isinstance(first, nn.Sequential)
    assert first[1].weight is first[0].weight
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), model.parameters(), strict=True))
    torch.testing.assert_close(_loss(read), _loss(task))


def test_a_tasks_own_functions_travel_with_it() -> None:
    width = 5
    read = unpickle_task(pickle_task(Task(model=lambda: nn.Linear(width, 2), train_data=list, val_data=list)))
    assert read.model().in_features == 5
    assert unpickle_task(pickle_task(load_task(TASKS / "lstm.py"))).name == "lstm"


def test_a_model_defined_in_a_script_reaches_a_process_that_has_not_that_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from torch import nn\n"
        "from autobatch.tasks.inputs import pickle_task, task_for_model\n"
        "class Net(nn.Linear): pass\n"
        "open('task', 'wb').write(pickle_task(task_for_model(Net(6, 2))[0]))\n"
    )
    root = TASKS.parents[1]
    done = run([sys.executable, script], cwd=tmp_path, env={"PYTHONPATH": str(root)}, timeout=600)
    assert done.returncode == 0, done.stderr
    task = unpickle_task((tmp_path / "task").read_bytes())
    assert [task.name, task.model().in_features] == ["Net", 6]


def test_bytes_that_hold_no_task_are_told() -> None:
    with pytest.raises(TaskError, match="unpickling the task failed"):
        unpickle_task(b"not a task")
