"""A pool without processes: the same handlers, in this one, and workers that die when a test says so."""

from testbed.workers.pool import WorkerLost


class LocalPool:
    """`dies`: called with (jobs that this pool was given so far, kind of the job); True: the worker is lost once it
    has done the job, and its answer with it."""

    dies = staticmethod(lambda _count, _kind: False)

    def __init__(self, make, arguments, workers):
        self.workers, self._made, self._count = workers, (make, arguments), 0
        self.restart()

    def restart(self):
        self.close()
        make, arguments = self._made
        self._handlers = [make(*arguments) for _ in range(self.workers)]

    def run(self, jobs):
        answers = []
        for number, job in enumerate(jobs):
            worker = number % self.workers if job.worker is None else job.worker
            answers.append([bytes(part) for part in self._handlers[worker](list(job.parts))])
            self._count += 1
            if self.dies(self._count, job.parts[0]):
                raise WorkerLost("a worker died")
        return answers

    def broadcast(self, parts):
        return [list(handler(list(parts))) for handler in self._handlers]

    def close(self):
        for handler in getattr(self, "_handlers", []):
            for edge in handler._edges.values():
                edge.close()
        self._handlers = []
