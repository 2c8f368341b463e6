from parts import model, train_data, val_data
import torch


def scheduler(optimizer, total_steps):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
