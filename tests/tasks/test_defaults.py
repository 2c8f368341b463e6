"""The default loss and metric are of the same labels, and read what transformers' models answer."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autobatch.errors import TaskError
from autobatch.tasks.defaults import accuracy, cross_entropy_loss, labels_counted, right_and_counted

from ..helpers.transformers_like import CausalLMOutputWithPast, Images, Language, Output, Tokens, sentences

F = nn.functional


def scores_for(labels: Tensor, classes: int) -> Tensor:
    """Of shape (B, classes, ...), all of the labels that count right."""
    return F.one_hot(labels.clamp(min=0), classes).movedim(-1, 1).float() * 9


@given(labels=st.lists(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_ignored_labels_count_for_nothing_in_loss_and_metric(labels: list[list[int]]) -> None:
    y = torch.tensor(labels)
    scores = scores_for(y, 3).requires_grad_()
    counts = int((y != -100).sum())
    right, counted = right_and_counted(nn.Identity(), (scores, y))
    assert right.tolist() == counted.tolist() == (y != -100).sum(dim=1).tolist()
    assert labels_counted(nn.Identity(), (scores, y)) == counts
    loss = cross_entropy_loss(nn.Identity(), (scores, y))
    loss.backward()
    assert scores.grad is not None
    if counts:
        assert torch.equal(loss, F.cross_entropy(scores, y))
    else:
        assert float(loss.detach()) == 0
        assert not scores.grad.any()


def test_a_sample_without_a_label_has_no_score_and_the_others_their_own() -> None:
    labels = torch.tensor([[0, 1, -100, -100], [-100] * 4, [0, 1, 1, 0]])
    scores = scores_for(torch.tensor([[0, 0, 0, 0], [0] * 4, [0, 1, 1, 1]]), 2)
    assert accuracy(nn.Identity(), (scores, labels)).nan_to_num(-1).tolist() == [0.5, -1, 0.75]
    assert [part.tolist() for part in right_and_counted(nn.Identity(), (scores, labels))] == [[1, 0, 3], [2, 0, 4]]


def test_labels_of_pixels_and_of_samples_are_ignored_too() -> None:
    pixels = torch.tensor([[[0, 2], [-100, 1]], [[-100, -100], [2, 2]]])
    assert accuracy(nn.Identity(), (scores_for(pixels, 3), pixels)).tolist() == [1, 1]
    classes = torch.tensor([1, -100, 0])
    assert accuracy(nn.Identity(), (scores_for(classes, 2), classes)).nan_to_num(-1).tolist() == [1, -1, 1]


def test_a_classifier_of_images_is_asked_by_keyword_and_its_own_loss_taken() -> None:
    model = Images()
    batch = {"pixel_values": torch.randn(4, 3, 2, 2), "labels": torch.tensor([0, 1, 2, 2])}
    output = model(**batch)
    torch.testing.assert_close(cross_entropy_loss(model, batch), output.loss)
    expected = (output.logits.argmax(1) == batch["labels"]).float()
    assert torch.equal(accuracy(model, batch), expected)
    assert labels_counted(model, batch) == 4
    # A pair is understood as well: the model computes no loss then.
    pair = (batch["pixel_values"], batch["labels"])
    torch.testing.assert_close(cross_entropy_loss(model, pair), output.loss)
    assert torch.equal(accuracy(model, pair), expected)


@pytest.mark.parametrize("kind", [dict, SimpleNamespace, Output])
def test_an_answer_may_be_any_object_with_a_loss_and_logits(kind: Any) -> None:
    model, batch = Tokens(output=kind), sentences(5)
    logits = model.body(batch["input_ids"])
    torch.testing.assert_close(
        cross_entropy_loss(model, batch), F.cross_entropy(logits.transpose(1, 2), batch["labels"])
    )
    right = (logits.argmax(-1) == batch["labels"]).sum(1)
    torch.testing.assert_close(accuracy(model, batch), right / (batch["labels"] != -100).sum(1))


def test_tuples_are_a_loss_and_scores() -> None:
    class Tuples(Tokens):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            return tuple(super().forward(input_ids, labels).values())

    model, batch = Tuples(), sentences(4)
    torch.testing.assert_close(cross_entropy_loss(model, batch), model(**batch)[0])
    assert accuracy(model, batch).shape == (4,)


def test_a_model_that_takes_no_labels_is_given_none() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, pixel_values: Tensor) -> Tensor:
            scores: Tensor = self.head(pixel_values.flatten(1))
            return scores

    model = Plain()
    batch = {"pixel_values": torch.randn(4, 3, 2, 2), "labels": torch.tensor([0, 1, 2, -100])}
    expected = F.cross_entropy(model(batch["pixel_values"]), batch["labels"])
    torch.testing.assert_close(cross_entropy_loss(model, batch), expected)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(cross_entropy_loss(compiled, batch), expected)  # type: ignore[arg-type]
    assert labels_counted(model, batch) == 3


def test_classes_of_tokens_are_last_and_their_padding_does_not_count() -> None:
    model, batch = Tokens(), sentences(6)
    labels = batch["labels"]
    predicted = model(**batch).logits.argmax(-1)
    right, counted = right_and_counted(model, batch)
    assert right.tolist() == ((predicted == labels) & (labels != -100)).sum(1).tolist()
    assert counted.sum() == labels_counted(model, batch) == (labels != -100).sum()


@pytest.mark.parametrize("output", [CausalLMOutputWithPast, Output, SimpleNamespace])
def test_a_language_models_scores_are_of_the_next_token(output: Any) -> None:
    torch.manual_seed(0)
    model, batch = Language(output), sentences(6)
    labels = batch["labels"]
    assert torch.equal(cross_entropy_loss(model, batch), model(**batch).loss)
    predicted = model(**batch).logits.argmax(-1)[:, :-1]
    right, counted = right_and_counted(model, batch)
    assert right.tolist() == (predicted == labels[:, 1:]).sum(1).tolist()
    assert counted.sum() == labels_counted(model, batch) == (labels[:, 1:] != -100).sum()


def test_a_perfect_language_model_scores_one() -> None:
    class Counting(nn.Module):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
            logits = F.one_hot((input_ids + 1) % 11, 11) * 20.0
            assert labels is not None
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1))
            return Output(loss=loss, logits=logits)

    ids = torch.arange(12).reshape(2, 6) % 11
    labels = ids.clone()
    labels[1, 3:] = -100
    assert accuracy(Counting(), {"input_ids": ids, "labels": labels}).tolist() == [1, 1]


def test_a_loss_with_more_in_it_is_told_by_the_name_of_the_output_or_not_at_all() -> None:
    torch.manual_seed(0)
    batch = sentences(6)
    assert right_and_counted(Language(auxiliary=0.3), batch)[1].sum() == (batch["labels"][:, 1:] != -100).sum()
    with pytest.raises(TaskError, match=r"of the same label or of the next one: .*; define metric\(model, batch\)"):
        accuracy(Language(Output, auxiliary=0.3), batch)


def test_scores_that_are_all_equal_decide_nothing_for_later_batches() -> None:
    torch.manual_seed(0)
    model, batch = Language(Output), sentences(6)
    weights = model.state_dict()
    trained = {name: value.clone() for name, value in weights.items()}
    for value in weights.values():
        value.zero_()
    cross_entropy_loss(model, batch)
    model.load_state_dict(trained)
    cross_entropy_loss(model, batch)
    assert labels_counted(model, batch) == (batch["labels"][:, 1:] != -100).sum()


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (Images(1), torch.rand(4), r"labels of float32 \(4,\) for scores of \(4, 1\): define metric"),
        (Images(3), torch.ones(4, 3), r"labels of float32 \(4, 3\) for scores of \(4, 3\): define metric"),
    ],
    ids=["regression", "several classes at once"],
)
def test_labels_that_are_no_classes_have_a_loss_and_need_a_metric(model: Any, labels: Tensor, message: str) -> None:
    batch = {"pixel_values": torch.randn(4, 3, 2, 2), "labels": labels}
    assert cross_entropy_loss(model, batch).ndim == 0
    with pytest.raises(TaskError, match=message):
        accuracy(model, batch)


def test_a_mapping_that_the_model_cannot_be_called_with_says_so() -> None:
    batch = {"x": torch.zeros(2, 3), "labels": torch.zeros(2)}
    with pytest.raises(
        TaskError, match=r"found a dict of 2, and the model cannot be called with them \(.*'pixel_values'\)"
    ):
        cross_entropy_loss(Images(), batch)


def test_a_mapping_without_labels_needs_a_metric() -> None:
    class Answering(nn.Module):
        def forward(self, x: Tensor, start: Tensor) -> Output:
            return Output(loss=F.cross_entropy(x, start), logits=x)

    batch = {"x": torch.randn(4, 5), "start": torch.tensor([0, 1, 2, 3])}
    torch.testing.assert_close(cross_entropy_loss(Answering(), batch), F.cross_entropy(batch["x"], batch["start"]))
    assert labels_counted(Answering(), batch) is None
    with pytest.raises(TaskError, match=r"`labels` in the batch; define metric\(model, batch\)"):
        accuracy(Answering(), batch)


DEFAULTS = {"loss": cross_entropy_loss, "metric": accuracy}


@pytest.mark.parametrize("used_by", DEFAULTS)
@pytest.mark.parametrize(
    ("scores", "labels", "why", "line", "mended"),
    [
        ((2, 7, 3), (2, 7), "the classes come last", "scores.transpose(1, 2)", (2, 3, 7)),
        ((1, 7, 3), (1, 7), "the classes come last", "scores.transpose(1, 2)", (1, 3, 7)),
        ((2, 4, 5, 3), (2, 4, 5), "the classes come last", "scores.movedim(-1, 1)", (2, 3, 4, 5)),
        ((2, 4, 5, 6, 3), (2, 4, 5, 6), "the classes come last", "scores.movedim(-1, 1)", (2, 3, 4, 5, 6)),
        ((7, 2, 3), (2, 7), "the batch comes second", "scores.permute(1, 2, 0)", (2, 3, 7)),
        ((14, 3), (2, 7), "flattens the batch", "scores.unflatten(0, (-1, 7)).movedim(-1, 1)", (2, 3, 7)),
        ((40, 3), (2, 4, 5), "flattens the batch", "scores.unflatten(0, (-1, 4, 5)).movedim(-1, 1)", (2, 3, 4, 5)),
    ],
)
def test_scores_that_are_laid_out_otherwise_are_told_the_line_that_mends_them(
    used_by: str, scores: Any, labels: Any, why: str, line: str, mended: Any
) -> None:
    given, y = torch.randn(scores), torch.randint(0, 3, labels)
    found = re.escape(f"scores of {scores}; found labels of {labels}: ")
    told = rf"the default {used_by} .*{found}.*{why}.* return {re.escape(line)}, or define {used_by}\(model, batch\)"
    with pytest.raises(TaskError, match=told):
        DEFAULTS[used_by](nn.Identity(), (given, y))
    moved = eval(line, {"scores": given})  # as somebody would write it
    assert moved.shape == mended
    DEFAULTS[used_by](nn.Identity(), (moved, y))


@pytest.mark.parametrize("used_by", DEFAULTS)
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (
            (3, 2),
            torch.zeros(3, 1).long(),
            r"in shape \(3,\) for scores of \(3, 2\); found .* \(3, 1\): .*squeeze\(0\)",
        ),
        ((3, 2, 4, 4), torch.zeros(3, 1, 4, 4).long(), r"without the dimension of 1, by `\.squeeze\(0\)`"),
        ((3, 2, 4), torch.zeros(12).long(), r"the labels are flattened, so let collate stack them"),
        ((3, 2, 4, 4), torch.zeros(3, 2).long(), r"labels of \(3, 2\): let the dataset give them in that shape"),
        ((3, 2), torch.zeros(3).int(), r"labels of int32 \(3,\): let the dataset give them as `\.long\(\)`$"),
        ((3, 2), torch.zeros(3), r"labels of float32 \(3,\): .*`\.long\(\)`; where they are values and not classes"),
        ((3, 2), torch.zeros(3, 2).long(), r"labels of int64 in the shape of the scores, \(3, 2\): .*`\.float\(\)`"),
        (
            (3, 1),
            torch.zeros(3, 1),
            r"two classes or more; found scores of \(3, 1\): .*binary_cross_entropy_with_logits",
        ),
        ((3, 1), torch.zeros(3).long(), r"two classes or more; found scores of \(3, 1\): .*mse_loss"),
    ],
)
def test_labels_that_do_not_fit_the_scores_are_told_why(
    used_by: str, scores: Any, labels: Tensor, message: str
) -> None:
    with pytest.raises(TaskError, match=rf"^the default {used_by} needs .*{message}"):
        DEFAULTS[used_by](nn.Identity(), (torch.randn(scores), labels))


def test_labels_in_a_list_are_for_collate_to_put_together() -> None:
    with pytest.raises(TaskError, match=r"in one tensor; found a list: make it in collate"):
        cross_entropy_loss(nn.Identity(), (torch.randn(2, 3), [0, 1]))


class Named(nn.Module):
    """Takes its input by keyword, and no labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        return scores


def test_a_model_is_called_with_what_it_takes_though_mappings_differ() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x if mask is None else x * mask

    model, x, labels = Optional(), torch.randn(2, 3), torch.tensor([0, 2])
    for batch in ({"x": x, "labels": labels}, {"x": x, "mask": x, "labels": labels}, {"x": x, "labels": labels}):
        expected = F.cross_entropy(x * batch.get("mask", torch.ones(())), labels)
        torch.testing.assert_close(cross_entropy_loss(model, batch), expected)
    with pytest.raises(TaskError, match=r"cannot be called with them \(.*'y'"):
        cross_entropy_loss(model, {"x": x, "y": x, "labels": labels})


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_wrapped_model_is_called_as_the_one_inside(is_compiled: bool) -> None:
    batch = {"x": torch.ones(4, 3), "labels": torch.tensor([0, 1, 0, 1])}
    model = Named()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        wrapped: Any = DistributedDataParallel(model)
        if is_compiled:
            wrapped = torch.compile(wrapped, backend="eager")
        assert torch.equal(cross_entropy_loss(wrapped, batch), cross_entropy_loss(model, batch))
    finally:
        dist.destroy_process_group()
