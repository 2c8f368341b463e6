"""oom_safe cuts samples: never time or channels, and nothing that it is not sure of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autobatch import oom_safe
from autobatch.errors import DoesNotFit, TaskError

nested = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
Loss = Callable[[nn.Module, Any], Tensor]


def chunks(values: Any, size: int) -> list[list[Any]]:
    return [list(values[start : start + size]) for start in range(0, len(values), size)]


def square(values: Tensor) -> Tensor:
    mean: Tensor = values.pow(2).mean()
    return mean


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def plain(model: nn.Module, loss: Loss, batch: Any) -> tuple[Tensor, list[Tensor]]:
    model = copy.deepcopy(model)
    value = loss(model, batch)
    value.backward()
    return value.detach(), gradients(model)


def guarded(model: nn.Module, loss: Loss, batch: Any, size: int, **options: Any) -> tuple[Tensor, list[Tensor], int]:
    """The mean, the gradients and the number of micro-batches."""
    model = copy.deepcopy(model)
    backward = oom_safe(model, loss, micro_batch_size=size, **options)
    return backward(batch), gradients(model), backward.accumulation_steps


def is_split_right(model: nn.Module, loss: Loss, batch: Any, count: int, **options: Any) -> None:
    expected = plain(model, loss, batch)
    for size in range(1, count + 1):
        mean, found, steps = guarded(model, loss, batch, size, **options)
        torch.testing.assert_close((mean, found), expected)
        assert steps == -(-count // size)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(width: int = 3, out: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(width, out).double()


# -- lists with an entry for each sample


def peaks(model: nn.Module, images: list[Tensor]) -> Tensor:
    """The mean over images of what depends on all of an image's channels."""
    values = [(model(i.mean((1, 2))[:3]).sum() - i.max()) ** 2 for i in images]
    return torch.stack(values).mean()


