"""A classifier of hand-written digits, and how well it does, as plans."""

import torch
from torch import nn

import fedq as fq


class Digits(fq.Plan):
    """Reads an 8 x 8 picture of a digit: 64 numbers to 10 scores."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 48)
        self.scores = nn.Linear(48, 10)

    def forward(self, pictures):
        return self.scores(torch.relu(self.hidden(pictures / 16)))


@fq.func2plan()
def share_right(scores, labels):
    return (scores.argmax(1) == labels).float().mean()
