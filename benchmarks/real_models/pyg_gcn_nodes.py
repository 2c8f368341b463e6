"""torch_geometric: a GCN classifies the nodes of one graph; a sample is a node, the graph is the model's."""

import torch
from torch import nn
from torch.utils.data import TensorDataset
from torch_geometric.nn.models import GCN
from torch_geometric.utils import stochastic_blockmodel_graph

NODES = 400


class OnOneGraph(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            edges = stochastic_blockmodel_graph([NODES // 2] * 2, [[0.05, 0.01], [0.01, 0.05]])
            x = torch.randn(NODES, 8)
        self.register_buffer("edges", edges)
        self.register_buffer("x", x)
        self.gcn = GCN(8, 16, 2, 2)

    def forward(self, nodes):
        return self.gcn(self.x, self.edges)[nodes]


def model():
    return OnOneGraph()


def split():
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(1))
    return order[:300], order[300:]


def train_data():
    nodes = split()[0]
    return TensorDataset(nodes, (nodes >= NODES // 2).long())


def val_data():
    nodes = split()[1]
    return TensorDataset(nodes, (nodes >= NODES // 2).long())


baseline = {"batch_size": 32, "lr": 1e-2}
