"""Pictures of prompts that began together: several are encoded at once, where the add-on can."""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence

from engine.decoding.answer import Answer
from engine.memory.features import FeatureCache
from vision_add_ons.base import Picture
from vision_add_ons.safetensors_files import forget_failures

log = logging.getLogger("sightline")


class Looking:
    """For the engine's thread alone."""

    def __init__(self, features: FeatureCache, at_once: int) -> None:
        """`at_once` pictures at most are encoded together."""
        self._features = features
        self._at_once = at_once
        self._paces: deque[float] = deque(maxlen=4)
        """Seconds that each picture took, of the latest that were encoded together."""

    def encode(self, answers: Sequence[Answer], gap: float) -> Iterator[None]:
        """Encode the pictures that are to be run, at once as many as take at most `gap` seconds.

        Yields after each time. What cannot be encoded is left out: who then asks `Answer.encode`
        for it is told why.
        """
        left_out: set[str] = set()
        most = self._at_once
        while batch := self._next(answers, left_out, min(most, self._fitting(gap))):
            started = time.perf_counter()
            try:
                encoded = self._features.encode_all([picture for _, picture in batch])
            except Exception as error:
                log.debug("%d pictures could not be encoded", len(batch), exc_info=error)
                forget_failures()
                if len(batch) == 1:
                    left_out.add(batch[0][1].digest)
                most = 1  # the others are not to blame
                continue
            for (answer, picture), rows in zip(batch, encoded, strict=True):
                answer.take(picture, rows, fresh=True)
            self._paces.append((time.perf_counter() - started) / len(batch))
            yield

    def _fitting(self, gap: float) -> int:
        return max(1, int(gap / min(self._paces))) if self._paces else 1

    @staticmethod
    def _next(
        answers: Sequence[Answer], left_out: set[str], count: int
    ) -> list[tuple[Answer, Picture]]:
        """At most one picture of each answer: memory is there for one of each."""
        batch: dict[str, tuple[Answer, Picture]] = {}
        for answer in answers:
            if len(batch) == count:
                break
            pictures = [] if answer.generation.cancelled else [s.picture for s in answer.spans]
            for picture in pictures:
                digest = picture.digest
                if digest not in batch and digest not in left_out and not answer.knows(picture):
                    batch[digest] = answer, picture
                    break
        return list(batch.values())
