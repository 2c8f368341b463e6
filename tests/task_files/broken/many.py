import torch
from torch import nn


def model():
    return nn.Linear(8, 2)


def train_data():
    raise OSError("the disk is gone")


def val_data():
    return []


def optimizer(model, lr):
    return "adam"


def scheduler(optimizer, total_steps):
    return None
