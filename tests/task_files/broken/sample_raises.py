from parts import model, val_data
from torch.utils.data import Dataset


class Gaps(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 5:
            raise FileNotFoundError("image_5.png")
        return val_data()[index]


def train_data():
    return Gaps()
