#!/usr/bin/env bash
# torch 2.13.0: copy.deepcopy and torch.save keep the hooks of a module and drop those of its parameters, in silence.
# A copy of a model that scales its gradients in a hook trains with other gradients; one that takes its optimizer's
# step in register_post_accumulate_grad_hook does not train at all.
# Seen: the copy calls the forward hook alone; the loaded gradient is half of the saved one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
export PATH="$folder/environment/bin:$PATH"
cat >finding.py <<'PY'
import copy
import io

import torch
from torch import nn

calls = []


def twice(gradient):
    calls.append("gradient")
    return 2 * gradient


def after(parameter):
    calls.append("after")


def forward(module, inputs, output):
    calls.append("forward")


def shown(name, model):
    calls.clear()
    model.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    print(name, model.weight.grad.tolist(), *calls)


model = nn.Linear(2, 1)
model.register_forward_hook(forward)
model.weight.register_hook(twice)
model.weight.register_post_accumulate_grad_hook(after)
saved = io.BytesIO()
torch.save(model, saved)
saved.seek(0)
print("torch", torch.__version__.partition("+")[0])
shown("model", model)
shown("deepcopy", copy.deepcopy(model))
shown("saved and loaded", torch.load(saved, weights_only=False))
PY
cat >expected.txt <<'OUT'
torch 2.13.0
model [[2.0, 2.0]] forward gradient after
deepcopy [[1.0, 1.0]] forward
saved and loaded [[1.0, 1.0]] forward
OUT
python finding.py >found.txt
cat found.txt
diff expected.txt found.txt && echo "as it was"
