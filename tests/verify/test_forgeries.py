"""Ten thousand forgeries by machine: whatever enlarges a promise is found.

Each changes something of an honest certificate, anything at all, and makes the checksum fit. Many
are clumsy, some are as good as they can be: the votes, alpha or the law are changed first, and all
numbers follow from them.
"""

import copy
import json
import random
import zlib

import pytest
import torch
from torch import nn

from rsfl import deform, noise, runs, smooth
from rsfl.verify import Witness, verify

INPUTS, CLASSES, N0, N = 5, 3, 20, 80
LAWS = {
    "gaussian": noise.Gaussian(0.4),
    "uniform": noise.Uniform(0.5),
    "laplace": noise.Laplace(0.3),
    "rounded": noise.RoundedGaussian(0.3),
    "rotation": deform.Rotation(0.5),
    "translation": deform.Translation(0.3),
}
READINGS = {
    "complement": lambda b: b.certificate(0.01),
    "bounded": lambda b: b.certificate(0.01, runner_up="bounded"),
    "hoeffding": lambda b: b.certificate(0.01, confidence="hoeffding"),
    "prediction": lambda b: b.prediction(0.01),
    "at": lambda b: b.certificate_at(0.01, 0.01),
}

# What no look at a record, a model and data can tell; the page on verification says so.
BLIND = ("spot_checked", "rule")


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Certificates of every law and reading, each with the model and the data it is of."""
    torch.manual_seed(11)
    x = (
        torch.rand(INPUTS, 1, 4, 4, generator=torch.Generator().manual_seed(5)) * 255
    ).round() / 255
    data = [(one, i % CLASSES) for i, one in enumerate(x)]
    out = tmp_path_factory.mktemp("honest")
    found = []
    for name, law in LAWS.items():
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, CLASSES))
        with torch.no_grad():
            model[3].weight *= 8
        smoother = smooth.Smoother(model, law, CLASSES)
        runs.certify(smoother, data, out=out / name, n0=N0, n=N, alpha=0.01)
        votes = runs.log.Directory.open(out / name).ballot()
        for reading, read in READINGS.items():
            path = out / f"{name}-{reading}.json"
            read(votes).save(path)
            found.append((json.loads(path.read_text())["content"], model, data))
    return found


def document(content):
    seal = zlib.crc32(json.dumps(content).encode())
    return json.dumps({"kind": "certificate", "format": 2, "crc32": seal, "content": content})


# --- Pens ----------------------------------------------------------------------------------------


def leaves(value, path=()):
    """The places of everything that a document says."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from leaves(one, (*path, name))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from leaves(one, (*path, at))
    else:
        yield path


def at(content, path):
    for step in path:
        content = content[step]
    return content


def put(content, path, value):
    at(content, path[:-1])[path[-1]] = value


def other(rng, value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, value * 2, 0, rng.randrange(200), -value])
    if isinstance(value, float):
        return rng.choice([value * (1 + 10 ** -rng.uniform(1, 8)), value / 2, value * 2, 1e-9])
    try:
        number = float(value)
    except ValueError:
        if value and set(value) <= set("0123456789abcdef"):
            return f"{rng.getrandbits(4 * len(value)):0{len(value)}x}"
        words = ["l1", "l2", "linf", "input", "fixed", "hoeffding", "clopper-pearson", "bounded"]
        words += ["complement", "checked", "trusted", "configured", "Gaussian", "", "radius", "at"]
        return rng.choice([word for word in words if word != value])
    grown = [number * (1 + 10 ** -rng.uniform(0, 8)), number + 0.1, 1.0, 3.5]
    return rng.choice([repr(one) for one in grown] + ["inf", "nan", "0.0"])


def any_leaf(rng, content):
    places = [path for path in leaves(content) if path[0] != "versions"]
    # Columns are long: what stands only once is changed as often as they are.
    name = rng.choice(sorted({path[0] for path in places}))
    path = rng.choice([one for one in places if one[0] == name])
    put(content, path, other(rng, at(content, path)))


