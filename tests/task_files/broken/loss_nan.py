from parts import model, train_data, val_data


def loss(model, batch):
    return (model(batch[0]) - 1e9).log().mean()
