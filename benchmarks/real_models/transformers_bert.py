"""transformers: BERT classifies sequences by whether a token is in them; default loss and metric."""

import torch
from transformers import BertConfig, BertForSequenceClassification

LENGTH = 32


def model():
    config = BertConfig(
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


class Sequences(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 200, (size, LENGTH), generator=generator)
        self.labels = (self.ids == 7).any(dim=1) | (self.ids == 9).any(dim=1)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.labels[index].long()}


def train_data():
    return Sequences(2048, 0)


def val_data():
    return Sequences(512, 1)


baseline = {"batch_size": 16, "lr": 1e-4}
