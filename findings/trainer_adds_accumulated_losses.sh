#!/usr/bin/env bash
# transformers 5.24.0: under gradient accumulation Trainer adds the losses and the gradients of the micro-batches, in place of
# averaging them, for models whose forward takes **kwargs and does nothing with num_items_in_batch, such as
# BertForSequenceClassification: four micro-batches of 4 give four times the loss and the gradient of one batch of 16.
# Seen: a ratio of 4.00 for the classifier, and of 1.00 for GPT2LMHeadModel, which divides by num_items_in_batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
export PATH="$folder/environment/bin:$PATH"
cat >finding.py <<'PY'
import logging
import warnings

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
from transformers import PrinterCallback, Trainer, TrainingArguments

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
print("transformers", transformers.__version__)
small = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
bert = BertConfig(**small, **no_dropout)
gpt = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
for name, make, label in (
    ("BertForSequenceClassification", lambda: BertForSequenceClassification(bert), lambda i: i % 2),
    ("GPT2LMHeadModel", lambda: GPT2LMHeadModel(gpt), lambda i: [i % 20, 1, 2, 3]),
):
    data = [{"input_ids": [i % 20, 1, 2, 3], "labels": label(i)} for i in range(16)]
    logged = []
    for accumulation_steps in (1, 4):
        torch.manual_seed(0)
        arguments = TrainingArguments(
            "out",
            per_device_train_batch_size=16 // accumulation_steps,
            gradient_accumulation_steps=accumulation_steps,
            max_steps=1,
            learning_rate=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(make(), arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        logged.append(next(entry for entry in trainer.state.log_history if "loss" in entry))
    one, four = logged
    for key in ("loss", "grad_norm"):
        print(f"{name}: {key} with 4 micro-batches over that of the whole batch: {float(four[key]) / float(one[key]):.2f}")
PY
cat >expected.txt <<'OUT'
transformers 5.24.0
BertForSequenceClassification: loss with 4 micro-batches over that of the whole batch: 4.00
BertForSequenceClassification: grad_norm with 4 micro-batches over that of the whole batch: 4.00
GPT2LMHeadModel: loss with 4 micro-batches over that of the whole batch: 1.00
GPT2LMHeadModel: grad_norm with 4 micro-batches over that of the whole batch: 1.00
OUT
python finding.py >found.txt
cat found.txt
diff expected.txt found.txt && echo "as it was"
