from parts import model, train_data, val_data


def collate(samples):
    return samples.x
