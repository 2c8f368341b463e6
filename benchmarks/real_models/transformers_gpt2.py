"""transformers: GPT-2 continues periodic sequences; the model's own loss, which is the metric too."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

LENGTH = 32
direction = "minimize"


def model():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


class Periodic(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(1, 64, (size, 4), generator=generator)

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        ids = self.words[index].repeat(LENGTH // 4)
        return {"input_ids": ids, "labels": ids}


def train_data():
    return Periodic(2048, 0)


def val_data():
    return Periodic(256, 1)


def loss(model, batch):
    return model(**batch).loss


def metric(model, batch):
    return model(**batch).loss


baseline = {"batch_size": 16, "lr": 3e-4}
