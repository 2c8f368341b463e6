"""torch_geometric: GIN tells rings from paths; a batch is a PyG Batch, made by its own collate."""

import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import global_mean_pool
from torch_geometric.nn.models import GIN

collate = Batch.from_data_list


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.gin = GIN(in_channels=4, hidden_channels=32, num_layers=2)
        self.head = nn.Linear(32, 2)

    def forward(self, batch):
        return self.head(global_mean_pool(self.gin(batch.x, batch.edge_index), batch.batch))


def model():
    return Classifier()


def graphs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        nodes = int(torch.randint(4, 12, (1,), generator=generator))
        ahead = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
        if index % 2:
            ahead = torch.cat([ahead, torch.tensor([[nodes - 1], [0]])], dim=1)
        edges = torch.cat([ahead, ahead.flip(0)], dim=1)
        x = torch.ones(nodes, 4) + 0.5 * torch.randn(nodes, 4, generator=generator)
        found.append(Data(x=x, edge_index=edges, y=torch.tensor([index % 2])))
    return found


def train_data():
    return graphs(1000, 0)


def val_data():
    return graphs(300, 1)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch), batch.y)


def metric(model, batch):
    return (model(batch).argmax(dim=1) == batch.y).float()


baseline = {"batch_size": 32, "lr": 1e-3}
