from parts import model, train_data, val_data
import torch

other = torch.nn.Linear(8, 2)


def loss(model, batch):
    return other(batch[0]).square().mean()
