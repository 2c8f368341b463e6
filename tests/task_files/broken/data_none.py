from parts import model, val_data


def train_data():
    val_data()
