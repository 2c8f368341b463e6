"""ViT-B/16 (Dosovitskiy et al. 2020, arXiv:2010.11929, table 1) on made-up images.

Full: 1000 classes at 224 x 224, 86.6 M parameters. Small, for a CPU: 4 of the 12 layers, 64 wide, at 64 x 64.
"""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

SMALL = os.environ.get("AUTOBATCH_BENCH_SIZE") == "small"
WIDTH, DEPTH, HEADS, IMAGE, CLASSES = (64, 4, 4, 64, 10) if SMALL else (768, 12, 12, 224, 1000)
PATCH = 16
baseline = {"batch_size": 32, "lr": 3e-4}  # the paper's 4096 at 3e-3 (table 3), scaled by the square root
clip_grad_norm = 1.0


class Block(nn.Module):
    """Attention between all patches, then each by itself."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.queries_keys_values, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = self.queries_keys_values(self.attention_norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(queries, keys, values)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.narrow(gelu(self.widen(self.norm(x))))


class VisionTransformer(nn.Module):
    """Patches as tokens, and one more for the class."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, (IMAGE // PATCH) ** 2 + 1, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def model():
    return VisionTransformer()


def optimizer(model, lr):
    return torch.optim.AdamW(model.parameters(), lr, weight_decay=0.3)


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
