"""Trainers as people write them for transformers, with small random models and data that is made here.

Imported only where transformers is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

WORDS = 40


class Reviews(Dataset[dict[str, Any]]):
    """Texts of unlike lengths, and whether more of their words are good than bad."""

    def __init__(self, size: int, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.samples: list[dict[str, Any]] = []
        for _ in range(size):
            length = int(torch.randint(3, 13, (), generator=draw))
            words = torch.randint(2, WORDS, (length,), generator=draw).tolist()
            good = sum(word > WORDS // 2 for word in words)
            self.samples.append({"input_ids": words, "label": int(2 * good > length), "text": "not for the model"})

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def pad(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Texts filled up to the longest one."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    rows = [sample["input_ids"] + [0] * (longest - len(sample["input_ids"])) for sample in samples]
    inputs = torch.tensor(rows)
    batch = {"input_ids": inputs, "attention_mask": (inputs != 0).long()}
    if "label" in samples[0]:
        return batch | {"labels": torch.tensor([sample["label"] for sample in samples])}
    return batch | {"labels": inputs.masked_fill(inputs == 0, -100)}


class Sentences(Reviews):
    """Texts in which each word follows from the one before, for a language model."""

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__(size, seed)
        self.samples = [
            {
                "input_ids": [
                    2 + (sample["input_ids"][0] + 3 * at) % (WORDS - 2) for at in range(len(sample["input_ids"]))
                ]
            }
            for sample in self.samples
        ]


def accuracy(predicted: Any) -> dict[str, float]:
    """As a compute_metrics is written."""
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def bert(dropout: float = 0.0) -> BertForSequenceClassification:
    """A classifier of two classes."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def gpt2() -> GPT2LMHeadModel:
    """A causal language model."""
    config = GPT2Config(
        vocab_size=WORDS,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """TrainingArguments that write and say nothing."""
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    said = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True}
    return TrainingArguments(output_dir=str(folder), **(quiet | said | changes))


def classifier(
    folder: Path, kind: type[Trainer] = Trainer, of: dict[str, Any] | None = None, **changes: Any
) -> Trainer:
    """A text classifier's Trainer.

    Args:
        folder: for its output.
        kind: its class.
        of: arguments of the Trainer to change.
        changes: of the TrainingArguments.
    """
    changes = {"metric_for_best_model": "accuracy"} | changes
    parts: dict[str, Any] = {
        "model": None if of and "model_init" in of else bert(),
        "data_collator": pad,
        "train_dataset": Reviews(128),
        "eval_dataset": Reviews(20, seed=1),
        "compute_metrics": accuracy,
    }
    return kind(args=arguments(folder, **changes), **(parts | (of or {})))


def language_model(
    folder: Path, kind: type[Trainer] = Trainer, of: dict[str, Any] | None = None, **changes: Any
) -> Trainer:
    """A causal language model's Trainer; as `classifier`."""
    parts: dict[str, Any] = {
        "model": gpt2(),
        "data_collator": pad,
        "train_dataset": Sentences(128),
        "eval_dataset": Sentences(20, seed=1),
    }
    return kind(args=arguments(folder, **changes), **(parts | (of or {})))


def _of_generated(predicted: Any) -> dict[str, float]:
    return {"mean": float(predicted.predictions.mean()), "length": float(predicted.predictions.shape[1])}


def translator(folder: Path) -> Seq2SeqTrainer:
    """A Trainer whose evaluation generates."""
    config = T5Config(
        vocab_size=WORDS,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    args = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        predict_with_generate=True,
        generation_max_length=6,
        metric_for_best_model="mean",
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return Seq2SeqTrainer(
        model=T5ForConditionalGeneration(config),
        args=args,
        data_collator=pad,
        train_dataset=Sentences(16),
        eval_dataset=Sentences(12, seed=1),
        compute_metrics=_of_generated,
    )
