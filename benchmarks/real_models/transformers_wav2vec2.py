"""transformers: wav2vec 2.0 tells two tones apart; its position convolution is a parametrized weight norm."""

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification


def model():
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        num_labels=2,
        mask_time_prob=0.0,
    )
    return Wav2Vec2ForSequenceClassification(config)


class Tones(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 2, (size,), generator=generator)
        self.noise = torch.randn(size, 1600, generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        tone = (0.1 * (1 + self.labels[index]) * torch.arange(1600)).sin()
        return {"input_values": tone + self.noise[index], "labels": self.labels[index]}


def train_data():
    return Tones(512, 0)


def val_data():
    return Tones(256, 1)


baseline = {"batch_size": 16, "lr": 3e-4}
