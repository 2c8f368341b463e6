#!/usr/bin/env bash
# torch 2.13.0: clip_grad_norm_ does not take the sparse gradients of Embedding(sparse=True) and EmbeddingBag(sparse=True),
# which SGD, Adagrad and SparseAdam train on; it raises the dispatcher's table, of some ninety lines.
# Seen: NotImplementedError from linalg_vector_norm, foreach or not; the norm of the coalesced values is there to be had.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
export PATH="$folder/environment/bin:$PATH"
cat >finding.py <<'PY'
import torch
from torch import nn

print("torch", torch.__version__.partition("+")[0])
for layer in (nn.Embedding(10, 2, sparse=True), nn.EmbeddingBag(10, 2, sparse=True)):
    layer(torch.tensor([[1, 2]])).sum().backward()
    for foreach in (False, True):
        try:
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0, foreach=foreach)
        except NotImplementedError as error:
            lines = str(error).splitlines()
            print(type(layer).__name__, foreach, lines[0].partition(" backend")[0], len(lines) > 50)
    print(type(layer).__name__, "norm", layer.weight.grad.coalesce().values().norm().item())
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
PY
cat >expected.txt <<'OUT'
torch 2.13.0
Embedding False Could not run 'aten::linalg_vector_norm' with arguments from the 'SparseCPU' True
Embedding True Could not run 'aten::linalg_vector_norm' with arguments from the 'SparseCPU' True
Embedding norm 2.0
EmbeddingBag False Could not run 'aten::linalg_vector_norm' with arguments from the 'SparseCPU' True
EmbeddingBag True Could not run 'aten::linalg_vector_norm' with arguments from the 'SparseCPU' True
EmbeddingBag norm 1.0
OUT
python finding.py >found.txt
cat found.txt
diff expected.txt found.txt && echo "as it was"