@given(
    sides=st.lists(st.integers(2, 5), min_size=2, max_size=7),
    size=st.integers(1, 7),
    channels=st.integers(3, 5),
    kind=st.sampled_from([list, tuple]),
)
@settings(max_examples=40)
def test_a_list_of_images_is_cut_by_images(sides: list[int], size: int, channels: int, kind: type[Any]) -> None:
    images = kind(random(channels, side, side, seed=index) for index, side in enumerate(sides))
    mean, found, steps = guarded(net(), peaks, images, size)
    torch.testing.assert_close((mean, found), plain(net(), peaks, images))
    assert steps == (1 if size >= len(sides) else -(-len(sides) // size))


def test_a_list_of_images_that_runs_out_of_memory_is_halved_by_images() -> None:
    images = [random(4, side, side) for side in (8, 12, 16, 10)]

    def limited(model: nn.Module, batch: Any) -> Tensor:
        if sum(image.numel() for image in batch) > 2100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return peaks(model, batch)

    model = net()
    backward = oom_safe(model, limited)
    with pytest.warns(UserWarning, match="memory ran out with 4 samples at a time"):
        mean = backward(images)
    assert (backward.micro_batch_size, backward.accumulation_steps) == (2, 2)
    torch.testing.assert_close((mean, gradients(model)), plain(net(), peaks, images))


def test_images_go_with_the_targets_of_each() -> None:
    images = [random(3, 4, side) for side in (4, 6, 5, 8, 3)]
    targets = [{"boxes": random(count, 4), "label": torch.tensor(count)} for count in (3, 0, 3, 1, 7)]

    def detect(model: nn.Module, batch: Any) -> Tensor:
        images, targets = batch
        noise = torch.randn(sum(image.numel() for image in images))  # whose draws depend on the sizes of all
        pairs = zip(images, targets, strict=True)
        return torch.stack([model(i.mean((1, 2))).sum() * len(t["boxes"]) for i, t in pairs]).mean() + 0 * noise.sum()

    is_split_right(net(), detect, (images, targets), 5)
    is_split_right(net(), detect, (images, [*targets[:2], *targets[:3]]), 5)


def test_sequences_of_several_lengths_go_with_their_labels() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(torch.stack([model(x).mean(0) for x in batch["x"]]), batch["y"])

    is_split_right(net(), loss, {"x": [random(n, 3) for n in (2, 5, 3, 3)], "y": torch.tensor([0, 1, 1, 0])}, 4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pictures_and_what_they_should_become_are_cut_together(count: int) -> None:
    """Two lists of one kind, of two entries too; each picture has as many channels as there are samples, or not."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        given, wanted = batch
        pairs = zip(given, wanted, strict=True)
        return torch.stack(
            [square(model(x.movedim(0, -1)).movedim(-1, 0) - y) * y.abs().max() for x, y in pairs]
        ).mean()

    given = [random(3, 4, 5 + n, seed=n) for n in range(count)]
    wanted = [random(3, 4, 5 + n, seed=9 + n) for n in range(count)]
    is_split_right(net(3, 3), loss, (given, wanted), count)
    is_split_right(net(3, 3), loss, [given, wanted], count)


def test_a_list_of_samples_is_cut_by_samples() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([(model(x).sum() - y) ** 2 for x, y in batch]).mean()

    is_split_right(net(), loss, [(random(3, seed=n), float(n)) for n in range(3)], 3)


@pytest.mark.parametrize("widths", [(3, 3), (3, 2)])
def test_the_fields_of_all_samples_are_cut_by_rows(widths: tuple[int, int]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return square(model(x) - y)

    batch = [random(5, 3), random(5, widths[1], seed=1)]  # as torch's collate gives pairs
    is_split_right(net(3, widths[1]), loss, batch, 5)


# -- rows that may be samples


class Tagger(nn.Module):
    """Takes (T, B, D): what it says of a time step depends on those before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.LSTM(3, 4), nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.rnn(x)[0])
        return scores


def tag(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def test_time_is_not_cut_and_split_says_what_to_cut() -> None:
    batch = random(6, 4, 3), (random(6, 4, seed=1) > 0).long()
    with pytest.raises(TaskError, match=r"as if rows \(6\) were samples, two of them do not add up .*pass split="):
        guarded(Tagger(), tag, batch, 2)

    def split(batch: Any, size: int) -> list[Any]:
        return list(zip(*(part.split(size, dim=1) for part in batch), strict=True))

    is_split_right(Tagger(), tag, batch, 4, split=split)


def test_time_first_beside_labels_of_samples_is_refused() -> None:
    with pytest.raises(TaskError, match=r"batch of 6 samples .*; batch\[1\] has shape \(4,\): pass split="):
        guarded(Tagger(), tag, (random(6, 4, 3), torch.zeros(4)), 2)


def test_time_is_not_cut_where_memory_runs_out_either() -> None:
    def limited(model: nn.Module, batch: Any) -> Tensor:
        if batch[0].numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tag(model, batch)

    model = Tagger()
    backward = oom_safe(model, limited)
    batch = random(6, 4, 3), (random(6, 4, seed=1) > 0).long()
    with pytest.raises(TaskError, match=r"memory ran out \(OutOfMemoryError.*cannot be split: a batch is split only"):
        backward(batch)
    assert gradients(model) == []
    assert backward.micro_batch_size is None


def noisy_reconstruction(model: nn.Module, batch: Any) -> Tensor:
    x = batch if isinstance(batch, Tensor) else batch["x"]
    return square(model(x + torch.randn_like(x)) - x)


@pytest.mark.parametrize("batch", [random(7, 3), {"x": random(7, 3)}], ids=["tensor", "dict"])
def test_a_loss_that_draws_noise_is_split_by_rows(batch: Any) -> None:
    model = nn.Sequential(net(3, 8), nn.Dropout(0.5), net(8, 3))
    assert guarded(model, noisy_reconstruction, batch, 2)[2] == 4


def test_a_loss_that_needs_gradients_of_its_input_is_split_by_rows() -> None:
    def penalty(model: nn.Module, x: Any) -> Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
        return square(slope.norm(dim=1) - 1)

    is_split_right(net(), penalty, random(5, 3), 5)


def test_a_model_with_batch_norm_is_asked_without_a_trace() -> None:
    model = nn.Sequential(net(3, 4), nn.BatchNorm1d(4).double(), net(4, 3))
    before = copy.deepcopy(dict(model.named_buffers()))
    asked: list[dict[str, Tensor]] = []

    def loss(model: nn.Module, x: Any) -> Tensor:
        value = square(model(x) - x)
        asked.append(copy.deepcopy(dict(model.named_buffers())))
        return value

    backward = oom_safe(model, loss, micro_batch_size=4)
    backward(random(8, 3))
    assert all(torch.equal(value, before[name]) for name, value in asked[4].items())  # of two samples, and the last
    assert model[1].num_batches_tracked == 2
    assert model[1].training


def mean_of_words(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(nn.functional.one_hot(x, 3).double()).transpose(1, 2), y)


def test_rows_of_text_are_cut_where_each_has_as_many_words() -> None:
    words = torch.arange(30).view(5, 6) % 3
    is_split_right(net(), mean_of_words, (words, words % 2), 5)


def test_rows_of_text_with_padding_ask_for_a_weight() -> None:
    words = torch.arange(30).view(5, 6) % 3
    labels = (words % 2).masked_fill(torch.arange(6) > torch.tensor([[5], [2], [0], [1], [4]]), -100)
    with pytest.raises(TaskError, match=r"a mean over tokens or the like, pass weight="):
        guarded(net(), mean_of_words, (words, labels), 2)
    is_split_right(net(), mean_of_words, (words, labels), 5, weight=lambda batch: (batch[1] != -100).sum())


def test_samples_that_meet_in_the_loss_are_not_parted() -> None:
    def contrastive(model: nn.Module, x: Any) -> Tensor:
        scores = model(x) @ model(x + 0.1).T
        return nn.functional.cross_entropy(scores, torch.arange(len(x)))

    with pytest.raises(TaskError, match=r"couples the samples of a batch, use a batch that fits"):
        guarded(net(), contrastive, random(6, 3), 2)


@contextmanager
def counted(calls: list[int]) -> Iterator[Loss]:
    def loss(model: nn.Module, x: Any) -> Tensor:
        calls.append(len(x))
        return square(model(x))

    yield loss


def test_the_loss_is_asked_once_and_only_where_it_is_needed() -> None:
    calls: list[int] = []
    with counted(calls) as loss:
        backward = oom_safe(net(), loss, micro_batch_size=4)
        backward(random(4, 3))
        assert calls == [4]
        backward(random(8, 3))
        assert calls == [4, 1, 2, 2, 2, 2, 4, 4]
        backward(random(9, 3))
    assert calls[8:] == [3, 3, 3]


def test_memory_for_less_than_two_samples_is_told() -> None:
    def limited(model: nn.Module, x: Any) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return square(model(x))

    with pytest.raises(TaskError, match="memory ran out with two samples, before it was clear what a sample is"):
        oom_safe(net(), limited)(random(8, 3))
    with pytest.raises(DoesNotFit):
        oom_safe(net(), lambda model, x: limited(model, torch.cat([x, x])))(random(1, 3))


# -- objects


class Graph:
    def __init__(self, x: Tensor, y: int) -> None:
        self.x, self.y = x, y


class Opaque:
    """A batch of graphs, as of a library that nobody knows here."""

    def __init__(self, graphs: list[Graph]) -> None:
        self.graphs = graphs
        self.x = torch.cat([graph.x for graph in graphs])
        self.owner = torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor([len(g.x) for g in graphs]))
        self.y = torch.tensor([graph.y for graph in graphs])

    def to(self, device: Any) -> Opaque:
        return self


class Known(Opaque):
    """The same as torch_geometric has it."""

    @property
    def num_graphs(self) -> int:
        return len(self.graphs)

    def to_data_list(self) -> list[Graph]:
        return self.graphs

    @classmethod
    def from_data_list(cls, graphs: list[Graph]) -> Known:
        return cls(graphs)


GRAPHS = [Graph(random(count, 3, seed=count), count % 2) for count in (2, 5, 1, 3, 4)]


def classify(model: nn.Module, batch: Any) -> Tensor:
    sums = torch.zeros(len(batch.y), 2, dtype=torch.float64).index_add(0, batch.owner, model(batch.x))
    return nn.functional.cross_entropy(sums, batch.y)


def test_a_batch_of_graphs_is_cut_by_graphs() -> None:
    is_split_right(net(), classify, Known(GRAPHS), 5)
    with_labels = (Known(GRAPHS), torch.tensor([graph.y for graph in GRAPHS]))
    is_split_right(net(), lambda model, batch: classify(model, batch[0]), with_labels, 5)
    with pytest.raises(TaskError, match=r"batch of 5 samples .*batch\[1\] has shape \(4,\)"):
        guarded(net(), lambda model, batch: classify(model, batch[0]), (Known(GRAPHS), torch.zeros(4)), 2)


def test_a_batch_that_nobody_knows_is_split_by_its_user_or_refused() -> None:
    with pytest.raises(TaskError, match=r"batch is a Opaque: pass split=, a function \(batch, micro_batch_size\)"):
        guarded(net(), classify, Opaque(GRAPHS), 2)

    def split(batch: Opaque, size: int) -> list[Opaque]:
        return [Opaque(graphs) for graphs in chunks(batch.graphs, size)]

    is_split_right(net(), classify, Opaque(GRAPHS), 5, split=split)
    model = net()

    def limited(model: nn.Module, batch: Any) -> Tensor:
        if len(batch.y) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return classify(model, batch)

    backward = oom_safe(model, limited, split=split)
    with pytest.warns(UserWarning, match="memory ran out with (5|2) samples at a time"):
        mean = backward(Opaque(GRAPHS))
    torch.testing.assert_close((mean, gradients(model)), plain(net(), classify, Opaque(GRAPHS)))


def test_packed_sequences_are_split_by_their_user() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([model(x).sum() ** 2 for x in nn.utils.rnn.unpack_sequence(batch)]).mean()

    def split(batch: Any, size: int) -> list[Any]:
        return [nn.utils.rnn.pack_sequence(x) for x in chunks(nn.utils.rnn.unpack_sequence(batch), size)]

    packed = nn.utils.rnn.pack_sequence([random(n, 3) for n in (4, 3, 3, 1)])
    is_split_right(net(), loss, packed, 4, split=split)


@nested
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_cut_by_their_sequences(layout: torch.layout) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([model(x).sum() ** 2 for x in batch.unbind()]).mean()

    batch = torch.nested.nested_tensor([random(n, 3) for n in (4, 2, 3, 1, 5)], layout=layout)
    is_split_right(net(), loss, batch, 5)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda batch, size: batch, r"gives a list of batches, at least one; split\(batch, 1\) gave a Tensor"),
        (lambda batch, size: None, r"split\(batch, 1\) gave a NoneType"),
        (lambda batch, size: [], r"split\(batch, 1\) gave an empty one"),
        (lambda batch, size: list(batch.split(1))[: 5 if size > 1 else None], r"of 6 samples.* of 1, 1, 1, 1, 1$"),
        (lambda batch, size: list(batch.split(2 * size if size > 1 else 1)), r"split\(batch, 2\) made .* of 4, 2$"),
    ],
)
def test_a_split_that_loses_samples_or_gives_too_many_is_told(split: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        guarded(net(), lambda model, x: square(model(x)), random(6, 3), 2, split=split)
