from parts import model, train_data, val_data


def training_step(model, batch, scale):
    raise RuntimeError("not yet written")
