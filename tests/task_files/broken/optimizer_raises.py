from parts import model, train_data, val_data
import torch


def optimizer(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentun=0.9)