def a_radius(rng, content):
    row = rng.randrange(INPUTS)
    content["radius"][row] = repr(float(content["radius"][row]) * (1 + 10 ** -rng.uniform(0, 9)))
    if content["label"][row] == -1:
        content["label"][row] = rng.randrange(CLASSES)
        content["radius"][row] = repr(rng.uniform(0, 1))
    if rng.random() < 0.5:
        content["p_lower"][row], content["p_upper"][row] = "0.99", "0.01"


def a_label(rng, content):
    row = rng.randrange(INPUTS)
    content["label"][row] = rng.choice([c for c in range(CLASSES) if c != content["label"][row]])


def an_assumption(rng, content):
    one = rng.randrange(len(content["assumptions"]))
    if rng.random() < 0.5:
        del content["assumptions"][one]
    else:
        name = rng.choice(["id", "statement", "basis", "where"])
        content["assumptions"][one][name] = "checked" if name == "basis" else "as you like"


def votes(rng, content):
    row = rng.randrange(INPUTS)
    column = rng.choice(["counts", "selection"])
    total = content["n" if column == "counts" else "n0"][row]
    first = rng.randrange(total + 1)
    pair = rng.sample(range(CLASSES), 2)
    counted = {pair[0]: first, pair[1]: total - first}
    content[column][row] = {str(c): counted[c] for c in sorted(counted) if counted[c]}


def law(rng, content):
    for name in ("sigma", "half_width", "scale"):
        if name in content["law"]:
            content["law"][name] *= rng.choice([1 + 1e-6, 1.1, 2, 0.5])


def alpha(rng, content):
    content["alpha"] *= rng.choice([0.5, 0.1, 1e-3, 1 - 1e-9])


def identity(rng, content):
    name = rng.choice(["seed", "model", "input", "index", "dim"])
    if name in ("seed", "dim"):
        content[name] += rng.choice([1, 7])
    elif name == "model":
        content[name] = f"{rng.getrandbits(256):064x}"
    else:
        rows = rng.sample(range(INPUTS), 2)
        first, second = (content[name][row] for row in rows)
        content[name][rows[0]], content[name][rows[1]] = second, first


def rederived(rng, content):
    """A lie that is consistent: something is changed, and all that follows from it follows."""
    rng.choice([votes, votes, law, alpha, identity])(rng, content)
    label, *reals = numbers(content, content["reading"], content["alpha"])
    content["label"] = label.tolist()
    for name, real in zip(("radius", "p_lower", "p_upper"), reals, strict=True):
        content[name] = [repr(one) for one in real.tolist()]


_EVIDENCE = ["law", "measure", "rule", "classes", "dim", "seed", "model", "spot_checked"]
_EVIDENCE += ["condition", "index", "input", "n0", "selection", "n", "counts"]
PENS = [*[any_leaf] * 3, a_radius, a_label, an_assumption, votes, law, alpha, identity]
PENS += [rederived] * 4


# --- What a forgery gains ------------------------------------------------------------------------


def enlarges(before, after):
    """What is promised after that was not promised before; "" where nothing is."""
    try:
        if after["alpha"] < before["alpha"]:
            return "alpha"
        for name in ("law", "measure", "index", "model", "seed", "classes", "dim", "condition"):
            if after[name] != before[name]:
                return name
        if any(
            new != old and new for new, old in zip(after["input"], before["input"], strict=True)
        ):
            return "input"
        if any(one not in after["assumptions"] for one in before["assumptions"]):
            return "assumptions"
        for row in range(INPUTS):
            for name in ("n0", "selection", "n", "counts"):
                if after[name][row] != before[name][row]:
                    return name  # every other reading of them would be another
            label, radius, low, high = (
                [float(one[name][row]) for one in (before, after)]
                for name in ("label", "radius", "p_lower", "p_upper")
            )
            if label[1] != -1 and label[0] != label[1]:
                return "label"
            for name, (old, new), sign in (
                ("radius", radius, 1),
                ("p_lower", low, 1),
                ("p_upper", high, -1),
            ):
                if not sign * new <= sign * old:
                    return name
        return next((name for name in BLIND if after[name] != before[name]), "")
    except (KeyError, TypeError, ValueError, IndexError):
        return "nonsense"


