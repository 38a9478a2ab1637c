"""A pool without processes: the same handlers, in this one, and workers that die when a test says so."""

from testbed.workers.messages import decode, encode
from testbed.workers.pool import Pool, WorkerLost


class LocalPool(Pool):
    """`dies`: called with the kind of each request; True: the worker is lost once it has done it, and its answer with it."""

    dies = staticmethod(lambda _kind: False)

    def _start(self):
        self._handlers = [self._make(*self._arguments) for _ in range(self.workers)]

    def run(self, jobs):
        answers = []
        for number, job in enumerate(jobs):
            worker = number % self.workers if job.worker is None else job.worker
            answers.append(decode(encode(self._handlers[worker](decode(encode(job.request))))))
            if self.dies(type(job.request)):
                raise WorkerLost("a worker died")
        return answers

    def close(self):
        for handler in self._handlers:
            for edge in getattr(handler, "_edges", {}).values():
                edge.close()
        self._handlers = []
