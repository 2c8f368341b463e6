"""transformers: T5 reverses sequences; the decoder's input is made of the labels, which a collate pads with -100."""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import T5Config, T5ForConditionalGeneration

direction = "minimize"


def model():
    config = T5Config(
        vocab_size=40,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return T5ForConditionalGeneration(config)


class Reversed(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 13, (size,), generator=generator).tolist()
        self.texts = [torch.randint(2, 40, (length,), generator=generator) for length in lengths]

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return self.texts[index], self.texts[index].flip(0)


def collate(samples):
    ids = pad_sequence([text for text, _ in samples], batch_first=True)
    labels = pad_sequence([label for _, label in samples], batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def train_data():
    return Reversed(2048, 0)


def val_data():
    return Reversed(256, 1)


def loss(model, batch):
    return model(**batch).loss


def metric(model, batch):
    return model(**batch).loss


def weight(batch):
    return int((batch["labels"] != -100).sum())


baseline = {"batch_size": 32, "lr": 1e-3}
