"""A callback that makes a Transformers or TRL trainer publish what it trains.

    from holdfast.integrations.transformers import PublishCallback, last_checkpoint

    with PublishCallback("/mnt/shared/run42/weights", every_steps=5) as publish:
        GRPOTrainer(..., callbacks=[publish]).train(resume_from_checkpoint=last_checkpoint(output_dir))

The name of the newest version travels in the checkpoint's own `trainer_state.json`: the Trainer tells no callback where
the checkpoint lies that it resumes from, but hands it what that file says. So a checkpoint may be moved and renamed,
and it can't happen that it is whole and does not say which version belongs to it.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from holdfast.channel.channel import Channel
from holdfast.channel.held import HeldVersion
from holdfast.channel.model import unwrapped
from holdfast.channel.publisher import Publisher
from holdfast.core.names import Version
from holdfast.core.retention import Retention
from holdfast.errors import (
    HoldfastError,
    IntegrityError,
    NotVisibleError,
    OutcomeUnknownError,
    UnavailableError,
    UsageError,
)
from holdfast.events import EventLog
from holdfast.launched import drain_requested, job, ready_to_drain

logger = logging.getLogger(__name__)

CHECKPOINT: Final = "checkpoint"
MEASURED = ("reward", "reward_std", "loss", "kl", "entropy", "grad_norm")
KEY = "holdfast"  # in the checkpoint's trainer_state.json, below "stateful_callbacks"

Metadata = Mapping[str, Any] | Callable[[TrainerState], Mapping[str, Any]]


class PublishCallback(TrainerCallback):  # type: ignore[misc]
    """Publishes the adapter of a PEFT model, or the full weights of any other, from rank 0.

    The channel is claimed in `on_train_begin`, before the first step. A cycle that starts from no version publishes at
    once what it starts with; then follow every `every_steps` optimizer steps, and the end of the training. What a step
    published is written down in the checkpoint of that step, and `train(resume_from_checkpoint=…)` goes on from it:
    consumers see a rewind, and nothing of what the dead trainer had published after the checkpoint. Is that version
    swept or damaged, the resumed weights are published as a lineage of their own.

    Full weights go with the trainer's `processing_class` (tokenizer), so that a version opens with `from_pretrained`.

    **Drain.** In a worker of `holdfast run`, the ranks agree every `drain_every_steps` steps whether their node is to
    leave. Then the trainer saves a checkpoint, every rank says `ready_to_drain()` and is stopped by its agent; the next
    round resumes. The training is not ended by `should_training_stop`: the script would go on to its end, and a worker
    that ends well says that the job is done.

    **Which trainers.** One process, DistributedDataParallel, DataParallel, DeepSpeed ZeRO 1 and 2: rank 0 has whole
    weights. (DeepSpeed is let through, and not tried by our tests.) FSDP, ZeRO 3 and tensor parallelism are refused:
    save in your own way on all ranks, and hand the directory to `Publisher.publish_directory`.

    Use it in a `with` block, or call `close` when training raised: otherwise the claim stays open for as long as the
    process lives, and a successor of another job waits for a lease. `on_train_end` closes by itself.

    Args:
        channel: the channel, or its directory.
        every_steps: optimizer steps (`state.global_step`) between two versions.
        retention: what the sweeper keeps beside what is held.
        resume_from: "checkpoint": the version that the checkpoint names, none if it names none. Else as for
            `Channel.publisher`: a version, or None for a lineage of its own.
        wait: False copies the tensors and goes on training while they are written. A checkpoint waits for them.
        tries: how many times in a row a publish may fail for the storage's sake (`UnavailableError`,
            `OutcomeUnknownError`) before training fails; meanwhile it is tried again after each step.
        adapter_name: which adapter of a PEFT model; default: the active one.
        metadata: for consumers: a dictionary, or a function of the TrainerState that makes one.
        measured: which numbers that the Trainer logs go into the channel's event files, for `holdfast status` and
            `holdfast report`; none that the Trainer does not log.
        drain_every_steps: see above; each is one all-reduce of a byte.
        publisher_options: `term`, `take_over`, `wait_s`, `room_timeout_s`, `sweep` of `Channel.publisher`. Without a
            `term`, that of the launcher counts.

    Raises (out of `trainer.train()`):
        FencedError: this trainer was replaced: stop. Nothing that it writes is seen.
        ConflictError: code "publisher_alive": another trainer publishes here.
        UsageError: code "sharded_model": see above; or as `Publisher.publish`.
        UnavailableError, OutcomeUnknownError: `tries` times in a row, or at the end of the training.
    """

    def __init__(
        self,
        channel: Channel | str | os.PathLike[str],
        *,
        every_steps: int = 1,
        retention: Retention | None = None,
        resume_from: Version | HeldVersion | str | int | Literal["checkpoint"] | None = CHECKPOINT,
        wait: bool = True,
        tries: int = 3,
        adapter_name: str | None = None,
        metadata: Metadata | None = None,
        measured: Collection[str] = MEASURED,
        drain_every_steps: int = 10,
        **publisher_options: Any,
    ) -> None:
        counts: dict[str, object] = {"every_steps": every_steps, "tries": tries, "drain_every_steps": drain_every_steps}
        for name, number in counts.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UsageError(f"{name}={number!r} is no count from 1 up", code="bad_interval")
        self.channel = channel if isinstance(channel, Channel) else Channel(channel)
        self._every_steps = every_steps
        self._retention = retention
        self._resume_from = resume_from
        self._wait = wait
        self._tries = tries
        self._adapter_name = adapter_name
        self._metadata = metadata
        self._measured = tuple(measured)
        self._log: EventLog | None = None
        self._drain_every_steps = drain_every_steps
        self._options = publisher_options
        self._publisher: Publisher | None = None
        self._in_flight: Future[Version] | None = None
        self._due = False
        self._failures = 0
        self._draining = False
        self._forgiven: list[BaseException] = []  # what failed in the background, and was made good

    @property
    def newest(self) -> Version | None:
        """The newest version that this training committed, or starts from; None before, and on other ranks than 0."""
        if self._publisher is None:
            return None
        return self._publisher.last or self._publisher.starts_from

    def close(self) -> None:
        """Wait for the publish under way and leave the channel in order; idempotent.

        Raises: the first error of a publish in the background.
        """
        publisher, self._publisher, self._in_flight = self._publisher, None, None
        log, self._log = self._log, None
        if log is not None:
            log.close()
        if publisher is None:
            return
        try:
            publisher.close()
        except (UnavailableError, OutcomeUnknownError) as error:
            if not any(error is forgiven for forgiven in self._forgiven):
                raise

    def __enter__(self) -> PublishCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except HoldfastError as second:
            if second is not error:
                error.add_note(f"while closing the publisher: {second}")

    # What the Trainer calls

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_whole(kwargs["model"], args)  # on all ranks: if rank 0 alone said so, the others would wait for it
        self.close()  # of a train() before this one, which was interrupted
        self._due = False
        self._failures = 0
        self._draining = False
        if not state.is_world_process_zero:
            return
        self._publisher = self._open(state)
        self._log = self.channel.event_log("trainer")
        if self._publisher.starts_from is None:
            self._publish(state, wait=True, **kwargs)
        else:
            self._write_down(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._publisher is not None:
            self._collect(state, wait=False)
            if self._due or state.global_step % self._every_steps == 0:
                self._publish(state, wait=self._wait, **kwargs)
        if state.global_step % self._drain_every_steps == 0 and state.global_step < state.max_steps and agreed(args):
            self._draining = True
            control.should_save = True
        self._before_save(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before_save(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._draining:
            self._draining = False
            logger.info("step %d is saved: ready to be stopped", state.global_step)
            ready_to_drain()  # returns if the drain was called off

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._log is not None and logs:
            numbers = {name: logs[name] for name in self._measured if _is_number(logs.get(name))}
            if numbers:
                self._log.emit("measured", step=state.global_step, **numbers)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._publisher is None:
            return
        self._collect(state, wait=True)
        self._failures = self._tries - 1  # there is no later step: the next failure is final
        newest = self.newest
        # The best model, which was loaded in the meantime, is another one than the last.
        if self._due or newest is None or newest.step != state.global_step or args.load_best_model_at_end:
            self._publish(state, wait=True, **kwargs)
        self.close()

    # One publish

    def _open(self, state: TrainerState) -> Publisher:
        """The publisher, opened: from the version that training resumes from, or if that is lost, from none."""
        origin = self._resume_from
        from_checkpoint = origin == CHECKPOINT
        if from_checkpoint:
            origin = read_version(state)
        try:
            return self._opened(origin)
        except (NotVisibleError, IntegrityError) as error:
            if not from_checkpoint or error.code not in ("version_gone", "refused"):
                raise
            logger.warning("the weights of step %d begin a lineage of their own: %s", state.global_step, error)
            return self._opened(None)

    def _opened(self, origin: Version | HeldVersion | str | int | None) -> Publisher:
        publisher = self.channel.publisher(self._retention, resume_from=origin, **self._options)
        publisher.open()
        return publisher

    def _publish(self, state: TrainerState, *, wait: bool, **kwargs: Any) -> None:
        assert self._publisher is not None
        self._due = False
        model = unwrapped(kwargs["model"])
        metadata = self._metadata(state) if callable(self._metadata) else self._metadata
        call: Any
        if getattr(model, "peft_config", None):
            call = partial(self._publisher.publish_adapter, adapter_name=self._adapter_name)
        else:
            call = partial(self._publisher.publish, files=kwargs.get("processing_class"))
        try:
            made: Version | Future[Version] = call(state.global_step, model, metadata=metadata, wait=wait)
        except (UnavailableError, OutcomeUnknownError) as error:
            self._put_off(state, error)
            return
        if isinstance(made, Future):
            self._in_flight = made
        else:
            self._write_down(state)

    def _collect(self, state: TrainerState, *, wait: bool) -> None:
        """Write down what the publish in the background made, if it is done."""
        future = self._in_flight
        if future is None or not (wait or future.done()):
            return
        self._in_flight = None
        try:
            future.result()
        except (UnavailableError, OutcomeUnknownError) as error:
            self._put_off(state, error)
            self._forgiven.append(error)
        else:
            self._write_down(state)

    def _put_off(self, state: TrainerState, error: UnavailableError | OutcomeUnknownError) -> None:
        self._failures += 1
        if self._failures >= self._tries:
            raise error
        self._due = True
        logger.warning("not published by step %d, tried again after the next: %s", state.global_step, error)

    def _write_down(self, state: TrainerState) -> None:
        """The newest version, where the Trainer's next checkpoint takes it from."""
        self._failures = 0
        state.stateful_callbacks[KEY] = {"version": str(self.newest)}

    def _before_save(self, state: TrainerState, control: TrainerControl) -> None:
        if self._publisher is not None and control.should_save:
            self._collect(state, wait=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_version(state: TrainerState) -> str | None:
    """The version that the checkpoint of this state names; None if it names none."""
    written = (state.stateful_callbacks or {}).get(KEY)
    version = written.get("version") if isinstance(written, Mapping) else None
    return version if isinstance(version, str) else None


def agreed(args: TrainingArguments) -> bool:
    """Whether any rank has heard of a drain: the same answer on all ranks, which all have to ask at the same step."""
    if job() is None:
        return False
    import torch
    from torch import distributed

    asked = drain_requested()
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return asked
    flag = torch.tensor([asked], dtype=torch.uint8, device=args.device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def check_whole(model: Any, args: TrainingArguments) -> None:
    """
    Raises:
        UsageError: code "sharded_model": rank 0 does not have the whole weights.
    """
    how = _sharding(model, args)
    if how is not None:
        raise UsageError(
            f"the weights are sharded ({how}), so rank 0 cannot publish them by itself",
            code="sharded_model",
            hint="gather and save them on all ranks as that framework does, then publish_directory() on rank 0",
            sharding=how,
        )


def _sharding(model: Any, args: TrainingArguments) -> str | None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if getattr(args, "fsdp", None) or any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP"
    for weight in model.parameters():
        if isinstance(weight, DTensor) or isinstance(weight.data, DTensor):
            return "DTensor: FSDP 2, or tensor parallelism"
        if hasattr(weight, "ds_id"):  # DeepSpeed's mark of a parameter that is gathered on demand
            return "DeepSpeed ZeRO 3"
    return None


def last_checkpoint(directory: str | os.PathLike[str]) -> str | None:
    """The newest whole checkpoint of a Trainer below `directory`, for `train(resume_from_checkpoint=…)`; None if none.

    The Trainer writes `trainer_state.json` last, so a checkpoint in whose middle it was killed has none, or a torn one.
    (`transformers.trainer_utils.get_last_checkpoint` would give that one, and every further start would fail.)
    """
    for _, path in sorted(_checkpoints(directory), reverse=True):
        with suppress(OSError, ValueError, TypeError):
            TrainerState.load_from_json(os.path.join(path, "trainer_state.json"))
            return path
    return None


def _checkpoints(directory: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """(step, path) of each."""
    try:
        with os.scandir(directory) as entries:
            matches = [(re.fullmatch(r"checkpoint-([0-9]{1,18})", entry.name), entry.path) for entry in entries]
    except FileNotFoundError:
        return []
    return [(int(match[1]), path) for match, path in matches if match is not None]
