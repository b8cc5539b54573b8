"""A worker with a plain transformers.Trainer: python plain.py MODEL OUT CHANNEL."""

from __future__ import annotations

import pathlib
import sys

from holdfast import Channel
from holdfast.integrations.transformers import PublishCallback
from tests.integrations.small import ALL, llama, settings, trainer


def main(model: str, out: str, channel: str) -> None:
    with PublishCallback(Channel(channel, lease_s=5.0), every_steps=3, retention=ALL, drain_every_steps=4) as publish:
        trainer(llama(pathlib.Path(model)), settings(pathlib.Path(out)), publish).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
