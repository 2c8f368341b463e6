"""Made-up texts of very different lengths, padded to the longest of their batch: the longest decide what fits."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

VOCABULARY, SHORTEST, LONGEST, WIDTH = 200, 8, 256, 32
baseline = {"batch_size": 8, "lr": 1e-3}


class Texts(Dataset):
    """Tokens around one of four means, made from the index; most are short, one in twenty or so is of full length."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        label = index % 4
        generator = torch.Generator().manual_seed(index)
        length = int(SHORTEST * (1 - torch.rand((), generator=generator)) ** -1.2)
        tokens = torch.randint(1, VOCABULARY // 2, (min(length, LONGEST),), generator=generator)
        return tokens + label * VOCABULARY // 8, label


class Classifier(nn.Module):
    """Convolutions over the text, and the mean of what is not padding."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.first = nn.Conv1d(WIDTH, 2 * WIDTH, 5, padding=2)
        self.second = nn.Conv1d(2 * WIDTH, 2 * WIDTH, 5, padding=2)
        self.head = nn.Linear(2 * WIDTH, 4)

    def forward(self, tokens):
        x = self.tokens(tokens).transpose(1, 2)
        x = relu(self.second(relu(self.first(x))))
        kept = (tokens != 0).unsqueeze(1)
        return self.head((x * kept).sum(2) / kept.sum(2))


def model():
    return Classifier()


def train_data():
    return Texts(50_000)


def val_data():
    return Texts(200)


def collate(samples):
    texts, labels = zip(*samples, strict=True)
    return pad_sequence(texts, batch_first=True), torch.tensor(labels)


def sample_size(sample):
    return len(sample[0])


def loss(model, batch):
    tokens, labels = batch
    return cross_entropy(model(tokens), labels)


def metric(model, batch):
    tokens, labels = batch
    return (model(tokens).argmax(1) == labels).float()
