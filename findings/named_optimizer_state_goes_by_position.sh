#!/usr/bin/env bash
# torch 2.13.0: an optimizer made from named parameters writes their names into its state_dict, and load_state_dict
# does not look at them. Loaded into the same optimizer with its parameters in another order (as from a set), the
# momentum of each goes to the other where shapes agree, without a word, and the names are overwritten as well.
# Seen: "a" gets the 10 of "b", "b" the 1 of "a".
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


def made(order):
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in "ab"}
    return parameters, torch.optim.SGD([(name, parameters[name]) for name in order], lr=1.0, momentum=0.9)


def momentum(parameters, optimizer):
    return {name: optimizer.state[parameters[name]]["momentum_buffer"].tolist() for name in "ab"}


print("torch", torch.__version__.partition("+")[0])
parameters, optimizer = made("ab")
parameters["a"].grad, parameters["b"].grad = torch.ones(2), 10 * torch.ones(2)
optimizer.step()
print("saved", optimizer.state_dict()["param_groups"][0]["param_names"], momentum(parameters, optimizer))
others, other = made("ba")
other.load_state_dict(optimizer.state_dict())
print("loaded", other.param_groups[0]["param_names"], momentum(others, other))
print("the first parameter is", next(name for name in "ab" if others[name] is other.param_groups[0]["params"][0]))
PY
cat >expected.txt <<'OUT'
torch 2.13.0
saved ['a', 'b'] {'a': [1.0, 1.0], 'b': [10.0, 10.0]}
loaded ['a', 'b'] {'a': [10.0, 10.0], 'b': [1.0, 1.0]}
the first parameter is b
OUT
python finding.py >found.txt
cat found.txt
diff expected.txt found.txt && echo "as it was"
