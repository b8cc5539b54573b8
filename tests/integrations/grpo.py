"""A training script as users write it: TRL's GRPOTrainer learns sums, publishes, and resumes after any death.

python grpo.py MODEL OUT CHANNEL STEPS
"""

from __future__ import annotations

import pathlib
import sys
import threading
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import holdfast
from holdfast.integrations.transformers import PublishCallback, last_checkpoint


def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """How many of the two digits are right."""
    wanted = [f"{sum(map(int, prompt.rstrip('=').split('+'))):02d}" for prompt in prompts]
    return [sum(map(str.__eq__, want, got)) / 2 for want, got in zip(wanted, completions, strict=True)]


class Gate(TrainerCallback):  # type: ignore[misc]
    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        while state.global_step == 10 and self._path.exists():
            threading.Event().wait(0.01)


def main(model: str, out: str, channel: str, steps: str, gate: str = "/nowhere") -> None:
    arguments = GRPOConfig(
        output_dir=out,
        max_steps=int(steps),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        learning_rate=1e-2,
        save_steps=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    prompts = Dataset.from_dict({"prompt": [f"{a}+{b}=" for a in range(10) for b in range(10)]})
    retention = holdfast.Retention(keep_recent=3, keep_every=4)
    with PublishCallback(channel, retention=retention, drain_every_steps=1) as publish:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=prompts,
            peft_config=LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
            callbacks=[publish, Gate(pathlib.Path(gate))],
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
