from parts import model, val_data
from torch.utils.data import DataLoader


def train_data():
    return DataLoader(val_data(), batch_size=4)
