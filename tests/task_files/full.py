"""Every optional part of a task file at once, apart from those that replace one another."""

import copy
import math

import torch
from siblings import blobs
from torch import nn

name = "every part"
direction = "minimize"
clip_grad_norm = 1.0
precision = "fp32"
compile = False
accumulation = True
loader = {"num_workers": 0}
baseline = {"batch_size": 16, "lr": 3e-3, "accumulation_steps": 2}


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def train_data():
    return blobs(0, 192)


def val_data():
    return blobs(1, 96)


def test_data():
    return blobs(2, 96)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], label_smoothing=0.1)


def weight(batch):
    return len(batch["y"])


def metric(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def evaluate(model, loader):
    total = sum(float(metric(model, batch).sum()) for batch in loader)
    return total / sum(len(batch["y"]) for batch in loader)


def optimizer(model, lr):
    first, *rest = list(model.parameters())
    return torch.optim.SGD([{"params": [first], "lr": lr / 10}, {"params": rest}], lr=lr, momentum=0.9)


def scheduler(optimizer, total_steps):
    warm_up = max(1, total_steps // 10)

    def factor(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Average:
    """An exponential moving average of the weights, kept with the trial."""

    def __init__(self):
        self.weights = None

    def __call__(self, model, step):
        state = model.state_dict()
        if self.weights is None:
            self.weights = copy.deepcopy(state)
        for key, value in state.items():
            self.weights[key].lerp_(value, 0.01)

    def state_dict(self):
        return self.weights or {}

    def load_state_dict(self, state):
        self.weights = dict(state) or None


after_step = Average()


def before_step(batches):
    return batches


def collate(samples):
    return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])}


def sample_size(sample):
    return sample[0].numel()


if __name__ == "__main__":
    raise SystemExit("a task file is imported, not run")
