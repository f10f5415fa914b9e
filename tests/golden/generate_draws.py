#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes fed_draws.txt beside this file: the streams of pardl::fed::Draws, computed a second time from their definition.

    python3 tests/golden/generate_draws.py        (the standard library only)

Whoever changes a stream changes the results of every seed, so the test compares bit for bit. Here a fused multiply-add is
an exact fraction rounded once; nothing calls the C library's log, exp or fma. Lines are as in generate.py.
"""
import math
import pathlib
from decimal import Decimal, getcontext
from fractions import Fraction

HERE = pathlib.Path(__file__).resolve().parent
M32 = 2**32 - 1
M64 = 2**64 - 1
getcontext().prec = 60


def philox(counter, key):
    counter, key = list(counter), list(key)
    for _ in range(10):
        a = 0xD2511F53 * counter[0]
        b = 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & M32, (a >> 32) ^ counter[3] ^ key[1], a & M32]
        key = [(key[0] + 0x9E3779B9) & M32, (key[1] + 0xBB67AE85) & M32]
    return counter


def words(x):
    return [x & M32, x >> 32]


def mix_key(seed, a, b, purpose, domain):
    mixed = philox(words(a) + words(b), words(seed))
    return philox(mixed, [purpose, int.from_bytes(domain, "big")])


def fold(seed, a, b, purpose):
    mixed = mix_key(seed, a, b, purpose, b"fold")
    return mixed[1] << 32 | mixed[0]


def fma(a, b, c):
    return float(Fraction(a) * Fraction(b) + Fraction(c))


LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")


def log(x):
    m, exponent = math.frexp(x)
    if m < float.fromhex("0x1.6a09e667f3bcdp-1"):
        m, exponent = m * 2, exponent - 1
    s = (m - 1) / (m + 1)
    z = s * s
    series = 1 / 25
    for odd in range(23, 1, -2):
        series = fma(series, z, 1 / odd)
    return fma(exponent, LN2_HIGH, fma(exponent, LN2_LOW, fma(2 * s * z, series, 2 * s)))


def exp(x):
    if x <= -746:
        return 0.0
    twos = math.floor(fma(x, float.fromhex("0x1.71547652b82fep+0"), 0.5))
    r = fma(-twos, LN2_LOW, fma(-twos, LN2_HIGH, x))
    series = 1 / math.factorial(13)
    for n in range(12, 1, -1):
        series = fma(series, r, 1 / math.factorial(n))
    return math.ldexp(1 + fma(series, r * r, r), twos)


class Draws:
    def __init__(self, seed, a=0, b=0, purpose=0):
        self.key = mix_key(seed, a, b, purpose, b"draw")
        self.position = 0

    def bits(self):
        block = philox(words(self.position // 2) + self.key[:2], self.key[2:])
        half = self.position % 2
        self.position += 1
        return block[2 * half + 1] << 32 | block[2 * half]

    def below(self, bound):
        while (value := self.bits()) < 2**64 % bound:
            pass
        return value % bound

    def uniform(self):
        return (self.bits() >> 11) * 2.0**-53

    def open_uniform(self):
        return (2 * (self.bits() >> 12) + 1) * 2.0**-53

    def normal(self):
        while True:
            x = 2 * self.uniform() - 1
            y = 2 * self.uniform() - 1
            square = fma(x, x, y * y)
            if 0 < square < 1:
                return x * math.sqrt(-2 * log(square) / square)

    def gamma_from_one(self, shape):
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self.normal()
            root = fma(c, x, 1.0)
            if root <= 0:
                continue
            square = root * root
            bracket = fma(3.0, log(root), fma(-square, root, 1.0))
            if log(self.open_uniform()) < fma(d, bracket, 0.5 * x * x):
                return d * square * root

    def log_gamma(self, shape):
        if shape >= 1:
            return log(self.gamma_from_one(shape))
        boost = log(self.open_uniform()) / max(shape, 1e-300)
        return log(self.gamma_from_one(shape + 1)) + boost

    def gamma(self, shape):
        return exp(self.log_gamma(shape)) if shape < 1 else self.gamma_from_one(shape)

    def dirichlet(self, concentration, entries):
        logs = [self.log_gamma(concentration) for _ in range(entries)]
        shares = [exp(value - max(logs)) for value in logs]
        total = 0.0
        for share in shares:  # sum() compensates from Python 3.12 on
            total += share
        return [share / total for share in shares]

    def shuffled(self, n):
        order = list(range(n))
        for left in range(n, 1, -1):
            other = self.below(left)
            order[left - 1], order[other] = order[other], order[left - 1]
        return order

    def sample(self, population, count):
        taken = set()
        for last in range(population - count, population):
            drawn = self.below(last + 1)
            taken.add(last if drawn in taken else drawn)
        return sorted(taken)


def hexes(values):
    return [value.hex() for value in values]


def close_to(function, x):
    """The true value, rounded once."""
    return float(getattr(Decimal(x), function)())


KEYS = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**32, 0, 0, 0), (0, 2**32, 0, 0),
        (0, 0, 2**32, 0), (12345, 7, 99, 2), (M64, M64, M64, M32)]
records = []


def record(name, values, *arguments):
    records.append(" ".join(map(str, (name, *arguments))) + " : " + " ".join(map(str, values)))


for key in KEYS:
    stream = Draws(*key)
    record("bits", [stream.bits() for _ in range(5)], *key)
    record("fold", [fold(*key)], *key)
for bound in (1, 2, 10, 62, 2**32, 2**63 + 1, M64):
    stream = Draws(3, 1, 4, 1)
    record("below", [stream.below(bound) for _ in range(8)], bound)
stream = Draws(5)
record("uniform", hexes(stream.uniform() for _ in range(8)))
stream = Draws(5)
record("open_uniform", hexes(stream.open_uniform() for _ in range(8)))
stream = Draws(6)
record("normal", hexes(stream.normal() for _ in range(40)))
for shape in (1e-300, 1e-3, 0.1, 0.5, 1.0, 1.5, 10.0, 1e6):
    stream = Draws(7)
    record("gamma", hexes(stream.gamma(shape) for _ in range(12)), shape.hex())
    stream = Draws(7)
    record("log_gamma", hexes(stream.log_gamma(shape) for _ in range(12)), shape.hex())
for concentration in (1e-300, 0.01, 0.5, 1.0, 1000.0):
    record("dirichlet", hexes(Draws(8).dirichlet(concentration, 7)), concentration.hex())
for n in (0, 1, 2, 10, 40):
    record("shuffle", Draws(9).shuffled(n), n)
for population, count in ((0, 0), (1, 1), (5, 0), (5, 5), (100, 40), (100_000, 12)):
    record("sample", Draws(10).sample(population, count), population, count)
for seed in (0, 12345):
    for round_number in (0, 1, 299):  # what fed::Uniform{.count = 40} samples; 2 is the purpose
        record("uniform_sampler", Draws(seed, round_number, 0, 2).sample(100, 40), seed, round_number, 100, 40)
for rate in (0.001, 0.07, 0.1, 0.2, 0.29, 0.3, 0.4, 0.57, 0.58, 0.7, 1 / 3, 0.999, 1.0):
    for clients in (1, 2, 7, 36, 100, 1000, 3597):  # FederatedScope: max(1, int(rate * clients))
        nearest = math.floor(Fraction(rate * clients) + Fraction(1, 2))
        record("count", [max(1, int(rate * clients)), max(1, nearest)], rate.hex(), clients)
for x in (5e-324 * 2**60, 1e-300, 1e-10, 0.1, 0.5, 0.7071067811865475, 0.7071067811865476, 0.9, 0.9999999999999999, 1.0,
          1.0000000000000002, 1.1, 1.4142135623730951, 2.0, 3.0, 10.0, 12345.678, 1e300):
    record("log", [log(x).hex(), close_to("ln", x).hex()], x.hex())
for x in (-745.0, -720.5, -700.0, -100.0, -1.0, -0.3465735902799727, -1e-9, 0.0, 1e-300, 1e-9, 0.34, 0.35, 1.0, 2.5, 100.0,
          709.0):
    record("exp", [exp(x).hex(), close_to("exp", x).hex()], x.hex())

lines = ["# Streams of pardl::fed::Draws.", "# Written by generate_draws.py; do not edit.", *records,
         f"records {len(records)} :"]
(HERE / "fed_draws.txt").write_text("\n".join(lines) + "\n")
