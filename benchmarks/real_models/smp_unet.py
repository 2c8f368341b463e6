"""segmentation-models-pytorch: a U-Net finds discs; Dice loss and intersection over union."""

import segmentation_models_pytorch as smp
import torch


def model():
    return smp.Unet(
        "resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(32, 16, 8), in_channels=3, classes=1
    )


class Discs(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.centres = torch.randint(8, 24, (size, 2), generator=generator).tolist()
        self.noise = torch.randn(size, 3, 32, 32, generator=generator)

    def __len__(self):
        return len(self.centres)

    def __getitem__(self, index):
        y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        top, left = self.centres[index]
        mask = (((y - top) ** 2 + (x - left) ** 2) < 40).float()[None]
        return self.noise[index] + mask, mask


dice = smp.losses.DiceLoss("binary", from_logits=True)


def train_data():
    return Discs(256, 0)


def val_data():
    return Discs(64, 1)


def loss(model, batch):
    images, masks = batch
    return dice(model(images), masks)


def metric(model, batch):
    images, masks = batch
    found, wanted = model(images) > 0, masks > 0
    both = (found & wanted).sum(dim=(1, 2, 3)).float()
    return both / (found | wanted).sum(dim=(1, 2, 3)).clamp(min=1)


accumulation = False  # Dice is of the whole batch
baseline = {"batch_size": 8, "lr": 1e-3}