def is_true(content, model, data):
    """Whether what a document says is what honest certification says: of the same votes at another
    alpha, say, or under a law that differs by less than any vote does."""
    law = smooth.Ballot.of_document(evidence(content)).law
    smoother = smooth.Smoother(model, law, content["classes"])
    for row, index in enumerate(content["index"]):
        if not content["n0"][row] and content["reading"]["name"] != "prediction":
            if content["label"][row] != -1:
                return False
            continue  # no votes select a class, and none is named
        one = smoother.ballot(
            data[index][0][None],
            n0=content["n0"][row],
            n=content["n"][row],
            seed=content["seed"],
            index=[index],
        ).document()
        if content["dim"] != one["dim"]:
            return False
        if any(content[name][row] != one[name][0] for name in ("counts", "selection")):
            return False
        honest = numbers(one, content["reading"], content["alpha"])
        label, radius, low, high = (float(value[0]) for value in honest)
        claimed = [float(content[name][row]) for name in ("label", "radius", "p_lower", "p_upper")]
        if claimed[0] not in (-1, label) or not claimed[1] <= radius:
            return False
        # By the test any probability may be claimed that the votes decide on.
        if content["reading"]["name"] != "at" and not (claimed[2] <= low and claimed[3] >= high):
            return False
    return True


def evidence(content):
    return {name: content[name] for name in _EVIDENCE}


def numbers(content, reading, alpha):
    """What follows from votes."""
    ballot, reading = smooth.Ballot.of_document(evidence(content)), dict(reading)
    name = reading.pop("name")
    if name == "radius":
        certificate = ballot.certificate(alpha, **reading)
    elif name == "at":
        certificate = ballot.certificate_at(reading["radius"], alpha)
    else:
        certificate = ballot.prediction(alpha)
    return certificate.label, certificate.radius, certificate.p_lower, certificate.p_upper


def forged(honest, number, path):
    """One forgery: what it gains, at which depth it is found, and what was changed."""
    rng = random.Random(number)
    before, model, data = rng.choice(honest)
    content = copy.deepcopy(before)
    pens = [rng.choice(PENS) for _ in range(rng.choice([1, 1, 1, 2]))]
    try:
        for pen in pens:
            pen(rng, content)
    except (ValueError, TypeError, KeyError, IndexError):
        return "", "", ""  # it became nothing that could be written
    gain = enlarges(before, content)
    if not gain:
        return "", "", ""
    path.write_text(document(content))
    depth = {one.depth for one in verify(path) if one.holds is False}
    if not depth:
        witness = Witness(model, data, forged=1e-9, missed=1e-12)
        depth = {one.depth for one in verify(path, witness=witness) if one.holds is False}
    if not depth and is_true(content, model, data):
        return "", "", ""  # another certificate, but no forgery
    return gain, min(depth, default=""), f"{number} {[pen.__name__ for pen in pens]}"


def check(honest, numbers, path):
    seen, missed = {}, []
    for number in numbers:
        gain, depth, text = forged(honest, number, path)
        if gain:
            seen[depth] = seen.get(depth, 0) + 1
            if not depth and gain not in BLIND:
                missed.append((gain, text))
    return seen, missed


def test_honest_certificates_raise_no_alarm(honest, tmp_path):
    for content, model, data in honest:
        path = tmp_path / "c.json"
        path.write_text(document(content))
        report = verify(path, witness=Witness(model, data))
        assert all(one.holds for one in report), report


def test_forgeries_are_found(honest, tmp_path):
    seen, missed = check(honest, range(250), tmp_path / "c.json")
    assert not missed
    assert {"arithmetic", "evidence", "identity"} <= set(seen)
    assert sum(seen.values()) > 150


@pytest.mark.slow
def test_ten_thousand_forgeries_are_found(honest, tmp_path):
    seen, missed = check(honest, range(250, 14_000), tmp_path / "c.json")
    print(seen)
    assert not missed
    assert sum(seen.values()) >= 10_000
