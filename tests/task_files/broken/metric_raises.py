from parts import model, train_data, val_data


def metric(model, batch):
    return model(batch[1])
