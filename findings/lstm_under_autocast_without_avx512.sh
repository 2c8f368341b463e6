#!/usr/bin/env bash
# torch 2.13.0: under CPU autocast in bfloat16 and float16, an LSTM raises on a processor without AVX-512 (any other
# behaves so with ONEDNN_MAX_CPU_ISA=AVX2), forward already, while a GRU, an RNN and a linear layer run. The message
# begins like oneDNN's out-of-memory, "could not create a primitive", and names no type. Without oneDNN the LSTM runs.
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


def outcome(layer, dtype):
    try:
        with torch.autocast("cpu", dtype):
            output = layer(torch.ones(2, 3, 8))
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    except RuntimeError as error:
        return str(error).partition(". ")[0]
    return "runs"


print("torch", torch.__version__.partition("+")[0])
for dtype in (torch.bfloat16, torch.float16):
    for layer in (nn.Linear(8, 8), nn.RNN(8, 8), nn.GRU(8, 8), nn.LSTM(8, 8)):
        print(dtype, type(layer).__name__, outcome(layer, dtype))
    torch.backends.mkldnn.enabled = False
    print(dtype, "LSTM without oneDNN", outcome(nn.LSTM(8, 8), dtype))
    torch.backends.mkldnn.enabled = True
PY
cat >expected.txt <<'OUT'
torch 2.13.0
torch.bfloat16 Linear runs
torch.bfloat16 RNN runs
torch.bfloat16 GRU runs
torch.bfloat16 LSTM could not create a primitive descriptor for the LSTM forward propagation primitive
torch.bfloat16 LSTM without oneDNN runs
torch.float16 Linear runs
torch.float16 RNN runs
torch.float16 GRU runs
torch.float16 LSTM could not create a primitive descriptor for the LSTM forward propagation primitive
torch.float16 LSTM without oneDNN runs
OUT
ONEDNN_MAX_CPU_ISA=AVX2 python finding.py >found.txt
cat found.txt
diff expected.txt found.txt && echo "as it was"
