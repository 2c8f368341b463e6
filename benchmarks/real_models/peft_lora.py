"""peft: LoRA on a frozen GPT-2, which learns periodic sequences."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

LENGTH = 24
direction = "minimize"


def model():
    base = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    return get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    )


class Periodic(torch.utils.data.Dataset):
    def __init__(self, size, seed):
        self.words = torch.randint(1, 64, (size, 4), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        ids = self.words[index].repeat(LENGTH // 4)
        return {"input_ids": ids, "labels": ids}


def train_data():
    return Periodic(1024, 0)


def val_data():
    return Periodic(256, 1)


def loss(model, batch):
    return model(**batch).loss


def metric(model, batch):
    return model(**batch).loss


def optimizer(model, lr):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


baseline = {"batch_size": 16, "lr": 1e-3}
