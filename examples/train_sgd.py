"""A training script without PyTorch: scikit-learn's SGDClassifier, a mini-batch at a time, with one line for autobatch.

    python train_sgd.py --batch-size 32 --lr 0.0001

To tune it (docs/any-script.md):

    autobatch tune --command "python train_sgd.py --batch-size {batch_size} --lr {lr} --steps {max_steps}" \
        --maximize --baseline "batch_size=32 lr=0.0001"
"""

import argparse

import numpy
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

import autobatch

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--lr", type=float, default=0.0001)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

data = train_test_split(*load_digits(return_X_y=True), test_size=0.3, random_state=0)
train_x, val_x, train_y, val_y = data
random = numpy.random.default_rng(args.seed)
model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=args.lr, random_state=args.seed)
for _ in range(args.steps):
    batch = random.integers(len(train_y), size=args.batch_size)
    model.partial_fit(train_x[batch], train_y[batch], classes=numpy.arange(10))

accuracy = model.score(val_x, val_y)
print(f"accuracy {accuracy:.4f}")
autobatch.log(accuracy)
