from parts import model, train_data, val_data


precison = "bf16"


def optimiser(model, lr):
    return None


def validation_dataset():
    return None
