import torch


def widths():
    return torch.zeros(2, 3) @ torch.zeros(2, 3)


WIDTHS = widths()
