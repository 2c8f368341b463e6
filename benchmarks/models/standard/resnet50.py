"""ResNet-50 (He et al. 2015, arXiv:1512.03385, table 1) on made-up images.

Full: 1000 classes at 224 x 224, 25.6 M parameters. Small, for a CPU: the same 50 layers, an eighth as wide, at 40 x 40.
"""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

SMALL = os.environ.get("AUTOBATCH_BENCH_SIZE") == "small"
WIDTH, IMAGE, CLASSES = (8, 40, 10) if SMALL else (64, 224, 1000)
baseline = {"batch_size": 32, "lr": 0.0125}  # the paper's 256 at 0.1, an eighth of both


class Bottleneck(nn.Module):
    """Three convolutions around which the input passes; the middle one may halve the image.

    (The paper's first one does; in the middle it is more accurate and takes 4.1 instead of 3.8 G multiply-adds an
    image: Goyal et al. 2017, arXiv:1706.02677, section 5.1.)
    """

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.reduce, self.reduce_norm = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.middle = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.middle_norm = nn.BatchNorm2d(width)
        self.expand, self.expand_norm = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        inside = relu(self.reduce_norm(self.reduce(x)))
        inside = relu(self.middle_norm(self.middle(inside)))
        return relu(self.expand_norm(self.expand(inside)) + self.shortcut(x))


def model():
    layers = [nn.Conv2d(3, WIDTH, 7, 2, padding=3, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = WIDTH
    for width, blocks, stride in ((WIDTH, 3, 1), (2 * WIDTH, 4, 2), (4 * WIDTH, 6, 2), (8 * WIDTH, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)


class Numbers:
    """Batches of sample numbers, without end."""

    dataset = range(1 << 30)  # says how many samples there are, so that nobody has to count them

    def __init__(self, batch_size):
        self.batch = torch.arange(batch_size)

    def __iter__(self):
        while True:
            yield self.batch


def train_loader(batch_size, seed):
    return Numbers(batch_size)


def val_data():
    return range(256)


def _images(batch, generator=None):
    """Noise, of which each colour's brightness is a digit of the class.

    Made where the model is: nothing is read, decoded or copied, so what is measured is the device alone.
    """
    device, count = batch.device, len(batch)
    labels = torch.randint(CLASSES, (count,), generator=generator, device=device)
    images = torch.rand(count, 3, IMAGE, IMAGE, generator=generator, device=device)
    digits = torch.stack([labels % 10, labels // 10 % 10, labels // 100], dim=1)
    return images.sub_(0.5).add_((digits / 10 - 0.45)[:, :, None, None]), labels


def loss(model, batch):
    images, labels = _images(batch)
    return cross_entropy(model(images), labels)


def metric(model, batch):
    # Seeded: every evaluation is of the same images.
    images, labels = _images(batch, torch.Generator(batch.device).manual_seed(int(batch[0])))
    return (model(images).argmax(1) == labels).float()
