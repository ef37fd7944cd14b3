"""Who labels shards: this process, several processes of this machine, or the tasks of a Ray cluster.

They differ in where `label_shard` runs. What it returns is encoded and written by the same code, so that the files are
the same, byte for byte, where the arithmetic is: on one kind of device, with as many threads.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cocomix.concepts.teacher import ConceptTeacher, TeacherSource
from cocomix.concepts.tokens import TokenShardLike
from cocomix.labelling.ray_engine import RaySettings, label_on_ray
from cocomix.labelling.shards import Advance, ShardPlan, ShardWriter, label_shard
from cocomix.labelling.workers import label_in_processes
from cocomix.runtime.console import Reporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["LabelEngine"]


@dataclass(frozen=True)
class LabelEngine:
    """Where shards are labelled.

    Attributes:
        workers: how many shards are labelled at once.
        source: where processes and tasks load the teacher from; needed for more than one worker, and for Ray.
        ray: label in tasks of a Ray cluster.
    """

    workers: int = 1
    source: TeacherSource | None = None
    ray: RaySettings | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or (self.source is None and (self.workers > 1 or self.ray is not None)):
            raise CoCoMixError(
                f"workers is {self.workers}; it must be at least 1, and more than one need a TeacherSource."
            )

    def label(
        self,
        teacher: ConceptTeacher,
        shards: Sequence[TokenShardLike],
        plan: ShardPlan,
        advance: Advance,
        reporter: Reporter,
    ) -> float:
        """Label shards, write them and record them.

        Args:
            teacher: used where this process labels; its fingerprints must be those of `source`.
            shards: still to be labelled, in this order.
            plan: settings, sizes and folder.
            advance: called with the number of tokens done.
            reporter: told what keeps a cluster from beginning.

        Returns:
            Seconds it took; loading is left out but on Ray.

        Raises:
            CoCoMixError: as `label_shard`, `label_in_processes` and `label_on_ray`.
        """
        workers = min(self.workers, len(shards))
        if self.source is None or workers == 0 or (workers == 1 and self.ray is None):
            return _label_here(teacher, shards, plan, advance)
        fingerprints = (teacher.fingerprint(), teacher.dictionary.fingerprint())
        if self.ray is None:
            return label_in_processes(self.source, fingerprints, shards, plan, workers, advance)
        return label_on_ray(self.source, fingerprints, shards, plan, self.ray, workers, advance, reporter)


def _label_here(teacher: ConceptTeacher, shards: Sequence[TokenShardLike], plan: ShardPlan, advance: Advance) -> float:
    """Label and write shards in this process; seconds it took."""
    started = time.perf_counter()
    with ShardWriter(plan) as writer:
        for shard in shards:
            writer.write(shard.name, label_shard(teacher, shard, plan, advance))
    return time.perf_counter() - started
