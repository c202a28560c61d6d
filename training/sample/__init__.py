"""The shipped MNIST sample; README.md says where it comes from and how it was cut."""

from pathlib import Path

SAMPLE = Path(__file__).with_name("mnist_sample.npz")
