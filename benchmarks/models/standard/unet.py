"""A U-Net (Ronneberger et al. 2015, arXiv:1505.04597, figure 1) that finds shapes in made-up images.

As in the paper, but for padded convolutions: the mask is as large as the image. Full: 256 x 256, 64 channels at first,
31.0 M parameters. Small, for a CPU: the same layers, a sixteenth as wide, at 32 x 32.
"""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy

SMALL = os.environ.get("AUTOBATCH_BENCH_SIZE") == "small"
WIDTH, IMAGE = (4, 32) if SMALL else (64, 256)
LEVELS = 4  # times that the image is halved
baseline = {"batch_size": 1, "lr": 1e-3}  # the paper's batch; it tells no rate


def _twice(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )


class UNet(nn.Module):
    """Scores of two classes for each pixel."""

    def __init__(self):
        super().__init__()
        widths = [WIDTH << level for level in range(LEVELS + 1)]
        self.first = _twice(3, WIDTH)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_twice(width, 2 * width) for width in widths[:-1])
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in reversed(widths[:-1]))
        self.up = nn.ModuleList(_twice(2 * width, width) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(WIDTH, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x):
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(self.pool(levels[-1])))
        x = levels.pop()
        for enlarge, up in zip(self.enlarge, self.up, strict=True):
            x = up(torch.cat([levels.pop(), enlarge(x)], dim=1))
        return self.head(x)


def model():
    return UNet()


def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.99)


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
    return range(64)


def _images(batch, generator=None):
    """A mask of 8 x 8 squares, and the same as an image under noise of twice its height.

    Made where the model is: nothing is read, decoded or copied, so what is measured is the device alone.
    """
    device, count = batch.device, len(batch)
    squares = torch.randint(2, (count, 8, 8), generator=generator, device=device)
    masks = squares.repeat_interleave(IMAGE // 8, dim=1).repeat_interleave(IMAGE // 8, dim=2)
    noise = torch.rand(count, 3, IMAGE, IMAGE, generator=generator, device=device)
    return noise.mul_(2).add_(masks[:, None]).sub_(1.5), masks


def loss(model, batch):
    images, masks = _images(batch)
    return cross_entropy(model(images), masks)


def metric(model, batch):
    # Seeded: every evaluation is of the same images. Intersection over union, of the mask's squares.
    images, masks = _images(batch, torch.Generator(batch.device).manual_seed(int(batch[0])))
    found, wanted = model(images).argmax(1).bool(), masks.bool()
    both, either = (found & wanted).sum((1, 2)), (found | wanted).sum((1, 2))
    return both / either.clamp(min=1)
