from parts import model, train_data, val_data


def optimizer(model, lr):
    pass
