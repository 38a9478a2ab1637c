"""Algorithm 1 of the paper, line by line, for the tests that compare with it. Shares no code with ours."""


class Literal:
    """`request` is one transfer request of a batch; where it sends, the batch arrives and `score` is its s.

    Beside the paper: s is clamped, the interval is at most `cap`, and no more than `age` attempts are skipped.
    """

    def __init__(self, cap, age):
        self.cap, self.age = cap, age
        self.cached, self.interval, self.counter, self.score = set(), {}, {}, {}

    def request(self, key, score):
        if key not in self.cached:  # not in the ID cache: s = 0, i = 1 / (1 - s), c = 0
            self.cached.add(key)
            self.transfer(key, 0.0)
            return True
        if self.counter[key] >= self.interval[key] or self.counter[key] >= self.age:
            self.transfer(key, score)
            return True
        self.counter[key] += 1
        return False

    def transfer(self, key, score):
        s = max(score, 0.0)
        self.score[key] = score
        self.interval[key] = self.cap if s >= 1 else min(1 / (1 - s), self.cap)
        self.counter[key] = 0

    def pause(self, key):
        return min(self.interval[key], self.age)
