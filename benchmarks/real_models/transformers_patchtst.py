"""transformers: PatchTST forecasts sines of several channels."""

import torch
from transformers import PatchTSTConfig, PatchTSTForPrediction

direction = "minimize"


def model():
    return PatchTSTForPrediction(
        PatchTSTConfig(
            context_length=64,
            prediction_length=16,
            num_input_channels=3,
            patch_length=8,
            patch_stride=8,
            d_model=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
        )
    )


class Sines(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        phase = 6.28 * torch.rand(size, 1, 3, generator=generator)
        pace = 0.1 + 0.3 * torch.rand(size, 1, 3, generator=generator)
        time = torch.arange(80.0)[None, :, None]
        self.series = (pace * time + phase).sin() + 0.1 * torch.randn(size, 80, 3, generator=generator)

    def __len__(self):
        return len(self.series)

    def __getitem__(self, index):
        return {"past_values": self.series[index, :64], "future_values": self.series[index, 64:]}


def train_data():
    return Sines(1024, 0)


def val_data():
    return Sines(256, 1)


def loss(model, batch):
    return model(**batch).loss


def metric(model, batch):
    return model(**batch).loss


baseline = {"batch_size": 32, "lr": 1e-3}
