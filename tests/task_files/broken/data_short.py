from parts import model, val_data


def train_data():
    return val_data().tensors[0][:20]


baseline = {"batch_size": 32, "lr": 1e-3}


def loss(model, batch):
    return model(batch).square().mean()
