"""A plain training script: nothing in it knows of autobatch.

    python train_mlp.py --batch-size 32 --lr 0.01

To tune it as it stands (docs/any-script.md):

    autobatch tune --command "python train_mlp.py --batch-size {batch_size} --lr {lr} --seed {seed}" \
        --score "val_acc=([0-9.]+)" --maximize --baseline "batch_size=32 lr=0.01"
"""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()


def rings(count, seed):
    """Points in the plane, of two classes in alternating rings."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 2, generator=generator) * 4 - 2
    return points, (points.norm(dim=1) * 2).long() % 2


(train_x, train_y), (val_x, val_y) = rings(2000, seed=1), rings(500, seed=2)
torch.manual_seed(args.seed)
model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
for epoch in range(args.epochs):
    for batch in torch.randperm(len(train_y)).split(args.batch_size):
        loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(val_x).argmax(1) == val_y).float().mean().item()
    print(f"epoch {epoch}: val_acc={accuracy:.4f}")
