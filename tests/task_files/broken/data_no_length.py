from parts import model, val_data
from torch.utils.data import Dataset


class Endless(Dataset):
    def __getitem__(self, index):
        return val_data()[0]


def train_data():
    return Endless()
