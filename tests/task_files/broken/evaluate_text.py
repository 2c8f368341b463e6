from parts import model, train_data, val_data


def evaluate(model, loader):
    return {"f1": 0.5}
