# SPDX-License-Identifier: MIT
"""The networks of examples/models/wide_resnet.hpp, layer for layer."""
import torch
from torch import nn
from torch.nn import functional as F


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.drop = nn.Dropout(0.0)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x):
        active = F.relu_(self.norm1(x))
        y = self.conv2(self.drop(F.relu_(self.norm2(self.conv1(active)))))
        return y + (self.shortcut(active) if self.shortcut is not None else x)


class WideResNet(nn.Module):
    def __init__(self, depth=16, widen_factor=1, classes=10, channels=3):
        super().__init__()
        blocks = (depth - 4) // 6
        width = 16
        layers = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
        for stage in range(3):
            outputs = (16 << stage) * widen_factor
            for block in range(blocks):
                layers.append(WideBlock(width, outputs, 2 if block == 0 and stage > 0 else 1))
                width = outputs
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, x):
        return self.classify(F.relu_(self.norm(self.features(x))).mean((2, 3)))


class GuideBlock(nn.Module):
    def __init__(self, inputs, outputs, dropout=0.01):
        super().__init__()
        self.convolve = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.widen = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        return self.convolve(x) + (self.widen(x) if self.widen is not None else x)


class GuideWideResNet(nn.Module):
    def __init__(self, classes=100, channels=3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            GuideBlock(16, 160), GuideBlock(160, 160), nn.MaxPool2d(2),
            GuideBlock(160, 320), GuideBlock(320, 320), nn.MaxPool2d(2),
            GuideBlock(320, 640), GuideBlock(640, 640), nn.AvgPool2d(7), nn.Flatten())
        self.classify = nn.Linear(640, classes)

    def forward(self, x):
        return self.classify(self.features(x))


def mlp():
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
