from parts import model, val_data


def train_data():
    return open("/nonexistent/data.csv")
