"""diffusers: AutoencoderKL on small images, reconstruction and divergence."""

import torch
from diffusers import AutoencoderKL
from torch import nn

direction = "minimize"


def model():
    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(16,), layers_per_block=1, norm_num_groups=8, sample_size=16
    )


class Gradients(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        self.ends = torch.rand(size, 3, 2, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        x, y = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
        return torch.stack([a * x + b * y for a, b in self.ends[index].tolist()])


def train_data():
    return Gradients(512, 0)


def val_data():
    return Gradients(128, 1)


def loss(model, images):
    latent = model.encode(images).latent_dist
    seen = model.decode(latent.sample()).sample
    return nn.functional.mse_loss(seen, images) + 1e-4 * latent.kl().mean()


def metric(model, images):
    seen = model.decode(model.encode(images).latent_dist.mode()).sample
    return (seen - images).square().mean(dim=(1, 2, 3))


baseline = {"batch_size": 16, "lr": 1e-3}
