from parts import model, train_data, val_data
from torch import nn

direction = "max"
precision = "float16"
clip_grad_norm = -1.0
compile = "yes"
loader = {"batch_size": 32, "num_worker": 2}
baseline = {"batchsize": 32, "lr": 0}
loss = nn.CrossEntropyLoss()


def metric(outputs):
    return outputs
