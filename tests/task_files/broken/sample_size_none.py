from parts import model, train_data, val_data


def sample_size(sample):
    len(sample[0])
