"""diffusers: a UNet2DModel learns to see the noise that a DDPM schedule adds."""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

direction = "minimize"
noise_schedule = DDPMScheduler(num_train_timesteps=100)


def model():
    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


class Squares(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        self.places = torch.randint(0, 8, (size, 2), generator=torch.Generator().manual_seed(seed)).tolist()

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        top, left = self.places[index]
        image = -torch.ones(1, 16, 16)
        image[:, top : top + 8, left : left + 8] = 1.0
        return image


def train_data():
    return Squares(512, 0)


def val_data():
    return Squares(128, 1)


def loss(model, images):
    noise = torch.randn_like(images)
    steps = torch.randint(0, 100, (len(images),), device=images.device)
    return nn.functional.mse_loss(model(noise_schedule.add_noise(images, noise, steps), steps).sample, noise)


def metric(model, images):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    steps = (torch.arange(len(images), device=images.device) * 37) % 100
    seen = model(noise_schedule.add_noise(images, noise, steps), steps).sample
    return (seen - noise).square().mean(dim=(1, 2, 3))


baseline = {"batch_size": 16, "lr": 1e-3}
