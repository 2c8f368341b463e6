from parts import model, train_data, val_data


def helper(batch):
    return batch["labels"]


def loss(model, batch):
    return helper(batch)
